//! Is all well? What was seen of members and clients, judged: fine, degraded or broken, with a finding for each reason.
//!
//! Pure. *Broken* is what costs somebody's customers their connections now, or what cannot be looked at; *degraded*
//! what will, or what asks for a person without haste.

use std::cmp::Reverse;
use std::time::Duration;

use serde::Serialize;

use super::muster::{MemberState, Muster, Seen};
use super::survey::{Named, Survey};
use super::trouble::Trouble;
use crate::time::Timestamp;

/// One that fell silent longer ago is a matter of the past: its shards are with others, and its item goes by itself.
const NEWS: Duration = Duration::from_secs(600);

/// How it is, from good to bad.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Level {
    #[default]
    Fine,
    Degraded,
    Broken,
}

impl Level {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Degraded => "degraded",
            Self::Broken => "broken",
        }
    }

    /// The exit code that says so.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Fine => 0,
            Self::Degraded => 1,
            Self::Broken => 2,
        }
    }
}

/// A reason why it is not fine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) level: Level,
    /// In a word, for programs.
    pub(super) code: &'static str,
    /// In a sentence, for people.
    pub(super) message: String,
    /// How many clients or members it is about; none where it is about neither.
    pub(super) count: usize,
    /// The first few of them.
    pub(super) names: Vec<String>,
    /// What to do first.
    pub(super) remedy: String,
    /// Where the rest is told.
    pub(super) runbook: Option<String>,
}

/// What was concluded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Verdict {
    /// The worst of its findings.
    pub(super) level: Level,
    /// Broken things first.
    pub(super) findings: Vec<Finding>,
}

/// Judges what was looked at; what was not is not held against anybody.
pub(super) fn judge(muster: Option<&Muster>, survey: Option<&Survey>) -> Verdict {
    let mut findings = Vec::new();
    if let Some(muster) = muster {
        findings.extend(of_members(muster));
    }
    if let Some(survey) = survey {
        findings.extend(survey.troubles.iter().map(|(trouble, clients)| of_clients(*trouble, clients)));
        findings.extend(of_malformed(&survey.malformed));
    }
    Verdict::of(findings)
}

impl Verdict {
    fn of(mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| Reverse(finding.level));
        Self { level: findings.iter().map(|finding| finding.level).max().unwrap_or_default(), findings }
    }

    /// Where nothing can be told, since the table cannot be used.
    pub(super) fn unknown(problem: &str) -> Self {
        Self::of(vec![Finding {
            level: Level::Broken,
            code: "table",
            message: format!("the table cannot be used: {problem}"),
            count: 0,
            names: Vec::new(),
            remedy: "perennial table check".into(),
            runbook: None,
        }])
    }
}

fn runbook(anchor: &str) -> Option<String> {
    Some(format!("docs/runbook.md#{anchor}"))
}

fn of_members(muster: &Muster) -> Vec<Finding> {
    let mut findings = Vec::new();
    if muster.at_work() == 0 {
        findings.push(Finding {
            level: Level::Broken,
            code: "no-task",
            message: "no task is at work: nobody's token is refreshed".into(),
            count: 0,
            names: Vec::new(),
            remedy: "perennial fleet; then start one with `perennial run`, or see why none starts".into(),
            runbook: runbook("no-ready-task"),
        });
    }
    let now = muster.now;
    let remedy = "perennial fleet says since when; see why it ended";
    findings.extend(members(muster, "silent", "no-ready-task", remedy, |seen| is_news(seen, now)));
    let remedy = "look at its /status and its log, then restart it";
    findings.extend(members(muster, "late", "scheduler-lag", remedy, |seen| seen.state == MemberState::Late));
    findings.extend(members(muster, "skewed", "clock-skew", "repair its time service", Seen::is_off));
    if let Some(first) = muster.malformed.first() {
        findings.push(Finding {
            level: Level::Degraded,
            code: "malformed-member",
            message: format!("an item of a member cannot be understood: {first}"),
            count: muster.malformed.len(),
            names: Vec::new(),
            remedy: "find out what wrote it: a newer version, or another tool".into(),
            runbook: None,
        });
    }
    findings
}

fn is_news(seen: &Seen, now: Timestamp) -> bool {
    seen.state == MemberState::Silent && now.since(seen.member.at) < NEWS
}

fn members(
    muster: &Muster,
    code: &'static str,
    anchor: &str,
    remedy: &str,
    which: impl Fn(&Seen) -> bool,
) -> Option<Finding> {
    let mut named = Named::default();
    let mut concern = None;
    for seen in muster.seen.iter().filter(|seen| which(seen)) {
        named.add(seen.member.incarnation.as_str());
        concern = concern.or_else(|| seen.concern(muster.now));
    }
    let more = match named.count {
        0 => return None,
        1 => String::new(),
        count => format!("; {} more", count - 1),
    };
    Some(Finding {
        level: Level::Degraded,
        code,
        message: format!("{}{more}", concern.unwrap_or_default()),
        count: named.count,
        names: named.first,
        remedy: remedy.to_owned(),
        runbook: runbook(anchor),
    })
}

/// How to learn more of a client.
const WHY: &str = "perennial why ID";

/// What is told of a trouble: how bad it is, its code, what is the case, the remedy, and the runbook's section.
/// `ID` stands for the first client's.
fn told(trouble: Trouble) -> (Level, &'static str, &'static str, &'static str, &'static str) {
    use Level::{Broken, Degraded};
    match trouble {
        Trouble::Expired => (Broken, "expired", "clients with an expired token", WHY, "tokens-expired"),
        Trouble::AboutToExpire => (
            Degraded,
            "about-to-expire",
            "clients whose token ends within a minute and should have been replaced",
            WHY,
            "tokens-about-to-expire",
        ),
        Trouble::Dead => (
            Degraded,
            "dead",
            "clients with a dead grant, whose customers have to consent again",
            "perennial clients import-token ID --refresh-token-stdin",
            "dead-grants",
        ),
        Trouble::Held => (
            Degraded,
            "held",
            "clients that are held, since their refresh token may be spent: you decide",
            "perennial why ID; then perennial clients resolve ID",
            "in-doubt-holds",
        ),
        Trouble::InDoubt => (
            Degraded,
            "in-doubt",
            "clients in doubt for longer than a take-over takes",
            "perennial why ID; perennial fleet",
            "in-doubt-holds",
        ),
        Trouble::Failing => (
            Degraded,
            "failing",
            "clients that fail to be refreshed, with a token that is still good",
            WHY,
            "refresh-failures",
        ),
        Trouble::Pending => (
            Degraded,
            "pending",
            "clients that have waited for their first token for minutes",
            WHY,
            "refresh-failures",
        ),
        Trouble::Overdue => (
            Degraded,
            "overdue",
            "clients that are due for minutes, and that nobody refreshes",
            "perennial why ID; perennial fleet",
            "scheduler-lag",
        ),
        Trouble::NoProvider => (
            Degraded,
            "no-provider",
            "clients of a provider that is not in this configuration",
            WHY,
            "refresh-failures",
        ),
    }
}

fn of_clients(trouble: Trouble, clients: &Named) -> Finding {
    let (level, code, case, remedy, anchor) = told(trouble);
    let first = clients.first.first().map_or("ID", String::as_str);
    Finding {
        level,
        code,
        message: about(case, clients),
        count: clients.count,
        names: clients.first.clone(),
        remedy: remedy.replace("ID", first),
        runbook: runbook(anchor),
    }
}

fn of_malformed(clients: &Named) -> Option<Finding> {
    let first = clients.first.first()?;
    Some(Finding {
        level: Level::Degraded,
        code: "malformed",
        message: about("clients that cannot be understood, and that nobody refreshes", clients),
        count: clients.count,
        names: clients.first.clone(),
        remedy: format!("perennial why {first}"),
        runbook: None,
    })
}

fn about(case: &str, clients: &Named) -> String {
    let more = clients.count - clients.first.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{case} ({}): {}{more}", clients.count, clients.first.join(", "))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::muster::tests::{limits, member};
    use super::*;
    use crate::record::{Member, Phase};

    const NOW: Timestamp = Timestamp::from_secs(100_000);

    fn ago(secs: u64) -> Timestamp {
        NOW.minus(Duration::from_secs(secs))
    }

    fn fleet(members: Vec<Member>) -> Verdict {
        judge(Some(&Muster::of(members, 16, limits(), NOW)), None)
    }

    fn clients(trouble: Trouble, count: usize) -> Verdict {
        let mut named = Named::default();
        (0..count).for_each(|n| named.add(format!("c-{n}")));
        judge(None, Some(&Survey { troubles: BTreeMap::from([(trouble, named)]), ..Survey::default() }))
    }

    fn codes(verdict: &Verdict) -> Vec<&'static str> {
        verdict.findings.iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn a_fleet_at_work_and_clients_without_trouble_are_fine() {
        let muster = Muster::of(vec![member("a", NOW)], 16, limits(), NOW);
        let verdict = judge(Some(&muster), Some(&Survey::default()));
        assert_eq!((verdict.level, verdict.level.code()), (Level::Fine, 0));
        assert_eq!(verdict.findings, []);
        assert_eq!(judge(None, None), Verdict::default());
    }

    #[test]
    fn without_a_task_at_work_it_is_broken() {
        for members in [vec![], vec![Member { phase: Phase::Leaving, ..member("a", NOW) }]] {
            let verdict = fleet(members);
            assert_eq!((codes(&verdict), verdict.level.code()), (vec!["no-task"], 2));
            assert_eq!(verdict.findings[0].runbook.as_deref(), Some("docs/runbook.md#no-ready-task"));
        }
    }

    #[test]
    fn a_member_that_fell_silent_is_told_for_ten_minutes() {
        let verdict = fleet(vec![member("a", NOW), member("b", ago(31)), member("c", ago(599))]);
        assert_eq!((codes(&verdict), verdict.level.code()), (vec!["silent"], 1));
        let finding = &verdict.findings[0];
        assert_eq!((finding.count, finding.names.as_slice()), (2, &["b".to_owned(), "c".to_owned()][..]));
        assert!(finding.message.ends_with("has lost its shards; 1 more"), "{finding:?}");
        assert_eq!(fleet(vec![member("a", NOW), member("b", ago(600))]).level, Level::Fine);
    }

    #[test]
    fn late_and_skewed_members_are_told() {
        let late = Member { lag_ms: 120_001, ..member("b", NOW) };
        let off = Member { skew_ms: 6_000, at: NOW.plus(Duration::from_secs(6)), ..member("c", NOW) };
        let verdict = fleet(vec![member("a", NOW), late, off]);
        assert_eq!(codes(&verdict), ["late", "skewed"]);
        assert_eq!(verdict.level, Level::Degraded);
        assert!(verdict.findings[1].message.contains("6000 ms off"), "{verdict:?}");
        let mut muster = Muster::of(vec![member("a", NOW)], 16, limits(), NOW);
        muster.malformed.push("MEMBER/x: attribute `beat` is missing".into());
        assert_eq!(codes(&judge(Some(&muster), None)), ["malformed-member"]);
    }

    #[test]
    fn each_trouble_names_its_first_clients_and_its_section_of_the_runbook() {
        let all = [
            (Trouble::Expired, "expired", "tokens-expired", 2),
            (Trouble::AboutToExpire, "about-to-expire", "tokens-about-to-expire", 1),
            (Trouble::Dead, "dead", "dead-grants", 1),
            (Trouble::Held, "held", "in-doubt-holds", 1),
            (Trouble::InDoubt, "in-doubt", "in-doubt-holds", 1),
            (Trouble::Failing, "failing", "refresh-failures", 1),
            (Trouble::Pending, "pending", "refresh-failures", 1),
            (Trouble::Overdue, "overdue", "scheduler-lag", 1),
            (Trouble::NoProvider, "no-provider", "refresh-failures", 1),
        ];
        for (trouble, code, anchor, exit) in all {
            let verdict = clients(trouble, 7);
            assert_eq!((codes(&verdict), verdict.level.code()), (vec![code], exit));
            let finding = &verdict.findings[0];
            assert_eq!((finding.count, finding.names.len()), (7, 5));
            assert!(finding.message.ends_with(" (7): c-0, c-1, c-2, c-3, c-4 and 2 more"), "{finding:?}");
            assert!(finding.remedy.contains(" c-0"), "{finding:?}");
            assert_eq!(finding.runbook, Some(format!("docs/runbook.md#{anchor}")));
        }
        assert!(clients(Trouble::Dead, 1).findings[0].message.ends_with(" (1): c-0"));
    }

    #[test]
    fn what_is_broken_comes_first_and_decides() {
        let mut survey = Survey::default();
        survey.malformed.add("odd");
        survey.troubles.entry(Trouble::Dead).or_default().add("dead");
        survey.troubles.entry(Trouble::Expired).or_default().add("late");
        let verdict = judge(Some(&Muster::of(vec![], 16, limits(), NOW)), Some(&survey));
        assert_eq!(codes(&verdict), ["no-task", "expired", "dead", "malformed"]);
        assert_eq!(verdict.level, Level::Broken);
    }

    #[test]
    fn what_cannot_be_looked_at_is_broken() {
        let verdict = Verdict::unknown("no answer");
        assert_eq!((verdict.level.code(), codes(&verdict)), (2, vec!["table"]));
    }
}
