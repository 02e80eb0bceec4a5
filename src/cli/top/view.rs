//! What is known, and what the keys have made of it. Pure: a key changes the view, and may wish for something that only
//! [`super::screen`] can do.

use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::list::Sort;
use super::super::muster::Seen;
use super::super::survey::Row;
use super::feed::Round;
use crate::client::ClientId;
use crate::time::Timestamp;

/// What `+` and `-` step through, in seconds.
const PACES: [u64; 8] = [1, 2, 5, 10, 20, 30, 60, 300];

/// By what clients are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Urgency,
    By(Sort),
}

const ORDERS: [(Order, &str); 5] = [
    (Order::Urgency, "urgency"),
    (Order::By(Sort::Expiry), "expiry"),
    (Order::By(Sort::NextRefresh), "next refresh"),
    (Order::By(Sort::Failures), "failures"),
    (Order::By(Sort::Id), "id"),
];

/// What a key asks for beside a change of the view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Quit,
    /// Read at once.
    Read,
    /// Tell of this client.
    Story(ClientId),
    /// The interval is another one.
    Pace,
}

/// What lies over the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Popup {
    Keys,
    Findings,
    Story { id: ClientId, told: Option<Result<String, String>> },
}

/// Why there is nothing new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) text: String,
    pub(super) since: Timestamp,
}

#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) table: String,
    pub(super) now: Timestamp,
    pub(super) every: Duration,
    /// The last one that succeeded.
    pub(super) round: Option<Round>,
    /// Why the rounds since then did not.
    pub(super) problem: Option<Problem>,
    /// Whether a round is under way.
    pub(super) reading: bool,
    pub(super) filter: String,
    /// Whether keys go into the filter.
    pub(super) typing: bool,
    pub(super) troubled: bool,
    pub(super) popup: Option<Popup>,
    /// How far down the popup is read.
    pub(super) scroll: usize,
    order: usize,
    /// The client that the cursor is on; none before it is moved.
    selected: Option<ClientId>,
    cursor: usize,
    /// Rows of clients that fit on the screen.
    page: usize,
}

impl View {
    pub(super) fn new(table: String, every: Duration) -> Self {
        Self {
            table,
            now: Timestamp::EPOCH,
            every,
            round: None,
            problem: None,
            reading: false,
            filter: String::new(),
            typing: false,
            troubled: false,
            popup: None,
            scroll: 0,
            order: 0,
            selected: None,
            cursor: 0,
            page: 1,
        }
    }

    /// Takes in what a round came to. What was known stays where it came to nothing.
    pub(super) fn heard(&mut self, round: Result<Round, String>) {
        self.reading = false;
        match round {
            Ok(round) => {
                self.round = Some(round);
                self.problem = None;
                self.follow();
            }
            Err(text) => {
                let since = self.problem.take().map_or(self.now, |problem| problem.since);
                self.problem = Some(Problem { text, since });
            }
        }
    }

    /// Takes in a client's story, if it is still asked for.
    pub(super) fn told(&mut self, of: &ClientId, story: Result<String, String>) {
        if let Some(Popup::Story { id, told }) = &mut self.popup
            && id == of
        {
            *told = Some(story);
        }
    }

    /// The client whose story is open.
    pub(super) fn reading_of(&self) -> Option<&ClientId> {
        match &self.popup {
            Some(Popup::Story { id, .. }) => Some(id),
            _ => None,
        }
    }

    /// A screen that has room for so many rows of clients, and for so many of these lines of the popup.
    pub(super) fn fit(&mut self, page: usize, popup_lines: usize, popup_room: usize) {
        self.page = page.max(1);
        self.scroll = self.scroll.min(popup_lines.saturating_sub(popup_room));
    }

    pub(super) fn order(&self) -> &'static str {
        ORDERS[self.order].1
    }

    pub(super) fn members(&self) -> &[Seen] {
        let muster = self.round.as_ref().and_then(|round| round.report.muster.as_ref());
        muster.map_or(&[], |muster| &muster.seen)
    }

    /// The clients that are to be shown, in their order.
    pub(super) fn clients(&self) -> Vec<&Row> {
        let survey = self.round.as_ref().and_then(|round| round.report.survey.as_ref());
        let filter = self.filter.to_lowercase();
        let shown = |row: &&Row| {
            (!self.troubled || row.trouble.is_some() || row.status.failures > 0)
                && row.id.as_str().to_lowercase().contains(&filter)
        };
        let mut rows: Vec<&Row> = survey.iter().flat_map(|survey| &survey.rows).filter(shown).collect();
        if let (Order::By(sort), _) = ORDERS[self.order] {
            rows.sort_by_cached_key(|row| sort.key(&row.id, &row.status));
        }
        rows
    }

    /// Which of the shown clients the cursor is on.
    pub(super) fn cursor(&self) -> usize {
        self.cursor
    }

    /// The cursor stays with its client, wherever that goes.
    fn follow(&mut self) {
        let rows = self.clients();
        let place = self.selected.as_ref().and_then(|id| rows.iter().position(|row| row.id == *id));
        let cursor = place.unwrap_or_else(|| self.cursor.min(rows.len().saturating_sub(1)));
        self.cursor = cursor;
    }

    fn go(&mut self, to: usize) {
        let rows = self.clients();
        let cursor = to.min(rows.len().saturating_sub(1));
        let selected = rows.get(cursor).map(|row| row.id.clone());
        (self.cursor, self.selected) = (cursor, selected);
    }

    /// Another choice of clients, from its beginning.
    fn choose(&mut self) {
        (self.cursor, self.selected) = (0, None);
    }

    /// A key was pressed.
    pub(super) fn key(&mut self, key: KeyEvent) -> Option<Wish> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return (key.code == KeyCode::Char('c')).then_some(Wish::Quit);
        }
        if self.typing {
            self.type_in(key.code);
            return None;
        }
        match key.code {
            KeyCode::Char('r') => return Some(Wish::Read),
            KeyCode::Char('+' | '=') => return Some(self.pace(true)),
            KeyCode::Char('-') => return Some(self.pace(false)),
            _ => {}
        }
        if self.popup.is_some() { self.key_of_popup(key.code) } else { self.key_of_tables(key.code) }
    }

    fn key_of_tables(&mut self, code: KeyCode) -> Option<Wish> {
        match code {
            KeyCode::Char('q') | KeyCode::Esc => return Some(Wish::Quit),
            KeyCode::Enter => return self.open(),
            KeyCode::Char('v') => self.popup = Some(Popup::Findings),
            KeyCode::Char('?' | 'h') => self.popup = Some(Popup::Keys),
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('f' | 'p') => {
                self.troubled = !self.troubled;
                self.choose();
            }
            KeyCode::Char('s') => {
                self.order = (self.order + 1) % ORDERS.len();
                self.choose();
            }
            other => {
                if let Some(to) = moved(other, self.cursor, self.page) {
                    self.go(to);
                }
            }
        }
        self.scroll = 0;
        None
    }

    fn key_of_popup(&mut self, code: KeyCode) -> Option<Wish> {
        match code {
            KeyCode::Char('q') | KeyCode::Esc | KeyCode::Enter => self.popup = None,
            other => self.scroll = moved(other, self.scroll, self.page).unwrap_or(self.scroll),
        }
        None
    }

    fn open(&mut self) -> Option<Wish> {
        let id = self.clients().get(self.cursor)?.id.clone();
        self.popup = Some(Popup::Story { id: id.clone(), told: None });
        self.scroll = 0;
        Some(Wish::Story(id))
    }

    fn type_in(&mut self, code: KeyCode) {
        match code {
            KeyCode::Char(char) if self.filter.len() < ClientId::MAX_LEN => self.filter.push(char),
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            _ => {}
        }
        self.choose();
    }

    fn pace(&mut self, slower: bool) -> Wish {
        let secs = self.every.as_secs();
        let next = if slower {
            PACES.into_iter().find(|pace| *pace > secs)
        } else {
            PACES.into_iter().rev().find(|pace| *pace < secs)
        };
        self.every = next.map_or(self.every, Duration::from_secs);
        Wish::Pace
    }
}

/// Where a key moves to from here.
fn moved(code: KeyCode, from: usize, page: usize) -> Option<usize> {
    match code {
        KeyCode::Up | KeyCode::Char('k') => Some(from.saturating_sub(1)),
        KeyCode::Down | KeyCode::Char('j') => Some(from.saturating_add(1)),
        KeyCode::PageUp => Some(from.saturating_sub(page)),
        KeyCode::PageDown => Some(from.saturating_add(page)),
        KeyCode::Home => Some(0),
        KeyCode::End => Some(usize::MAX),
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::super::judge::judge;
    use super::super::super::muster::Muster;
    use super::super::super::muster::tests::{limits, member};
    use super::super::super::status::Report;
    use super::super::super::survey::tests::row;
    use super::super::super::survey::{Sighting, Survey};
    use super::super::super::trouble::Trouble;
    use super::super::sweep::Coverage;
    use super::*;
    use crate::plan::condition::Condition;
    use crate::record::{Member, Tally};

    pub(in super::super) const NOW: Timestamp = Timestamp::from_secs(1_000_000);

    fn ahead(secs: u64) -> Option<Timestamp> {
        Some(NOW.plus(Duration::from_secs(secs)))
    }

    pub(in super::super) fn survey(rows: Vec<Row>) -> Survey {
        let mut survey = Survey::default();
        for row in rows {
            survey.add(&row.id.clone(), Sighting::Client(Box::new(row)));
        }
        survey.keep_first(usize::MAX);
        survey
    }

    /// Two tasks and four clients: one expired, one failing, one fine, one paused.
    pub(in super::super) fn round() -> Round {
        let tally = Tally { clients: 3, refreshed: 41, failed: 2, ..Tally::default() };
        let first = Member { tally, lag_ms: 12, ..member("task-1", NOW.minus(Duration::from_secs(3))) };
        let silent = member("task-2", NOW.minus(Duration::from_secs(60)));
        let mut gone = Row { trouble: Some(Trouble::Expired), ..row("gone", Condition::Expired, ahead(0)) };
        gone.status.error = Some("http_503".into());
        (gone.status.failures, gone.status.owner) = (7, Some("task-1#9".into()));
        let mut failing = row("failing", Condition::Idle, ahead(500));
        (failing.status.failures, failing.status.error) = (1, Some("timeout".into()));
        let paused = Row { paused: true, ..row("paused", Condition::Paused, None) };
        let survey = survey(vec![row("fine", Condition::Idle, ahead(3000)), paused, failing, gone]);
        let muster = Muster::of(vec![first, silent], 16, limits(), NOW);
        let report = Report {
            verdict: judge(Some(&muster), Some(&survey)),
            muster: Some(muster),
            survey: Some(survey),
            now: NOW,
            read_units: 15.5,
        };
        Round { report, coverage: Coverage { whole: true, rounds: 1 } }
    }

    pub(in super::super) fn view() -> View {
        let mut view = View::new("tokens".into(), Duration::from_secs(5));
        view.now = NOW.plus(Duration::from_secs(2));
        view.heard(Ok(round()));
        view.fit(10, 0, 0);
        view
    }

    pub(in super::super) fn press(view: &mut View, code: KeyCode) -> Option<Wish> {
        view.key(KeyEvent::from(code))
    }

    pub(in super::super) fn write(view: &mut View, text: &str) {
        for char in text.chars() {
            press(view, KeyCode::Char(char));
        }
    }

    fn ids(view: &View) -> Vec<&str> {
        view.clients().iter().map(|row| row.id.as_str()).collect()
    }

    #[test]
    fn the_most_urgent_come_first_until_another_order_is_asked_for() {
        let mut view = view();
        assert_eq!((view.order(), ids(&view)), ("urgency", vec!["gone", "failing", "fine", "paused"]));
        for (order, first) in [
            ("expiry", "paused"),
            ("next refresh", "gone"),
            ("failures", "gone"),
            ("id", "failing"),
            ("urgency", "gone"),
        ] {
            press(&mut view, KeyCode::Char('s'));
            assert_eq!((view.order(), ids(&view)[0]), (order, first));
        }
    }

    #[test]
    fn a_filter_is_typed_kept_and_dropped() {
        let mut view = view();
        write(&mut view, "/FI");
        assert_eq!((ids(&view), view.typing), (vec!["fine"], true));
        write(&mut view, "q");
        assert!(ids(&view).is_empty(), "keys are text now");
        press(&mut view, KeyCode::Backspace);
        press(&mut view, KeyCode::Enter);
        assert_eq!((ids(&view), view.typing), (vec!["fine"], false));
        write(&mut view, "/");
        assert_eq!(press(&mut view, KeyCode::Esc), None);
        assert_eq!(ids(&view).len(), 4);
    }

    #[test]
    fn only_those_in_trouble() {
        let mut view = view();
        for (key, shown) in [('f', 2), ('p', 4)] {
            press(&mut view, KeyCode::Char(key));
            assert_eq!(ids(&view).len(), shown);
        }
    }

    #[test]
    fn the_cursor_stays_with_its_client_and_within_the_list() {
        let mut view = view();
        press(&mut view, KeyCode::Down);
        assert_eq!(ids(&view)[view.cursor()], "failing");
        let mut later = round();
        let rows = &mut later.report.survey.as_mut().expect("clients").rows;
        rows.rotate_left(1);
        view.heard(Ok(later.clone()));
        assert_eq!((view.cursor(), ids(&view)[view.cursor()]), (0, "failing"));
        press(&mut view, KeyCode::End);
        assert_eq!(view.cursor(), 3);
        press(&mut view, KeyCode::PageDown);
        assert_eq!(view.cursor(), 3);
        later.report.survey.as_mut().expect("clients").rows.truncate(2);
        view.heard(Ok(later));
        assert_eq!(view.cursor(), 1, "its client is gone");
        press(&mut view, KeyCode::Home);
        press(&mut view, KeyCode::Up);
        assert_eq!(view.cursor(), 0);
    }

    #[test]
    fn enter_asks_for_a_story_which_is_shown_while_it_is_asked_for() {
        let mut view = view();
        let Some(Wish::Story(id)) = press(&mut view, KeyCode::Enter) else { panic!("no story") };
        assert_eq!((id.as_str(), view.reading_of()), ("gone", Some(&id)));
        view.told(&ClientId::new("other").expect("a valid id"), Ok("of another".into()));
        assert!(matches!(&view.popup, Some(Popup::Story { told: None, .. })));
        view.told(&id, Ok("the story".into()));
        assert!(matches!(&view.popup, Some(Popup::Story { told: Some(Ok(_)), .. })));
        assert_eq!(press(&mut view, KeyCode::Char('q')), None, "it closes what is open");
        view.told(&id, Ok("too late".into()));
        assert_eq!((view.popup.clone(), press(&mut view, KeyCode::Char('q'))), (None, Some(Wish::Quit)));
    }

    #[test]
    fn control_c_ends_it_wherever_one_is() {
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        for keys in ["", "/", "v", "?"] {
            let mut view = view();
            write(&mut view, keys);
            assert_eq!(view.key(control_c), Some(Wish::Quit), "{keys}");
        }
    }

    #[test]
    fn the_interval_has_a_least_and_a_most() {
        let mut view = view();
        for _ in 0..9 {
            press(&mut view, KeyCode::Char('-'));
        }
        assert_eq!(view.every, Duration::from_secs(1));
        for _ in 0..9 {
            assert_eq!(press(&mut view, KeyCode::Char('+')), Some(Wish::Pace));
        }
        assert_eq!(view.every, Duration::from_secs(300));
    }

    #[test]
    fn a_problem_is_told_since_its_first_and_what_was_known_stays() {
        let mut view = view();
        view.heard(Err("no answer".into()));
        let since = view.now;
        view.now = since.plus(Duration::from_secs(9));
        view.heard(Err("no answer at all".into()));
        assert_eq!(view.problem, Some(Problem { text: "no answer at all".into(), since }));
        assert_eq!(ids(&view).len(), 4);
        view.heard(Ok(round()));
        assert_eq!(view.problem, None);
    }
}
