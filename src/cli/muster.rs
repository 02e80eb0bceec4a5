//! Who is at work, as one look at the members tells.
//!
//! Every clock is set right by the table's, as far as its owner knows how wrong it is: a laptop that is off by a
//! minute calls nobody silent for it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::App;
use super::standing::relative;
use crate::fleet::Rules;
use crate::plan::membership::View;
use crate::record::{Member, Phase, Tally, decode_member};
use crate::scheduler::SKEW_ALARM;
use crate::store::{DynamoVault, Roster as _, StoreError};
use crate::time::{Moment, Timestamp};

/// A member's state, as the others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum MemberState {
    Joining,
    Active,
    Leaving,
    /// It beats, and does not do its work.
    Late,
    /// It acquires nobody: its wall clock is too far off.
    Skewed,
    /// It does not beat.
    Silent,
}

impl MemberState {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Active => "active",
            Self::Leaving => "leaving",
            Self::Late => "late",
            Self::Skewed => "skewed",
            Self::Silent => "silent",
        }
    }
}

/// What a member must keep to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) rules: Rules,
    pub(super) max_skew: Duration,
}

/// A member that was seen.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) member: Member,
    pub(super) state: MemberState,
    /// The shards that are its own.
    pub(super) shards: BTreeSet<u32>,
    /// Whether shards are given to it.
    pub(super) at_work: bool,
}

/// All members that there are.
#[derive(Clone, Debug)]
pub(super) struct Muster {
    pub(super) seen: Vec<Seen>,
    /// Items that cannot be understood.
    pub(super) malformed: Vec<String>,
    /// Shards of the table.
    pub(super) shards: u32,
    pub(super) now: Timestamp,
}

impl Muster {
    /// Looks at the members. It costs one query, of some 20 members to a read unit.
    pub(super) async fn read(app: &App, store: &DynamoVault) -> Result<Self, StoreError> {
        let config = app.config();
        let limits = Limits { rules: config.fleet, max_skew: config.health.max_skew };
        let (mut members, mut malformed) = (Vec::new(), Vec::new());
        for (incarnation, item) in store.members().await? {
            match decode_member(&incarnation, &item) {
                Ok(member) => members.push(member),
                Err(problem) => malformed.push(problem.to_string()),
            }
        }
        Ok(Self { malformed, ..Self::of(members, config.store.shards, limits, app.table_time(store)) })
    }

    /// These members, at this time of the table's clock.
    pub(super) fn of(members: Vec<Member>, shards: u32, limits: Limits, now: Timestamp) -> Self {
        let set_right = |member: Member| Member { at: member.at.set_right(member.skew_ms), ..member };
        let members: Vec<_> = members.into_iter().map(set_right).collect();
        let alive = members.iter().filter(|member| !is_silent(member, &limits.rules, now));
        let mut view = View::new(limits.rules);
        view.observe(alive.cloned().collect(), Moment::default(), now);
        let workers: BTreeSet<String> = view.workers().into_iter().map(str::to_owned).collect();
        let seen = members.into_iter().map(|member| Seen {
            state: state(&member, &limits, now),
            shards: view.shards_of(&member.incarnation, shards),
            at_work: workers.contains(&member.incarnation),
            member,
        });
        Self { seen: seen.collect(), malformed: Vec::new(), shards, now }
    }

    /// How many stand so.
    pub(super) fn count(&self, state: MemberState) -> usize {
        self.seen.iter().filter(|seen| seen.state == state).count()
    }

    /// How many shards are given to.
    pub(super) fn at_work(&self) -> usize {
        self.seen.iter().filter(|seen| seen.at_work).count()
    }

    /// Shards that are nobody's.
    pub(super) fn unowned(&self) -> usize {
        let owned: usize = self.seen.iter().map(|seen| seen.shards.len()).sum();
        usize::try_from(self.shards).unwrap_or(usize::MAX).saturating_sub(owned)
    }
}

fn is_silent(member: &Member, rules: &Rules, now: Timestamp) -> bool {
    now.since(member.at) > rules.silence
}

fn state(member: &Member, limits: &Limits, now: Timestamp) -> MemberState {
    let late = Duration::from_millis(member.lag_ms.max(0).unsigned_abs()) > limits.rules.max_lag;
    match member.phase {
        _ if is_silent(member, &limits.rules, now) => MemberState::Silent,
        Phase::Joining => MemberState::Joining,
        Phase::Leaving => MemberState::Leaving,
        Phase::Active if skew(member) > limits.max_skew => MemberState::Skewed,
        Phase::Active if late => MemberState::Late,
        Phase::Active => MemberState::Active,
    }
}

fn skew(member: &Member) -> Duration {
    Duration::from_millis(member.skew_ms.unsigned_abs())
}

impl Seen {
    /// Whether its wall clock is so far off that tokens may expire early.
    pub(super) fn is_off(&self) -> bool {
        self.state != MemberState::Silent && skew(&self.member) > SKEW_ALARM
    }

    /// What somebody should know of it, and what to do about it.
    pub(super) fn concern(&self, now: Timestamp) -> Option<String> {
        let (name, skew_ms) = (&self.member.incarnation, self.member.skew_ms);
        match self.state {
            MemberState::Silent => Some(format!(
                "{name} fell silent {}: it was killed or is cut off, and has lost its shards",
                relative(self.member.at, now)
            )),
            MemberState::Late => Some(format!(
                "{name} is {} s late and has lost its shards: look at its /status and its log, then restart it",
                self.member.lag_ms / 1000
            )),
            MemberState::Skewed => Some(format!(
                "{name} acquires nobody: its wall clock is {skew_ms} ms off the table's; repair its time service"
            )),
            _ if self.is_off() => Some(format!(
                "{name}: its wall clock is {skew_ms} ms off the table's, tokens may expire early"
            )),
            _ => None,
        }
    }
}

/// What is told of a member in a row, and in this order.
pub(super) const COLUMNS: [&str; 12] = [
    "MEMBER",
    "STATE",
    "BEAT",
    "SHARDS",
    "CLIENTS",
    "LAG",
    "SKEW",
    "REFRESHED",
    "FAILED",
    "CONFLICTS",
    "TAKEOVERS",
    "VERSION",
];

/// The head of the table of members.
pub(super) fn header() -> String {
    row(&COLUMNS.map(str::to_owned))
}

impl Seen {
    /// Its line in the table of members.
    pub(super) fn row(&self, now: Timestamp) -> String {
        row(&self.cells(now))
    }

    /// What [`COLUMNS`] are about.
    pub(super) fn cells(&self, now: Timestamp) -> [String; 12] {
        let Self { member, state, shards, .. } = self;
        let Tally { clients, refreshed, failed, conflicts, takeovers } = member.tally;
        [
            member.incarnation.clone(),
            state.as_str().to_owned(),
            relative(member.at, now),
            shards.len().to_string(),
            clients.to_string(),
            format!("{} ms", member.lag_ms),
            format!("{} ms", member.skew_ms),
            refreshed.to_string(),
            failed.to_string(),
            conflicts.to_string(),
            takeovers.to_string(),
            member.version.clone(),
        ]
    }
}

fn row(cells: &[String; 12]) -> String {
    let [member, state, beat, shards, clients, lag, skew, refreshed, failed, conflicts, takeovers, version] =
        cells;
    format!(
        "{member:<16}  {state:<8}  {beat:<10}  {shards:>6}  {clients:>8}  {lag:>8}  {skew:>8}  {refreshed:>9}  \
         {failed:>6}  {conflicts:>9}  {takeovers:>9}  {version}"
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1000);

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    pub(in super::super) fn limits() -> Limits {
        let rules = Rules { beat: secs(10), silence: secs(30), max_lag: secs(120) };
        Limits { rules, max_skew: secs(30) }
    }

    pub(in super::super) fn member(name: &str, at: Timestamp) -> Member {
        Member {
            incarnation: name.into(),
            beat: 1,
            phase: Phase::Active,
            lag_ms: 0,
            skew_ms: 0,
            at,
            version: "1".into(),
            tally: Tally::default(),
        }
    }

    fn alone(member: Member, now: Timestamp) -> (&'static str, String) {
        let muster = Muster::of(vec![member], 16, limits(), now);
        let seen = &muster.seen[0];
        (seen.state.as_str(), seen.concern(now).unwrap_or_default())
    }

    #[test]
    fn a_state_is_told_as_the_others_see_it() {
        let member = member("a", NOW);
        assert_eq!(alone(member.clone(), NOW), ("active", String::new()));
        let (standing, concern) = alone(member.clone(), NOW.plus(secs(31)));
        assert!(standing == "silent" && concern.contains("has lost its shards"), "{concern}");
        let late = Member { lag_ms: 120_001, ..member.clone() };
        assert_eq!(alone(late.clone(), NOW).0, "late");
        let skewed = Member { skew_ms: -30_001, at: NOW.minus(secs(30)), ..late };
        let (standing, concern) = alone(skewed, NOW);
        assert_eq!(standing, "skewed", "that is why it is late");
        assert!(concern.contains("-30001 ms"), "{concern}");
        let (standing, concern) = alone(Member { skew_ms: 5_001, ..member.clone() }, NOW);
        assert!(standing == "active" && concern.contains("may expire early"), "{concern}");
        assert_eq!(alone(Member { phase: Phase::Leaving, ..member }, NOW).0, "leaving");
    }

    #[test]
    fn shards_are_nobodys_where_nobody_is_at_work() {
        let both = || vec![member("a", NOW), Member { phase: Phase::Joining, ..member("b", NOW) }];
        let muster = Muster::of(both(), 16, limits(), NOW);
        assert_eq!((muster.at_work(), muster.unowned(), muster.count(MemberState::Joining)), (1, 0, 1));
        let muster = Muster::of(both(), 16, limits(), NOW.plus(secs(31)));
        assert_eq!((muster.at_work(), muster.unowned(), muster.count(MemberState::Silent)), (0, 16, 2));
    }
}
