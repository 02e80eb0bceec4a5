//! Thousands of simulated hours: storms over a small fleet, one for each seed, and a day of a large one.
//!
//! The scheduler, the refresh, the fleet and the planner are the daemon's own; clocks, table, network and providers are
//! simulated. Everything that is drawn is drawn from the seed, so that a seed runs again as it ran:
//!
//! ```text
//! cargo run --example sim -- --seed 7 --trace
//! ```
//!
//! It ends with one line for programs, and with another exit code than zero where it is not clean:
//!
//! ```text
//! summary seeds=.. steps=.. violations=0 expired_token_seconds=0 expired_unavoidable_seconds=.. peak_over_mean=..
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a simulation prints")]
#![allow(clippy::cast_precision_loss, reason = "counts of a simulation are small")]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shares lie between 0 and 1")]

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;

#[path = "sim/clock.rs"]
mod clock;
#[path = "sim/day.rs"]
mod day;
#[path = "sim/link.rs"]
mod link;
#[path = "sim/provider.rs"]
mod provider;
#[path = "sim/storm.rs"]
mod storm;
#[path = "sim/table.rs"]
mod table;
#[path = "sim/witness.rs"]
mod witness;
#[path = "sim/world.rs"]
mod world;

use storm::Outcome;

/// Simulates storms over a fleet, and a day of a large one.
#[derive(Clone, Parser)]
struct Options {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print what happened in the first seed, and stop after it.
    #[arg(long)]
    trace: bool,
    /// Clients of the large fleet's day; 0 leaves the day out.
    #[arg(long, default_value_t = 100_000)]
    day: usize,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.trace {
        let outcome = storm::run(options.seed, true, None);
        outcome.log.iter().chain(&outcome.violations).for_each(|line| println!("{line}"));
        return if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let mut total = storms(&options);
    let mut peak_over_mean = None;
    if options.day > 0 {
        let terminal = std::io::stderr().is_terminal();
        let day = day::run(options.day, options.seed, |hour| {
            if terminal {
                eprint!("\rday of {} clients: hour {hour}  ", options.day);
            }
        });
        peak_over_mean = Some(day.peak_over_mean);
        if day.peak_over_mean > 2.0 {
            total.violations.push(format!("a peak of {:.2} times the mean", day.peak_over_mean));
        }
        add(&mut total, day.outcome);
    }
    if std::io::stderr().is_terminal() {
        eprintln!();
    }
    report(&options, &total, peak_over_mean);
    if total.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// All seeds, on as many threads as there are cores: each world has one of its own.
fn storms(options: &Options) -> Outcome {
    let next = AtomicU64::new(options.seed);
    let end = options.seed.saturating_add(options.seeds);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let terminal = std::io::stderr().is_terminal();
    let work = || {
        let mut total = Outcome::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return total;
            }
            if terminal && seed.is_multiple_of(10) {
                eprint!("\rseed {seed} of {}  ", end - 1);
            }
            let mut outcome = storm::run(seed, false, None);
            outcome
                .violations
                .iter_mut()
                .for_each(|violation| *violation = format!("seed {seed}: {violation}"));
            add(&mut total, outcome);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut total = Outcome::default();
        for worker in workers {
            match worker.join() {
                Ok(outcome) => add(&mut total, outcome),
                Err(_) => total.violations.push("a simulation panicked".to_owned()),
            }
        }
        total
    })
}

fn add(total: &mut Outcome, more: Outcome) {
    total.steps += more.steps;
    total.redemptions += more.redemptions;
    total.takeovers += more.takeovers;
    total.conflicts += more.conflicts;
    total.lost += more.lost;
    total.spilled += more.spilled;
    total.expired += more.expired;
    total.unavoidable += more.unavoidable;
    total.violations.extend(more.violations);
}

fn report(options: &Options, total: &Outcome, peak_over_mean: Option<f64>) {
    for violation in total.violations.iter().take(50) {
        println!("violation: {violation}");
    }
    let Outcome {
        steps,
        redemptions,
        takeovers,
        conflicts,
        lost,
        spilled,
        expired,
        unavoidable,
        violations,
        ..
    } = total;
    let (expired, unavoidable) = (expired.as_secs(), unavoidable.as_secs());
    if options.json {
        let summary = serde_json::json!({
            "seeds": options.seeds,
            "first_seed": options.seed,
            "steps": steps,
            "violations": violations.len(),
            "expired_token_seconds": expired,
            "expired_unavoidable_seconds": unavoidable,
            "peak_over_mean": peak_over_mean,
            "redemptions": redemptions,
            "takeovers": takeovers,
            "conflicts": conflicts,
            "lost_in_crash_windows": lost,
            "spilled": spilled,
        });
        return println!("{summary}");
    }
    let peak = peak_over_mean.map_or("-".to_owned(), |peak| format!("{peak:.2}"));
    println!(
        "redemptions={redemptions} takeovers={takeovers} conflicts={conflicts} lost_in_crash_windows={lost} \
         spilled={spilled}"
    );
    println!(
        "summary seeds={} steps={steps} violations={} expired_token_seconds={expired} \
         expired_unavoidable_seconds={unavoidable} peak_over_mean={peak}",
        options.seeds,
        violations.len(),
    );
}
