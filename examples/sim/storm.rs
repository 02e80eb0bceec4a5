//! Hours of trouble over a small fleet, then calm; and what has to hold in the end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use perennial::client::ClientId;
use perennial::plan::lease::{Standing, standing};
use perennial::record::Snapshot;
use perennial::time::Timestamp;

use super::provider::Answer;
use super::world::World;

/// How long a storm lasts, and the calm after it: every token is refreshed in it, and every wait is over.
const STORM: Duration = Duration::from_secs(3600);
const CALM: Duration = Duration::from_secs(4500);
const LIFETIMES: [Duration; 3] =
    [Duration::from_secs(1500), Duration::from_secs(2400), Duration::from_secs(3600)];
const PROVIDERS: [&str; 6] = ["strict", "strict", "strict", "grace", "fixed", "hold"];
const CLIENTS: usize = 10;
const PROCESSES: usize = 3;
/// After a trouble has ended, freshness may take this long to come back: silence, take-over wait, backoff, breaker.
const AFTERMATH: Duration = Duration::from_secs(900);

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) steps: u64,
    pub(crate) redemptions: u64,
    pub(crate) takeovers: u64,
    pub(crate) conflicts: u64,
    /// Grants lost to a crash, or to an answer that was lost on its way.
    pub(crate) lost: u64,
    /// Answers that went to the spill.
    pub(crate) spilled: u64,
    pub(crate) expired: Duration,
    pub(crate) unavoidable: Duration,
    pub(crate) violations: Vec<String>,
    pub(crate) log: Vec<String>,
}

/// How a run may be weakened, to show that it would be seen.
pub(crate) type Weaken = fn(&perennial::item::Change) -> perennial::item::Change;

/// Runs one seed, from its beginning to its verdict.
pub(crate) fn run(seed: u64, keep_log: bool, weaken: Option<Weaken>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O");
    runtime.block_on(async {
        let mut world = World::new(seed);
        let _listening = world.witness.listen();
        if keep_log {
            world.witness.keep();
        }
        if let Some(weaken) = weaken {
            world.table.weaken(weaken);
        }
        weather(&mut world).await;
        calm(&mut world).await;
        judge(&world)
    })
}

async fn weather(world: &mut World) {
    for provider in PROVIDERS {
        world.providers.mood(provider, |mood| mood.dawdles = true);
    }
    for n in 0..CLIENTS {
        let (provider, lifetime) =
            (PROVIDERS[world.pick(PROVIDERS.len())], LIFETIMES[world.pick(LIFETIMES.len())]);
        let mintable = provider == "fixed" && world.unit() < 0.5;
        world.register(&format!("c{n}"), provider, lifetime, mintable);
    }
    for _ in 0..PROCESSES {
        world.start();
    }
    while world.origin.elapsed() < STORM {
        world.sleep(Duration::from_secs(90).mul_f64(world.unit())).await;
        while world.processes.len() < PROCESSES {
            world.start();
        }
        match world.unit() {
            draw if draw < 0.45 => {
                let which = world.pick(world.processes.len());
                fault(world, which).await;
            }
            draw if draw < 0.7 => ambush(world).await,
            _ => operator(world),
        }
    }
}

/// Strikes a process while it has a request under way, or an answer that is not stored yet.
async fn ambush(world: &mut World) {
    let ids: Vec<ClientId> = world.clients.keys().cloned().collect();
    for _ in 0..3 {
        world.refresh_now(&ids[world.pick(ids.len())].clone());
    }
    for _ in 0..2000 {
        if let Some(name) = world.providers.waiting() {
            world.sleep(Duration::from_millis(200).mul_f64(world.unit())).await;
            if let Some(which) = world.processes.iter().position(|process| process.name == name) {
                fault(world, which).await;
            }
            return;
        }
        world.sleep(Duration::from_millis(10)).await;
    }
}

/// For how long: mostly short, sometimes as long as several take-overs.
fn span(world: &World) -> Duration {
    Duration::from_secs(600).mul_f64(world.unit() * world.unit() * world.unit()) + Duration::from_secs(1)
}

fn after(time: Duration, then: impl FnOnce() + Send + 'static) {
    let at = tokio::time::Instant::now() + time;
    tokio::spawn(async move {
        tokio::time::sleep_until(at).await;
        then();
    });
}

/// Something happens to one process, or to what they all depend on.
async fn fault(world: &mut World, which: usize) {
    let (span, share) = (span(world), world.unit());
    let name = world.processes[which].name.clone();
    world.trouble_for(span);
    let tell = |what: &str| format!("{name}: {what} for {span:?}");
    match world.pick(11) {
        0 | 1 => world.kill(which),
        2 => {
            world.stop(which).await;
            world.trouble_for(Duration::from_secs(30));
        }
        3 => {
            world.say(|| tell("stands still"));
            let machine = world.processes[which].machine.clone();
            machine.pause();
            after(span, move || machine.resume());
        }
        4 => {
            world.say(|| tell("is cut off from the table"));
            let road = std::sync::Arc::clone(&world.processes[which].road);
            road.cut.store(true, Ordering::Relaxed);
            after(span, move || road.cut.store(false, Ordering::Relaxed));
        }
        5 => {
            world.say(|| tell("is cut off from the providers"));
            let cut = std::sync::Arc::clone(&world.processes[which].cut);
            cut.store(true, Ordering::Relaxed);
            after(span, move || cut.store(false, Ordering::Relaxed));
        }
        6 => {
            world.say(|| tell("has a wrong clock"));
            let machine = world.processes[which].machine.clone();
            machine.skew((share * 80_000.0) as i64 - 40_000);
            after(span, move || machine.skew(0));
        }
        7 => {
            world.say(|| tell("has a bad road"));
            let road = std::sync::Arc::clone(&world.processes[which].road);
            let thousandths = (share * 300.0) as u64;
            let set = move |to: u64| {
                [&road.throttled, &road.lost, &road.doubled]
                    .iter()
                    .for_each(|it| it.store(to, Ordering::Relaxed));
            };
            set(thousandths);
            after(span, move || set(0));
        }
        _ => surroundings(world, span),
    }
}

/// A provider or the spill has a bad time.
fn surroundings(world: &mut World, span: Duration) {
    let provider = PROVIDERS[world.pick(PROVIDERS.len())];
    match world.pick(3) {
        0 => {
            world.say(|| format!("{provider} is down for {span:?}"));
            let providers = world.providers.clone();
            providers.mood(provider, |mood| mood.down = true);
            after(span, move || providers.mood(provider, |mood| mood.down = false));
        }
        1 => {
            world.say(|| format!("the spill does not answer for {span:?}"));
            if let Some(spill) = world.spill.clone() {
                spill.cut(true);
                after(span, move || spill.cut(false));
            }
        }
        _ => {
            let share = world.unit();
            world.say(|| format!("{provider} throttles, and loses answers, for {span:?}"));
            let providers = world.providers.clone();
            providers
                .mood(provider, |mood| (mood.throttles, mood.loses_replies) = (share * 0.5, share * 0.5));
            after(span, move || {
                providers.mood(provider, |mood| (mood.throttles, mood.loses_replies) = (0.0, 0.0))
            });
        }
    }
}

fn operator(world: &mut World) {
    let ids: Vec<ClientId> = world.clients.keys().cloned().collect();
    let id = ids[world.pick(ids.len())].clone();
    match world.pick(8) {
        0 => {
            let name = format!("n{}", world.pick(5));
            world.register(&name, "strict", LIFETIMES[world.pick(LIFETIMES.len())], false);
        }
        1 => world.remove(&id),
        2 => {
            // Removed, and registered again at once: what is in flight must not land on the new client.
            world.remove(&id);
            world.register(id.as_str(), "strict", LIFETIMES[world.pick(LIFETIMES.len())], false);
        }
        3 => world.import(&id),
        4 => world.pause(&id, true),
        5 => world.pause(&id, false),
        6 => ids.iter().for_each(|id| world.resolve(id)),
        _ => world.refresh_now(&id),
    }
    if world.clients.is_empty() {
        world.register("last", "strict", LIFETIMES[0], false);
    }
}

async fn calm(world: &mut World) {
    world.say(|| "calm".to_owned());
    for provider in PROVIDERS {
        world.providers.mood(provider, |mood| *mood = super::provider::Mood::default());
    }
    world.processes.iter().for_each(super::world::Process::mend);
    if let Some(spill) = &world.spill {
        spill.cut(false);
    }
    while world.processes.len() < PROCESSES {
        world.start();
    }
    let ids: Vec<ClientId> = world.clients.keys().cloned().collect();
    ids.iter().for_each(|id| world.pause(id, false));
    world.trouble_for(Duration::from_secs(1));
    world.sleep(CALM).await;
    while !world.processes.is_empty() {
        world.stop(0).await;
    }
}

fn judge(world: &World) -> Outcome {
    let mut outcome = Outcome {
        steps: world.table.writes() + world.providers.redemptions(),
        redemptions: world.providers.redemptions(),
        takeovers: world.takeovers,
        conflicts: world.conflicts,
        spilled: world.witness.spilled().len() as u64,
        ..Outcome::default()
    };
    let answers = world.providers.answers();
    for (id, client) in &world.clients {
        let snapshot = world.table.snapshot(id);
        let verdict = settled(world, &snapshot, &answers, client.grant.needs_refresh_token());
        match verdict {
            Ok(lost) => outcome.lost += u64::from(lost),
            Err(why) => outcome.violations.push(format!("{id}: {why}")),
        }
        let whole = !world.touched.contains(id) && standing_of(&snapshot) == Some(Standing::Free);
        count_gaps(world, id, whole, &mut outcome);
    }
    outcome.violations.extend(unstored(world, &answers));
    outcome.violations.extend(world.table.objections());
    outcome.violations.extend(world.providers.objections());
    outcome.violations.extend(world.witness.objections());
    if outcome.expired > Duration::ZERO {
        outcome.violations.push(format!("{:?} without a good token, and nothing was wrong", outcome.expired));
    }
    outcome.log = world.witness.lines();
    outcome
}

fn standing_of(snapshot: &Snapshot) -> Option<Standing> {
    Some(standing(snapshot.lease.as_ref()?, snapshot.tok_gen()))
}

/// How a client stands at the end: whole, or lost for a reason.
fn settled(world: &World, snapshot: &Snapshot, answers: &[Answer], rotates: bool) -> Result<bool, String> {
    let (Some(lease), Some(token)) = (&snapshot.lease, &snapshot.token) else {
        return Err("its items are gone".into());
    };
    let stored = token.refresh_token.as_ref().map(|token| token.expose().to_owned()).unwrap_or_default();
    let next = super::provider::next(&stored);
    let excused = answers.iter().any(|answer| {
        (answer.token == stored || Some(&answer.token) == next.as_ref()) && may_be_lost(world, answer)
    });
    match standing(lease, token.generation) {
        Standing::Free if token.expires_at <= world.wall() => {
            Err(format!("has no good token at the end: {lease:?}"))
        }
        Standing::Free => match &token.refresh_token {
            Some(stored) if rotates && !world.providers.is_live(stored.expose()) => {
                Err("its stored refresh token is not the live one".into())
            }
            _ => Ok(false),
        },
        Standing::Dead if excused => Ok(true),
        Standing::Dead => Err(format!("is lost, and no crash and no lost answer explains it: {lease:?}")),
        Standing::Held if lease.doubt.is_some() => Ok(false),
        other => Err(format!("is {other:?} at the end: {lease:?}")),
    }
}

/// Whether a grant may be lost by what became of this answer: it was not heard, its hearer died with it, or could not
/// store it before its lease had run out and another had sent the old token.
fn may_be_lost(world: &World, answer: &Answer) -> bool {
    let crashed = world.crashed.lock().expect("no panic under the lock").contains(&answer.by);
    if was_spilled(world, answer) {
        return false;
    }
    match world.table.stored_at(&answer.client, &answer.token) {
        None => !answer.heard || crashed,
        Some(at) => at.saturating_sub(answer.at) > super::world::policy().timing.lease(),
    }
}

/// Whether it was put where it outlives its hearer, before another could take the lease over.
fn was_spilled(world: &World, answer: &Answer) -> bool {
    let lease = super::world::policy().timing.lease();
    world.witness.spilled().iter().any(|note| {
        note.client == answer.client
            && note.by == answer.by
            && (answer.at..answer.at + lease).contains(&note.at)
    })
}

/// Answers that a process heard, and has neither stored nor found superseded.
fn unstored<'a>(world: &'a World, answers: &'a [Answer]) -> impl Iterator<Item = String> + 'a {
    answers.iter().filter_map(|answer| {
        let crashed = world.crashed.lock().expect("no panic under the lock").contains(&answer.by);
        let stored = world.table.stored_at(&answer.client, &answer.token).is_some();
        let id = ClientId::new(answer.client.clone()).ok()?;
        let superseded = world.table.commits(&id).iter().any(|(at, _)| *at >= answer.at);
        let gone = !world.clients.contains_key(&id);
        let kept = stored || superseded || gone || crashed || !answer.heard;
        (!kept).then(|| format!("{id}: an answer was heard by {} and never stored", answer.by))
    })
}

/// The time in which the newest stored token was past its expiry, from the commits.
fn count_gaps(world: &World, id: &ClientId, whole: bool, outcome: &mut Outcome) {
    for Gap { stored, from, to } in gaps(world, id) {
        let life = from.saturating_sub(stored);
        // Something that happened since the token was half way through its life, or was still felt then.
        let felt = from.saturating_sub(life / 2 + AFTERMATH);
        let excused = world.trouble.iter().any(|(begin, end)| *begin < to && *end > felt);
        match whole && !excused {
            true => outcome.expired += to - from,
            false => outcome.unavoidable += to - from,
        }
    }
}

/// A time in which the newest stored token was past its expiry.
pub(crate) struct Gap {
    /// When that token was stored.
    pub(crate) stored: Duration,
    /// Its expiry.
    pub(crate) from: Duration,
    /// When another was stored.
    pub(crate) to: Duration,
}

/// From the commits, not by looking now and then.
pub(crate) fn gaps(world: &World, id: &ClientId) -> Vec<Gap> {
    let commits = world.table.commits(id);
    let ends = commits.iter().skip(1).map(|(at, _)| *at).chain([world.origin.elapsed()]);
    let gap = |((stored, expires_at), to): (&(Duration, Timestamp), Duration)| {
        let from = expires_at.since(super::clock::START);
        (from < to).then_some(Gap { stored: *stored, from, to })
    };
    commits.iter().zip(ends).filter_map(gap).collect()
}
