//! A day of a fleet with one provider outage of half an hour: freshness, and how evenly the work is spread.

use std::time::Duration;

use super::storm::{Outcome, gaps};
use super::world::World;

const DAY: Duration = Duration::from_secs(86_400);
const LIFETIMES: [Duration; 3] =
    [Duration::from_secs(3600), Duration::from_secs(7200), Duration::from_secs(28_800)];
/// When the provider is down, and how long the backlog may take after it.
const OUTAGE: (Duration, Duration) = (Duration::from_secs(30_000), Duration::from_secs(31_800));
const CATCH_UP: Duration = Duration::from_secs(1800);
/// Refreshes are counted by spans of this length.
const SPAN: Duration = Duration::from_secs(600);

/// A day, and the peak of its refresh rate over the mean.
pub(crate) struct Day {
    pub(crate) outcome: Outcome,
    pub(crate) peak_over_mean: f64,
}

/// Simulates a day of so many clients under three processes; `each_hour` is told how far it is.
pub(crate) fn run(clients: usize, seed: u64, each_hour: impl Fn(u64)) -> Day {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O");
    runtime.block_on(async {
        let mut world = World::new(seed);
        for n in 0..clients {
            world.register(&format!("c{n}"), "strict", LIFETIMES[n % LIFETIMES.len()], false);
        }
        (0..3).for_each(|_| world.start());
        for hour in 0..24 {
            each_hour(hour);
            let until = Duration::from_secs(3600) * u32::try_from(hour + 1).unwrap_or(24);
            for (at, down) in [(OUTAGE.0, true), (OUTAGE.1, false)] {
                if (world.origin.elapsed()..until).contains(&at) {
                    world.sleep(at - world.origin.elapsed()).await;
                    world.providers.mood("strict", |mood| mood.down = down);
                }
            }
            world.sleep(until.saturating_sub(world.origin.elapsed())).await;
        }
        let peak_over_mean = peak_over_mean(&world.providers.grants());
        while !world.processes.is_empty() {
            world.stop(0).await;
        }
        Day { outcome: judge(&world), peak_over_mean }
    })
}

/// Spans that an outage, its catch-up, or the first catch-up at the start touch do not count.
fn peak_over_mean(grants: &[Duration]) -> f64 {
    let spans = usize::try_from(DAY.as_secs() / SPAN.as_secs()).unwrap_or(1);
    let mut counts = vec![0_u32; spans];
    for at in grants {
        let span = usize::try_from(at.as_secs() / SPAN.as_secs()).unwrap_or(usize::MAX);
        if let Some(count) = counts.get_mut(span) {
            *count += 1;
        }
    }
    let index = |at: Duration| usize::try_from(at.as_secs() / SPAN.as_secs()).unwrap_or(0);
    let disturbed = index(OUTAGE.0)..=index(OUTAGE.1 + CATCH_UP);
    let quiet: Vec<u32> = (0..spans)
        .filter(|span| *span > 0 && !disturbed.contains(span))
        .filter_map(|span| counts.get(span).copied())
        .collect();
    let mean = f64::from(quiet.iter().sum::<u32>()) / quiet.len().max(1) as f64;
    f64::from(quiet.iter().copied().max().unwrap_or(0)) / mean
}

/// Nothing may be lost; and no second of freshness but of those whose tokens cannot outlast the outage.
fn judge(world: &World) -> Outcome {
    let mut outcome = Outcome {
        steps: world.table.writes() + world.providers.redemptions(),
        redemptions: world.providers.redemptions(),
        takeovers: world.takeovers,
        conflicts: world.conflicts,
        ..Outcome::default()
    };
    for id in world.clients.keys() {
        let stored = world.table.snapshot(id).token.and_then(|token| token.refresh_token);
        if !stored.is_some_and(|token| world.providers.is_live(token.expose())) {
            outcome.violations.push(format!("{id}: its stored refresh token is not the live one"));
        }
        for gap in gaps(world, id) {
            let life = gap.from.saturating_sub(gap.stored);
            let outage = OUTAGE.1 - OUTAGE.0 + CATCH_UP;
            let avoidable = life.mul_f64(0.15) > outage;
            let in_outage = gap.from > OUTAGE.0 && gap.from < OUTAGE.1 + CATCH_UP;
            match avoidable || !in_outage {
                true => outcome.expired += gap.to - gap.from,
                false => outcome.unavoidable += gap.to - gap.from,
            }
        }
    }
    outcome.violations.extend(world.table.objections());
    outcome.violations.extend(world.providers.objections());
    if outcome.expired > Duration::ZERO {
        outcome.violations.push(format!("{:?} without a good token", outcome.expired));
    }
    outcome
}
