//! What lies over the tables when it is asked for: the keys, every finding, a client's story.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::Line;
use ratatui::widgets::{Block, Clear, Paragraph, Widget as _};

use super::super::judge::Finding;
use super::draw::BOLD;
use super::text::{clean, styled, wrapped};
use super::view::{Popup, View};

const KEYS: &str = "\
q Esc Ctrl-C    quit
arrows, PgUp PgDn, Home End
                move
Enter           why the client is as it is, and what you can do
s               sort: urgency, expiry, next refresh, failures, id
/               only ids that contain what is typed; Enter keeps it, Esc drops it
f p             only clients in trouble
v               every finding, with its remedy and its section of the runbook
r               read now
+ -             read more seldom, more often
?               these keys";

/// How far in the sentences of a story stand, and what belongs to a finding.
const STORY: usize = 10;
const FINDING: usize = 4;

/// What is inside the frame of a popup: all but the first line and the last, which hold title and keys.
pub(super) fn inner(area: Rect) -> Rect {
    Block::bordered().inner(covered(area))
}

fn covered(area: Rect) -> Rect {
    Rect { y: area.y + 1.min(area.height), height: area.height.saturating_sub(2), ..area }
}

pub(super) fn draw(view: &View, area: Rect, buffer: &mut Buffer) {
    let title = match &view.popup {
        None => return,
        Some(Popup::Keys) => "keys".to_owned(),
        Some(Popup::Findings) => "findings".into(),
        Some(Popup::Story { id, .. }) => format!("why {id}"),
    };
    let covered = covered(area);
    Clear.render(covered, buffer);
    Block::bordered().title(styled(format!(" {title} "), BOLD)).render(covered, buffer);
    let inside = inner(area);
    let below = lines(view, usize::from(inside.width)).into_iter().skip(view.scroll);
    let shown: Vec<_> = below.take(usize::from(inside.height)).collect();
    Paragraph::new(shown).render(inside, buffer);
}

pub(super) fn lines(view: &View, width: usize) -> Vec<Line<'static>> {
    let told = match &view.popup {
        None => return Vec::new(),
        Some(Popup::Keys) => KEYS.to_owned(),
        Some(Popup::Findings) => findings(view),
        Some(Popup::Story { told: None, .. }) => "reading".into(),
        Some(Popup::Story { told: Some(Ok(story)), .. }) => story.clone(),
        Some(Popup::Story { told: Some(Err(problem)), .. }) => format!("NO ANSWER: {problem}"),
    };
    let hang = if view.reading_of().is_some() { STORY } else { FINDING };
    told.lines().flat_map(|line| wrapped(&clean(line), width, hang)).map(Line::from).collect()
}

fn findings(view: &View) -> String {
    let Some(round) = &view.round else { return "nothing read yet".into() };
    let told = |finding: &Finding| {
        let Finding { level, code, message, remedy, runbook, .. } = finding;
        let runbook = runbook.as_ref().map(|place| format!("\n    see {place}")).unwrap_or_default();
        format!("{}  {code}: {message}\n    do: {remedy}{runbook}\n", level.as_str())
    };
    match round.report.verdict.findings.as_slice() {
        [] => "all is well".into(),
        findings => findings.iter().map(told).collect::<Vec<_>>().join("\n"),
    }
}
