//! The lease protocol, model checked: every order of steps that a few tasks, an operator and faults can take, within
//! bounds.
//!
//! What is checked is the code of `plan`, not a copy of it: the tasks of the model call `lease::{acquire, commit,
//! release, abandon, released, standing}`, `outcome::{after_read, after_send, after_grant_recheck, unverified}`,
//! `in_doubt::take_over_in` and `schedule`, the operator calls `registry::{register, outside_write, remove, resolve}`,
//! and what they plan is interpreted on real items by `store::memory::{holds, perform}`. The driver
//! (`model/attempt.rs`) is the order of `src/refresh.rs`, cut where that awaits.
//!
//! # Scope
//!
//! - One client, two tasks or three, one operator; a provider that does not rotate, one that rotates with a grace window,
//!   one that rotates strictly and revokes the whole family when a used token is shown.
//! - *Time* is a steady clock of whole ticks: lease 3, send window 1, exchange 1, commit budget 1/2, salvage 1, so that
//!   a take-over waits 5.03. Ages and waits are measured by it and judged by the real functions. The wall clock is an hour
//!   hand that makes tokens due; backoffs and patient waits may end at any time.
//! - *Pause*: a task makes no step for any number of ticks, anywhere, without any bound on how often. The one exception
//!   is the documented one, between the look at the clock and the system call of a send: those are one step.
//!   `LateSend` below takes that exception away, and shows that it is one.
//! - *Crash*: anywhere; a request that was sent may be processed afterwards.
//! - *The way to the table*: a write that does not arrive, whose answer does not, that arrives at any time later, that
//!   arrives twice (once at any time later); a read without an answer.
//! - *The way to the provider*: a reply lost, a request lost, a request processed at any time later, a 5xx, a refused
//!   connection. (Not twice: TLS sees to that.)
//! - *Operator*: a new consent brought in, removal, registration anew, both decisions about a hold; each read and
//!   planned in one step and applied in another.
//! - Bounded are the number of acquires and of each fault, see the configurations. Not in the model: the spill, a
//!   second client secret, pausing a client, grants without a refresh token.
//!
//! # Negative controls
//!
//! Each takes a part of the protocol away, in the interpreter or in the driver, and names the law that must then be
//! seen broken. `cargo test --test model -- --nocapture` prints a short path to each.
//!
//! What the bounds come to, in distinct states: `strict-pauses` 13,752; `strict-crash-provider` 41,705; `strict-store`
//! 34,570; `strict-crash-store` 124,384; `strict-consent` 16,854; `strict-removal` 21,558; three tasks 19,467. Each run
//! prints its own. `PERENNIAL_MODEL=deep` (`make model`) raises the bounds: many minutes instead of seconds.
//!
//! # Liveness
//!
//! Seeded walks through faults and then in peace (`model/walk.rs`) must come to rest with a fresh token, or with a
//! verdict that the laws allow.

#![expect(clippy::print_stdout, reason = "counts and paths are what a model checker has to show")]
#![expect(clippy::disallowed_methods, reason = "bounds and seeds are given in the environment")]

#[path = "model/attempt.rs"]
mod attempt;
#[path = "model/control.rs"]
mod control;
#[path = "model/fleet.rs"]
mod fleet;
#[path = "model/laws.rs"]
mod laws;
#[path = "model/operator.rs"]
mod operator;
#[path = "model/provider.rs"]
mod provider;
#[path = "model/table.rs"]
mod table;
#[path = "model/walk.rs"]
mod walk;
#[path = "model/world.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet};

use perennial::client::InDoubt;
use stateright::{Checker as _, HasDiscoveries, Model as _, Path};

use control::Control;
use fleet::{Event, Fleet, Move};
use provider::Kind;
use walk::{End, walk};
use world::{Budget, World};

/// Two leases and nothing that goes wrong but pauses.
const CALM: Budget = Budget {
    acquires: 2,
    hours: 0,
    crashes: 0,
    store_faults: 0,
    provider_faults: 0,
    consents: 0,
    removals: 0,
    decisions: 0,
};

fn is_deep() -> bool {
    std::env::var("PERENNIAL_MODEL").is_ok_and(|depth| depth == "deep")
}

/// Explores all of it.
///
/// # Panics
/// When a law is broken, with the way there; or when something never happens that should, so that its laws were not
/// tried.
fn holds(name: &str, fleet: &Fleet, events: &[Event]) {
    let checker =
        fleet.clone().checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let broken = checker.discoveries();
    let (states, unique, depth) = (checker.state_count(), checker.unique_state_count(), checker.max_depth());
    println!(
        "summary model={name} states={states} unique={unique} depth={depth} violations={}",
        broken.len()
    );
    for (law, path) in &broken {
        println!("{law}:\n{}", told(path));
    }
    assert!(broken.is_empty(), "{name} breaks {:?}", broken.keys());
    let missing: Vec<_> = events.iter().filter(|event| !fleet.saw(**event)).collect();
    assert!(missing.is_empty(), "{name} is vacuous: never {missing:?}");
}

/// # Panics
/// When taking the part away does not break that law.
fn needs(part: Control, fleet: Fleet, law: &'static str) {
    let fleet = fleet.without(part);
    // One thread, breadth first: the path is among the shortest, and the same each time.
    let wanted = HasDiscoveries::AnyOf(BTreeSet::from([law]));
    let checker = fleet.checker().finish_when(wanted).spawn_bfs().join();
    let Some(path) = checker.discovery(law) else { panic!("without it ({part:?}) nothing breaks: {law}") };
    let steps = path.clone().into_actions().len();
    println!("control={part:?} breaks=\"{law}\" steps={steps}\n{}", told(&path));
}

fn told(path: &Path<World, Move>) -> String {
    let steps = path.clone().into_vec();
    let told = steps.iter().map(|(world, taken)| match taken {
        Some(taken) => format!("  {:?}; live {}\n    {taken:?}\n", world.table, world.grants.live),
        None => format!("  {:?}; live {}\n", world.table, world.grants.live),
    });
    told.collect()
}

fn fixed(budget: Budget) -> Fleet {
    Fleet::new(Kind::Fixed, InDoubt::Reusable, 2, budget)
}

fn grace(budget: Budget) -> Fleet {
    Fleet::new(Kind::Grace, InDoubt::Grace, 2, budget)
}

fn strict(budget: Budget) -> Fleet {
    Fleet::new(Kind::Strict, InDoubt::RetryOnce, 2, budget)
}

fn held(budget: Budget) -> Fleet {
    Fleet::new(Kind::Strict, InDoubt::Hold, 2, budget)
}

#[test]
fn pauses_alone_break_nothing() {
    use Event::{
        Buried, FencedOut, Salvage, SendInDoubt, SiblingWon, Superseded, TakeOver, Voided, WindowMissed,
    };
    let budget = Budget { acquires: 3, hours: 1, ..CALM };
    let all = [TakeOver, SendInDoubt, FencedOut, Salvage, WindowMissed];
    holds("fixed-pauses", &fixed(budget), &[TakeOver, Superseded]);
    holds("grace-pauses", &grace(budget), &[&all[..], &[Superseded]].concat());
    holds("strict-pauses", &strict(budget), &[&all[..], &[Buried, Voided, SiblingWon]].concat());
    holds("hold-pauses", &held(Budget { decisions: 1, ..budget }), &[Event::Held, Event::Resolved]);
}

#[test]
fn three_tasks_break_nothing() {
    let three = Fleet::new(Kind::Strict, InDoubt::RetryOnce, 3, CALM);
    holds("strict-three-tasks", &three, &[Event::TakeOver, Event::FencedOut, Event::Salvage]);
}

#[test]
fn crashes_and_lost_replies_break_nothing() {
    let one = Budget { crashes: 1, provider_faults: 1, ..CALM };
    holds("fixed-crash-provider", &fixed(one), &[Event::TakeOver, Event::Replay]);
    holds("grace-crash-provider", &grace(one), &[Event::TakeOver, Event::Replay, Event::SendInDoubt]);
    holds("strict-crash-provider", &strict(one), &[Event::TakeOver, Event::Replay, Event::Buried]);
    holds("hold-crash-provider", &held(Budget { decisions: 1, ..one }), &[Event::Held, Event::Resolved]);
    let two = Budget { provider_faults: 2, ..CALM };
    holds("strict-two-lost", &strict(two), &[Event::Replay, Event::SendInDoubt]);
}

#[test]
fn a_treacherous_way_to_the_table_breaks_nothing() {
    use Event::{LateWriteLanded, LateWriteRefused, OwnAcquire, OwnCommit, ReleaseRefused, Superseded};
    let budget = Budget { store_faults: 1, ..CALM };
    let ways = [LateWriteLanded, LateWriteRefused, OwnAcquire, OwnCommit];
    holds("fixed-store", &fixed(budget), &ways);
    holds("grace-store", &grace(budget), &[&ways[..], &[Superseded]].concat());
    holds("strict-store", &strict(budget), &[&ways[..], &[ReleaseRefused]].concat());
}

#[test]
fn outside_writes_and_removals_break_nothing() {
    use Event::{Consented, FencedOut, Homeless, Replanned, Reregistered, SiblingWon, Superseded, Voided};
    let consent = Budget { consents: 1, ..CALM };
    holds("strict-consent", &strict(consent), &[Consented, FencedOut, Replanned, SiblingWon, Superseded]);
    let removal = Budget { removals: 1, ..CALM };
    holds("strict-removal", &strict(removal), &[Reregistered, Homeless, Superseded, Voided]);
    holds("fixed-removal", &fixed(removal), &[Reregistered, Homeless]);
}

/// Faults of two kinds in one run.
#[test]
fn faults_that_meet_break_nothing() {
    let table = Budget { crashes: 1, store_faults: 1, ..CALM };
    holds("strict-crash-store", &strict(table), &[Event::TakeOver, Event::LateWriteLanded, Event::Salvage]);
    let consent = Budget { consents: 1, provider_faults: 1, ..CALM };
    holds("strict-consent-provider", &strict(consent), &[Event::Consented, Event::Voided]);
}

/// Three kinds of faults, and a third lease: minutes, see `make model`.
#[test]
fn deeper_bounds_break_nothing_either() {
    if !is_deep() {
        holds("strict-shallow", &strict(CALM), &[Event::TakeOver]);
        return;
    }
    let three = Fleet::new(Kind::Strict, InDoubt::RetryOnce, 3, Budget { crashes: 1, ..CALM });
    holds("strict-three-tasks-crash", &three, &[Event::TakeOver]);
    for (name, make) in [("strict", strict as fn(Budget) -> Fleet), ("grace", grace), ("fixed", fixed)] {
        let both = Budget { store_faults: 1, provider_faults: 1, ..CALM };
        holds(&format!("{name}-store-provider"), &make(both), &[Event::OwnCommit, Event::Replay]);
        let leases = Budget { acquires: 3, crashes: 1, provider_faults: 1, ..CALM };
        holds(&format!("{name}-three-leases"), &make(leases), &[Event::TakeOver, Event::Replay]);
        let consent = Budget { consents: 1, provider_faults: 1, crashes: 1, ..CALM };
        holds(&format!("{name}-consent-crash-provider"), &make(consent), &[Event::Consented]);
        let removal = Budget { removals: 1, store_faults: 1, ..CALM };
        holds(&format!("{name}-removal-store"), &make(removal), &[Event::Reregistered]);
        let table = Budget { crashes: 1, store_faults: 1, provider_faults: 1, ..CALM };
        holds(&format!("{name}-crash-store-provider"), &make(table), &[Event::LateWriteLanded]);
    }
}

#[test]
fn a_commit_without_its_fence_puts_old_tokens_over_new_ones() {
    needs(Control::NoFence, grace(CALM), laws::GROWTH);
    needs(Control::NoFence, grace(CALM), laws::REST);
}

#[test]
fn an_acquire_that_does_not_look_gives_a_generation_to_two() {
    needs(Control::BlindAcquire, strict(CALM), laws::ACQUIRE);
}

/// The holder is paused past the taker's wait, wakes with the only live token, and may not store it.
#[test]
fn a_commit_fenced_on_the_lease_alone_throws_an_answer_away() {
    needs(Control::OwnershipFence, strict(CALM), laws::ANSWER);
}

#[test]
fn a_commit_that_creates_brings_a_removed_client_back() {
    needs(Control::CreatingCommit, strict(Budget { removals: 1, ..CALM }), laws::REMOVED);
}

#[test]
fn a_take_over_without_its_wait_sends_beside_the_holder() {
    needs(Control::NoWait, strict(CALM), laws::ALONE);
}

#[test]
fn without_a_look_after_the_acquire_a_new_consent_is_spent_and_lost() {
    let budget = Budget { consents: 1, ..CALM };
    needs(Control::NoCheckAfterRead, strict(budget), laws::ALONE);
    needs(Control::NoCheckAfterRead, strict(budget), laws::REST);
}

/// Every write of new tokens raises the lease's generation as well. The look at `tok_gen` is a second line, for tools
/// that write past the protocol.
#[test]
fn the_look_at_the_stored_generation_is_a_second_line() {
    let fleet = strict(Budget { consents: 1, ..CALM }).without(Control::NoTokenCheckAfterRead);
    holds("no-token-check", &fleet, &[Event::FencedOut, Event::Consented]);
}

#[test]
fn generations_that_restart_let_an_old_answer_into_a_new_registration() {
    needs(Control::RestartedGenerations, strict(Budget { removals: 1, ..CALM }), laws::GROWTH);
    needs(Control::RestartedGenerations, strict(Budget { removals: 1, ..CALM }), laws::CROSSING);
}

#[test]
fn a_forgotten_doubt_spends_a_token_twice_unannounced() {
    let budget = Budget { provider_faults: 2, ..CALM };
    needs(Control::ForgottenDoubt, strict(budget), laws::ANNOUNCED);
}

#[test]
fn a_clock_in_the_condition_lets_a_fast_clock_send_beside_the_holder() {
    needs(Control::Clock, strict(CALM), laws::ALONE);
}

/// The limit that the documentation names: suspended between the last look at the clock and the system call, for
/// longer than the lease, the exchange and the wait together.
#[test]
fn a_suspension_before_the_system_call_is_not_survived() {
    needs(Control::LateSend, strict(CALM), laws::ALONE);
    needs(Control::LateSend, grace(Budget { acquires: 3, ..CALM }), laws::ALONE);
}

/// Walks of one configuration; `PERENNIAL_TEST_SEED` runs one. Among many, some end in each of these ways, and none in
/// another.
///
/// # Panics
/// With the seed of a walk that broke a law, found no rest, or ended otherwise.
fn walks(name: &str, fleet: &Fleet, ways: &[End]) {
    let given = std::env::var("PERENNIAL_TEST_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let seeds = given.map_or(0..if is_deep() { 20_000 } else { 400 }, |seed| seed..seed + 1);
    let mut ends = BTreeMap::new();
    for seed in seeds.clone() {
        let end = walk(fleet, seed).unwrap_or_else(|problem| panic!("{name}, seed {seed}: {problem}"));
        assert!(ways.contains(&end), "{name}, seed {seed}: ends {end:?}");
        *ends.entry(end).or_insert(0) += 1;
    }
    println!("summary walks={name} seeds={seeds:?} ends={ends:?}");
    assert!(given.is_some() || ends.len() == ways.len(), "{name}: only {ends:?}");
}

const STORMY: Budget = Budget {
    acquires: u8::MAX,
    hours: 3,
    crashes: 2,
    store_faults: 3,
    provider_faults: 3,
    consents: 1,
    removals: 0,
    decisions: 0,
};

fn of_three(kind: Kind, in_doubt: InDoubt, budget: Budget) -> Fleet {
    Fleet::new(kind, in_doubt, 3, budget)
}

#[test]
fn after_the_faults_every_fleet_comes_to_a_fresh_token_or_to_a_verdict() {
    use End::{Dead, Fresh, Held};
    walks("fixed", &of_three(Kind::Fixed, InDoubt::Reusable, STORMY), &[Fresh]);
    walks("grace", &of_three(Kind::Grace, InDoubt::Grace, STORMY), &[Fresh, Dead, Held]);
    walks("strict", &of_three(Kind::Strict, InDoubt::RetryOnce, STORMY), &[Fresh, Dead, Held]);
    walks("hold", &of_three(Kind::Strict, InDoubt::Hold, STORMY), &[Fresh, Held]);
    let removals = Budget { removals: 1, ..STORMY };
    walks("removal", &of_three(Kind::Strict, InDoubt::RetryOnce, removals), &[Fresh, Dead, Held]);
}

/// The timer of a silent owner never runs out: a walk that does not end is noticed.
#[test]
fn a_wait_that_never_ends_is_seen() {
    let budget = Budget { crashes: 2, acquires: u8::MAX, ..CALM };
    let stuck = (0..40).find(|seed| {
        let fleet = strict(budget).without(Control::EndlessWait);
        walk(&fleet, *seed).is_err_and(|problem| problem.starts_with("no rest"))
    });
    assert!(stuck.is_some(), "a dead owner's lease was taken over all the same");
}
