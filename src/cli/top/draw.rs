//! A frame, as a pure function of a view and of a size.
//!
//! State is told in words, and by colours only beside them.

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Row as Cells, Table, Widget};

use super::super::judge::{Finding, Level};
use super::super::muster::{COLUMNS, MemberState, Muster, Seen};
use super::super::standing::{relative, span};
use super::super::status::{Report, count};
use super::super::survey::{Row, Survey};
use super::super::trouble::Trouble;
use super::feed::Round;
use super::popup;
use super::text::{plain, styled};
use super::view::View;
use crate::plan::condition::Condition;
use crate::time::Timestamp;

pub(super) const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const TITLE: Style = Style::new().add_modifier(Modifier::REVERSED);
const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
const POOR: Style = Style::new().fg(Color::Yellow);
const GOOD: Style = Style::new().fg(Color::Green).add_modifier(Modifier::BOLD);

/// From this height on there is room for empty lines.
const ROOMY: u16 = 20;

/// A frame on a terminal.
pub(super) struct Screen<'a>(pub(super) &'a View);

impl Widget for Screen<'_> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let Self(view) = self;
        let places = Places::of(view, area);
        Paragraph::new(head(view)).render(places.head, buffer);
        Members(view).render(places.members, buffer);
        clients(view, places.clients, buffer, true);
        Paragraph::new(foot(view)).render(places.foot, buffer);
        popup::draw(view, area, buffer);
    }
}

/// Where things are.
struct Places {
    head: Rect,
    members: Rect,
    clients: Rect,
    foot: Rect,
}

impl Places {
    fn of(view: &View, area: Rect) -> Self {
        let gap = u16::from(area.height >= ROOMY);
        let head = rows(head(view).len());
        let room = area.height.saturating_sub(head + 1 + 2 * gap);
        let all = rows(view.members().len() + 1);
        // Clients are what it is about: tasks get a third, and what clients leave.
        let members = all.min((room / 3).max(room.saturating_sub(rows(view.clients().len() + 2))));
        let members = if members < 2 { 0 } else { members };
        let lengths = [head, gap, members, gap].map(Constraint::Length);
        let [head, _, members, _, clients, foot] = area.layout(&Layout::vertical(
            lengths.into_iter().chain([Constraint::Fill(1), Constraint::Length(1)]),
        ));
        Self { head, members, clients, foot }
    }
}

fn rows(count: usize) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX / 2)
}

/// Tells the view what a screen of this size has room for.
pub(super) fn fit(view: &mut View, area: Rect) {
    let page = usize::from(Places::of(view, area).clients.height).saturating_sub(2);
    let inside = popup::inner(area);
    let lines = popup::lines(view, usize::from(inside.width)).len();
    view.fit(page, lines, usize::from(inside.height));
}

/// A frame as text, so high that it holds the first clients up to this many.
pub(super) fn text(view: &View, width: u16, listed: usize) -> String {
    let clients = view.clients().len().min(listed);
    let height = head(view).len() + 1 + view.members().len() + 1 + 1 + clients + 2;
    let area = Rect::new(0, 0, width, rows(height));
    let mut buffer = Buffer::empty(area);
    let [head_at, _, members_at, _, clients_at] = area.layout(&Layout::vertical([
        Constraint::Length(rows(head(view).len())),
        Constraint::Length(1),
        Constraint::Length(rows(view.members().len() + 1)),
        Constraint::Length(1),
        Constraint::Fill(1),
    ]));
    Paragraph::new(head(view)).render(head_at, &mut buffer);
    Members(view).render(members_at, &mut buffer);
    self::clients(view, clients_at, &mut buffer, false);
    lines_of(&buffer).join("\n")
}

/// What stands in a buffer, without what follows the last word of a line.
fn lines_of(buffer: &Buffer) -> Vec<String> {
    let width = usize::from(buffer.area.width).max(1);
    let line = |cells: &[ratatui::buffer::Cell]| cells.iter().map(|cell| cell.symbol()).collect::<String>();
    buffer.content().chunks(width).map(|cells| line(cells).trim_end().to_owned()).collect()
}

fn style_of(level: Level) -> Style {
    match level {
        Level::Fine => GOOD,
        Level::Degraded => POOR.add_modifier(Modifier::BOLD),
        Level::Broken => BAD,
    }
}

fn head(view: &View) -> Vec<Line<'static>> {
    let mut lines = vec![title(view)];
    lines.extend(problem(view));
    let Some(Round { report, coverage }) = &view.round else { return lines };
    lines.push(verdict(report));
    lines.extend(report.muster.as_ref().map(of_members));
    if let Some(survey) = &report.survey {
        lines.push(of_clients(survey));
        lines.push(times(survey, view.now));
        if !coverage.whole {
            let read = survey.clients() + survey.malformed.count;
            lines.push(Line::from(styled(
                format!("partial: {read} clients read so far, more each round"),
                POOR,
            )));
        } else if coverage.rounds > 1 {
            let old = span(view.every.as_secs() * u64::from(coverage.rounds));
            let told = format!("partial: all clients take {} rounds; rows may be {old} old", coverage.rounds);
            lines.push(Line::from(styled(told, POOR)));
        }
    }
    lines
}

fn title(view: &View) -> Line<'static> {
    let age = match &view.round {
        None => "nothing read yet".to_owned(),
        Some(round) => match view.now.since(round.report.now).as_secs() {
            0 => "read now".into(),
            secs => format!("read {} ago", span(secs)),
        },
    };
    let cost = view.round.as_ref().map(|round| format!(", {} read units", round.report.read_units));
    let reading = if view.reading { ", reading" } else { "" };
    Line::from(vec![
        styled("perennial top", BOLD),
        plain(format!("  {}  ", view.table)),
        styled(
            format!("{age}, every {}{}{reading}", span(view.every.as_secs()), cost.unwrap_or_default()),
            DIM,
        ),
    ])
}

fn problem(view: &View) -> Option<Line<'static>> {
    let problem = view.problem.as_ref()?;
    let since = span(view.now.since(problem.since).as_secs());
    let since = if since.is_empty() { String::new() } else { format!(" for {since}") };
    Some(Line::from(styled(format!("NO ANSWER{since}: {}", problem.text), BAD)))
}

fn verdict(report: &Report) -> Line<'static> {
    let verdict = &report.verdict;
    let mut spans = vec![styled(verdict.level.as_str().to_uppercase(), style_of(verdict.level))];
    if let Some(Finding { code, message, .. }) = verdict.findings.first() {
        let more = match verdict.findings.len() {
            1 => String::new(),
            count => format!(" (v: {} more)", count - 1),
        };
        spans.push(plain(format!("  {code}{more}: {message}")));
    }
    Line::from(spans)
}

fn of_members(muster: &Muster) -> Line<'static> {
    let silent = muster.count(MemberState::Silent);
    Line::from(plain(format!(
        "tasks    {} at work of {}, {silent} silent, {} of {} shards nobody's",
        muster.at_work(),
        muster.seen.len(),
        muster.unowned(),
        muster.shards,
    )))
}

fn of_clients(survey: &Survey) -> Line<'static> {
    let mut told = format!("clients  {}", survey.clients());
    for (at, condition) in
        Condition::ALL.into_iter().filter(|condition| count(survey, *condition) > 0).enumerate()
    {
        let before = if at == 0 { ": " } else { ", " };
        told += &format!("{before}{} {condition}", count(survey, condition));
    }
    if survey.malformed.count > 0 {
        told += &format!(", and {} malformed", survey.malformed.count);
    }
    Line::from(plain(told))
}

fn times(survey: &Survey, now: Timestamp) -> Line<'static> {
    let next = survey.next_due.map_or("none".into(), |at| relative(at, now));
    let least = survey.least.map_or("-".into(), |at| match at.since(now).as_secs() {
        0 => format!("expired {}", relative(at, now)),
        secs => span(secs),
    });
    Line::from(plain(format!("times    next refresh {next}, least remaining lifetime {least}")))
}

/// A column, and how wide it is.
struct Column {
    title: &'static str,
    width: u16,
    right: bool,
}

const fn left(title: &'static str, width: u16) -> Column {
    Column { title, width, right: false }
}

const fn right(title: &'static str, width: u16) -> Column {
    Column { title, width, right: true }
}

/// What fits is shown, from the first on; the first column takes what the others leave, as far as it is needed.
fn table(columns: &[Column], width: u16, body: Vec<(Vec<String>, Style)>) -> Table<'static> {
    let mut taken = 0;
    let fits = |column: &&Column| {
        taken += column.width + u16::from(taken > 0);
        taken <= width
    };
    let columns: Vec<&Column> = columns.iter().take_while(fits).collect();
    let spaced: u16 = columns.iter().map(|column| column.width + 1).sum();
    let first = columns.first().map_or(width, |column| column.width);
    let longest =
        body.iter().filter_map(|(cells, _)| cells.first()).map(|cell| cell.len()).max().unwrap_or(0);
    let first = rows(longest).clamp(first, first + (width + 1).saturating_sub(spaced));
    let widths = columns.iter().enumerate().map(|(at, column)| if at == 0 { first } else { column.width });
    let widths: Vec<_> = widths.map(Constraint::Length).collect();
    let cell = |column: &Column, text: &str| {
        let line = Line::from(plain(text));
        if column.right { line.right_aligned() } else { line }
    };
    let header = Cells::new(columns.iter().map(|column| cell(column, column.title))).style(TITLE);
    let body = body.into_iter().map(|(cells, style)| {
        Cells::new(columns.iter().zip(&cells).map(|(column, text)| cell(column, text))).style(style)
    });
    Table::new(body.collect::<Vec<_>>(), widths).header(header).column_spacing(1)
}

/// Each with its place in [`COLUMNS`], the most telling first.
const OF_MEMBER: [(usize, Column); 12] = [
    (0, left(COLUMNS[0], 12)),
    (1, left(COLUMNS[1], 8)),
    (2, left(COLUMNS[2], 10)),
    (4, right(COLUMNS[4], 7)),
    (5, right(COLUMNS[5], 8)),
    (6, right(COLUMNS[6], 8)),
    (7, right(COLUMNS[7], 9)),
    (8, right(COLUMNS[8], 6)),
    (11, left(COLUMNS[11], 10)),
    (3, right(COLUMNS[3], 6)),
    (9, right(COLUMNS[9], 9)),
    (10, right(COLUMNS[10], 9)),
];

/// The tasks, those in trouble first, as far as there is room.
struct Members<'a>(&'a View);

impl Widget for Members<'_> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let Self(view) = self;
        if area.height < 2 || view.round.is_none() {
            return;
        }
        let row = |seen: &Seen| {
            let cells = seen.cells(view.now);
            (OF_MEMBER.iter().map(|(at, _)| cells[*at].clone()).collect(), style_of_member(seen.state))
        };
        let room = usize::from(area.height) - 1;
        let mut seen: Vec<_> = view.members().iter().collect();
        seen.sort_by_key(|seen| matches!(seen.state, MemberState::Active));
        let body = seen.into_iter().take(room).map(row).collect();
        table(&OF_MEMBER.map(|(_, column)| column), area.width, body).render(area, buffer);
    }
}

fn style_of_member(state: MemberState) -> Style {
    match state {
        MemberState::Active => Style::new(),
        MemberState::Joining | MemberState::Leaving => DIM,
        MemberState::Late | MemberState::Skewed | MemberState::Silent => POOR,
    }
}

const OF_CLIENT: [Column; 8] = [
    left("CLIENT", 12),
    left("STATE", 12),
    left("EXPIRES", 12),
    left("NEXT", 12),
    right("FAILS", 5),
    left("ERROR", 20),
    left("OWNER", 26),
    left("PROVIDER", 14),
];

fn clients(view: &View, area: Rect, buffer: &mut Buffer, pointed: bool) {
    if area.height == 0 || view.round.is_none() {
        return;
    }
    let shown = view.clients();
    let room = usize::from(area.height.saturating_sub(2));
    // The cursor in the middle, where there is more than fits.
    let most = shown.len().saturating_sub(room);
    let from = if pointed { view.cursor().saturating_sub(room / 2).min(most) } else { 0 };
    let to = shown.len().min(from + room);
    let [above, below] = area.layout(&Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]));
    Paragraph::new(caption(view, from, to, shown.len())).render(above, buffer);
    let body = shown[from..to].iter().enumerate().map(|(at, row)| {
        let style = style_of_client(row);
        let under = pointed && from + at == view.cursor();
        (cells_of(row, view.now), if under { style.add_modifier(Modifier::REVERSED) } else { style })
    });
    table(&OF_CLIENT, area.width, body.collect()).render(below, buffer);
}

fn caption(view: &View, from: usize, to: usize, of: usize) -> Line<'static> {
    let mut told = format!("by {}", view.order());
    if of > to - from {
        told += &format!(", {}-{to} of {of}", from + 1);
    }
    if view.troubled {
        told += ", in trouble only";
    }
    if !view.filter.is_empty() {
        told += &format!(", with \"{}\"", view.filter);
    }
    if of == 0 {
        told += ": none";
    }
    Line::from(vec![styled("clients ", BOLD), plain(told)])
}

fn cells_of(row: &Row, now: Timestamp) -> Vec<String> {
    let status = &row.status;
    let time = |at: Option<Timestamp>| at.map_or_else(|| "-".into(), |at| relative(at, now));
    let word = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    vec![
        row.id.to_string(),
        status.word(row.paused),
        time(status.expires_at),
        time(status.next_refresh),
        status.failures.to_string(),
        word(&status.error),
        word(&status.owner),
        row.provider.clone(),
    ]
}

fn style_of_client(row: &Row) -> Style {
    match row.trouble {
        Some(Trouble::Expired | Trouble::AboutToExpire | Trouble::Dead | Trouble::Held) => BAD,
        Some(_) => POOR,
        None if row.status.failures > 0 => POOR,
        None if !row.status.condition.is_kept_fresh() => DIM,
        None => Style::new(),
    }
}

fn foot(view: &View) -> Line<'static> {
    if view.typing {
        return Line::from(vec![
            styled(format!("/{}", view.filter), BOLD),
            styled("_  Enter keeps it, Esc drops it", DIM),
        ]);
    }
    let keys = match view.popup {
        Some(_) => "q close  arrows scroll  r read",
        None => "q quit  ? keys  enter why  v findings  s sort  / filter  f troubled  r read  +-",
    };
    Line::from(styled(keys, DIM))
}

#[cfg(test)]
mod tests {
    use crossterm::event::KeyCode;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::view::tests::{press, round, survey, view, write};
    use super::*;
    use crate::cli::muster::tests::{limits, member};
    use crate::cli::survey::tests::row;

    /// What a terminal of this size shows.
    fn shown(view: &mut View, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal of the test's");
        let drawn = terminal.draw(|frame| {
            fit(view, frame.area());
            frame.render_widget(Screen(view), frame.area());
        });
        lines_of(drawn.expect("it takes everything").buffer)
    }

    #[track_caller]
    fn expect(mut view: View, (width, height): (u16, u16), frame: &str) {
        let shown = shown(&mut view, width, height);
        assert_eq!(shown.join("\n").trim_end(), frame.trim(), "\n{}\n", shown.join("\n"));
    }

    #[test]
    fn a_wide_terminal_shows_everything() {
        expect(view(), (130, 20), WIDE);
    }

    #[test]
    fn a_usual_terminal_shows_what_matters() {
        let mut troubled = view();
        write(&mut troubled, "f");
        expect(troubled, (80, 24), USUAL);
    }

    #[test]
    fn a_tiny_terminal_shows_the_verdict_and_the_most_urgent() {
        expect(view(), (40, 10), TINY);
    }

    const WIDE: &str = "
perennial top  tokens  read 2s ago, every 5s, 15.5 read units
BROKEN  expired (v: 1 more): clients with an expired token (1): gone
tasks    1 at work of 2, 1 silent, 0 of 16 shards nobody's
clients  4: 2 idle, 1 paused, 1 expired
times    next refresh 5m 2s ago, least remaining lifetime expired 2s ago

MEMBER       STATE    BEAT       CLIENTS      LAG     SKEW REFRESHED FAILED VERSION    SHARDS CONFLICTS TAKEOVERS
task-2       silent   1m 2s ago        0     0 ms     0 ms         0      0 1               0         0         0
task-1       active   5s ago           3    12 ms     0 ms        41      2 1              16         0         0

clients by urgency
CLIENT       STATE        EXPIRES      NEXT         FAILS ERROR                OWNER                      PROVIDER
gone         expired      2s ago       5m 2s ago        7 http_503             task-1#9                   acme
failing      idle         in 8m 18s    in 3m 18s        1 timeout              -                          acme
fine         idle         in 49m 58s   in 44m 58s       0 -                    -                          acme
paused       paused       -            -                0 -                    -                          acme



q quit  ? keys  enter why  v findings  s sort  / filter  f troubled  r read  +-";

    const USUAL: &str = "
perennial top  tokens  read 2s ago, every 5s, 15.5 read units
BROKEN  expired (v: 1 more): clients with an expired token (1): gone
tasks    1 at work of 2, 1 silent, 0 of 16 shards nobody's
clients  4: 2 idle, 1 paused, 1 expired
times    next refresh 5m 2s ago, least remaining lifetime expired 2s ago

MEMBER       STATE    BEAT       CLIENTS      LAG     SKEW REFRESHED FAILED
task-2       silent   1m 2s ago        0     0 ms     0 ms         0      0
task-1       active   5s ago           3    12 ms     0 ms        41      2

clients by urgency, in trouble only
CLIENT       STATE        EXPIRES      NEXT         FAILS ERROR
gone         expired      2s ago       5m 2s ago        7 http_503
failing      idle         in 8m 18s    in 3m 18s        1 timeout









q quit  ? keys  enter why  v findings  s sort  / filter  f troubled  r read  +-";

    const TINY: &str = "
perennial top  tokens  read 2s ago, ever
BROKEN  expired (v: 1 more): clients wit
tasks    1 at work of 2, 1 silent, 0 of
clients  4: 2 idle, 1 paused, 1 expired
times    next refresh 5m 2s ago, least r
clients by urgency, 1-2 of 4
CLIENT       STATE        EXPIRES
gone         expired      2s ago
failing      idle         in 8m 18s
q quit  ? keys  enter why  v findings  s";

    /// What may be open when the terminal changes its size.
    fn states() -> Vec<View> {
        let key = |keys: &str| {
            let mut view = view();
            write(&mut view, keys);
            view
        };
        let mut story = view();
        if let Some(super::super::view::Wish::Story(id)) = press(&mut story, KeyCode::Enter) {
            story.told(&id, Ok(format!("gone: expired\n  Now     {}", "a long sentence ".repeat(40))));
        }
        let mut ill = view();
        ill.heard(Err("the store gave no answer".into()));
        let empty = View::new("tokens".into(), view().every);
        vec![view(), key("/fi"), key("/none"), key("f"), key("v"), key("?"), story, ill, empty]
    }

    #[test]
    fn no_size_makes_it_panic() {
        for mut view in states() {
            for width in [0, 1, 2, 3, 11, 12, 13, 40, 80, 300] {
                for height in [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 20, 24, 90] {
                    shown(&mut view, width, height);
                    press(&mut view, KeyCode::End);
                }
            }
            assert!(!text(&view, 20, 50).is_empty());
        }
    }

    #[test]
    fn the_cursor_is_seen_however_far_down_it_is() {
        let rows = (0..100).map(|at| row(&format!("client-{at:02}"), Condition::Idle, None)).collect();
        let mut long = view();
        let mut round = round();
        round.report.survey = Some(survey(rows));
        long.heard(Ok(round));
        for (key, first, last) in
            [(KeyCode::Home, "client-00", "1-"), (KeyCode::End, "client-99", "-100 of 100")]
        {
            press(&mut long, key);
            let shown = shown(&mut long, 80, 24).join("\n");
            assert!(shown.contains(first) && shown.contains(last), "{shown}");
        }
        assert_eq!(text(&long, 80, 50).matches("client-").count(), 50);
        assert!(text(&long, 80, 50).contains("1-50 of 100"));
    }

    #[test]
    fn a_problem_is_told_beside_what_was_known() {
        let mut view = view();
        view.heard(Err("the store gave no answer".into()));
        view.now = view.now.plus(std::time::Duration::from_secs(70));
        let shown = shown(&mut view, 80, 24).join("\n");
        assert!(shown.contains("NO ANSWER for 1m 10s: the store gave no answer"), "{shown}");
        assert!(shown.contains("read 1m 12s ago") && shown.contains("failing"), "{shown}");
    }

    #[test]
    fn a_partial_view_says_so() {
        let mut partial = view();
        let mut round = round();
        round.coverage.whole = false;
        partial.heard(Ok(round.clone()));
        assert!(text(&partial, 80, 9).contains("partial: 4 clients read so far"));
        (round.coverage.whole, round.coverage.rounds) = (true, 3);
        partial.heard(Ok(round));
        assert!(text(&partial, 80, 9).contains("all clients take 3 rounds; rows may be 15s old"));
    }

    /// Whether a terminal would obey it, or show nothing of it.
    fn is_harmful(char: char) -> bool {
        char.is_control()
            || matches!(char, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    }

    #[test]
    fn what_other_tools_wrote_does_not_reach_the_terminal_raw() {
        let evil =
            "\u{1b}[2J\u{1b}]0;owned\u{7}\r\n\t\u{9b}31m\u{202e}gro\u{200b}\u{feff}e\u{301}漢字👩‍👩‍👧\u{0}";
        let mut hostile = view();
        let mut round = round();
        let mut row = row("plain", Condition::Idle, None);
        row.provider = evil.into();
        (row.status.error, row.status.owner) = (Some(evil.into()), Some(evil.into()));
        let mut survey = survey(vec![row]);
        survey.malformed.add(evil);
        let member = crate::record::Member { version: evil.into(), ..member(evil, hostile.now) };
        let mut muster = Muster::of(vec![member], 16, limits(), hostile.now);
        muster.malformed.push(evil.into());
        round.report.verdict = crate::cli::judge::judge(Some(&muster), Some(&survey));
        (round.report.muster, round.report.survey) = (Some(muster), Some(survey));
        hostile.table = evil.into();
        hostile.heard(Ok(round));
        hostile.heard(Err(evil.into()));
        let mut frames = Vec::new();
        for keys in ["", "v", "q"] {
            write(&mut hostile, keys);
            frames.extend(
                [(200, 40), (80, 24), (41, 11)].map(|(width, height)| shown(&mut hostile, width, height)),
            );
        }
        let Some(super::super::view::Wish::Story(id)) = press(&mut hostile, KeyCode::Enter) else {
            panic!("no story")
        };
        hostile.told(&id, Ok(evil.repeat(9)));
        frames.push(shown(&mut hostile, 80, 24));
        frames.push(text(&hostile, 300, 50).lines().map(str::to_owned).collect());
        for frame in &frames {
            let harmful = frame.iter().flat_map(|line| line.chars()).find(|char| is_harmful(*char));
            assert_eq!(harmful, None, "{frame:#?}");
        }
        assert!(frames[0].join("").contains(r"\u{1b}[2J"), "it is spelt out: {:#?}", frames[0]);
    }
}
