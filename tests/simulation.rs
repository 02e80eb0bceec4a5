//! A fleet in simulated time: a few hundred seeds of what `make sim` runs by the thousand, a day of 130 clients, and
//! proof that the referee sees what goes wrong.
//!
//! `PERENNIAL_TEST_SEED` runs one seed, and prints what happened in it.
#![expect(clippy::print_stdout, reason = "what a run came to, and how a failing one is run again")]
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]
#![expect(clippy::cast_precision_loss, reason = "counts of a simulation are small")]
#![expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shares lie between 0 and 1")]

#[path = "../examples/sim/clock.rs"]
mod clock;
#[path = "../examples/sim/day.rs"]
mod day;
#[path = "../examples/sim/link.rs"]
mod link;
#[path = "../examples/sim/provider.rs"]
mod provider;
#[path = "../examples/sim/storm.rs"]
mod storm;
#[path = "../examples/sim/table.rs"]
mod table;
#[path = "../examples/sim/witness.rs"]
mod witness;
#[path = "../examples/sim/world.rs"]
mod world;

use perennial::item::{Action, Assignment, Change, Condition, Key, attr};
use storm::{Outcome, Weaken};

fn live_through(seeds: std::ops::Range<u64>) {
    #[expect(clippy::disallowed_methods, reason = "how a failing run is run again")]
    let given = std::env::var("PERENNIAL_TEST_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    if let Some(seed) = given {
        let Outcome { log, violations, .. } = storm::run(seed, true, None);
        println!("{}", log.join("\n"));
        assert!(violations.is_empty(), "seed {seed}: {violations:#?}");
        return;
    }
    let mut total = Outcome::default();
    for seed in seeds {
        let outcome = storm::run(seed, false, None);
        assert!(outcome.violations.is_empty(), "seed {seed}: {:#?}", outcome.violations);
        total.steps += outcome.steps;
        total.redemptions += outcome.redemptions;
        total.takeovers += outcome.takeovers;
        total.lost += outcome.lost;
        total.spilled += outcome.spilled;
    }
    let Outcome { steps, redemptions, takeovers, lost, spilled, .. } = total;
    println!(
        "steps={steps} redemptions={redemptions} takeovers={takeovers} lost_in_crash_windows={lost} spilled={spilled}"
    );
    assert!(takeovers > 100 && lost > 10 && spilled > 10, "storms that strike nobody");
}

#[test]
fn storms_break_no_invariant() {
    live_through(1..101);
}

/// Another thread's share of the same.
#[test]
fn more_storms_break_none_either() {
    live_through(101..201);
}

#[test]
fn the_same_seed_is_the_same_run() {
    let (one, other) = (storm::run(7, true, None), storm::run(7, true, None));
    assert!(one.log.len() > 100);
    assert_eq!(one.log, other.log);
}

#[test]
fn a_day_of_130_clients_with_an_outage_costs_only_what_could_not_be_saved() {
    let day = day::run(130, 1, |_| ());
    assert_eq!(day.outcome.violations, [""; 0]);
    assert!(day.outcome.unavoidable.as_secs() > 0, "the outage was felt");
    assert!(day.peak_over_mean <= 2.0, "{} times the mean", day.peak_over_mean);
    assert_eq!(day.outcome.conflicts, 0);
}

/// Some seed shows what the weakened table lets through.
fn is_seen(weaken: Weaken, what: &str) {
    let seen = (1..60).find_map(|seed| {
        let violations = storm::run(seed, false, Some(weaken)).violations;
        violations
            .iter()
            .find(|violation| violation.contains(what))
            .map(|violation| (seed, violation.clone()))
    });
    let (seed, violation) = seen.unwrap_or_else(|| panic!("sixty seeds, and nobody saw: {what}"));
    println!("seed {seed}: {violation}");
}

fn without_conditions(change: &Change, of: fn(&Change) -> bool) -> Change {
    let mut change = change.clone();
    if of(&change) {
        change.0.iter_mut().for_each(|write| write.condition = Condition::All(Vec::new()));
    }
    change
}

fn sets(change: &Change, name: &str) -> bool {
    change.0.iter().any(|write| match &write.action {
        Action::Update(list) => list.iter().any(|it| matches!(it, Assignment::Set(set, _) if *set == name)),
        _ => false,
    })
}

#[test]
fn an_acquire_without_its_condition_is_seen() {
    is_seen(|change| without_conditions(change, |change| sets(change, attr::OWN)), "was acquired twice");
}

#[test]
fn a_commit_without_its_fence_is_seen() {
    is_seen(|change| without_conditions(change, |change| sets(change, attr::TOK_GEN)), "went back");
}

#[test]
fn a_doubt_that_is_forgotten_is_seen() {
    let forget = |change: &Change| {
        let mut change = change.clone();
        for write in change.0.iter_mut().filter(|write| matches!(write.key, Key::Lease(_))) {
            if let Action::Update(list) = &mut write.action {
                list.retain(|it| !matches!(it, Assignment::Set(attr::DBT | attr::DBT_SENDS, _)));
            }
        }
        change
    };
    is_seen(forget, "nobody had ordered it");
}
