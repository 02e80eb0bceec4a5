//! Trouble for a fleet, drawn from a seed: every few seconds a kill, a stop, a rolling restart, bad weather on a hop, or
//! a stepped clock. Most kills and stops are aimed between two steps of a refresh.

#![allow(clippy::disallowed_methods, reason = "real processes live in real time")]

use std::collections::VecDeque;
use std::time::Duration;

use perennial::plan::lease::Standing;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::checker::{Evidence, Verdict, judge};
use crate::end::{collect, settle};
use crate::fleet::{Fleet, Setup};
use crate::journal::Task;
use crate::network::{Hop, Weather};
use crate::support::faketime;
use crate::timings::PROMPT;
use crate::trap::{FAILPOINTS, Release, Row, Side};

/// How often things are looked after.
const TICK: Duration = Duration::from_millis(50);
/// How often the operator looks at the clients.
const ROUND: Duration = Duration::from_secs(3);
/// How long an aimed blow waits for a refresh to come by.
const AIM: Duration = Duration::from_secs(5);

/// One daemon's place: who fills it, and how that one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Up(Task),
    Stopped(Task, Duration),
    Draining(Task),
    Down,
}

/// What is to be done later.
#[derive(Clone, Copy, Debug)]
enum Later {
    Start(usize),
    Continue(usize),
    Mend(Task, Hop),
    SetRight(Task),
}

struct Storm<'a> {
    fleet: &'a mut Fleet,
    rng: StdRng,
    slots: Vec<Slot>,
    later: Vec<(Duration, Later)>,
    rolling: VecDeque<usize>,
    complaints: Vec<String>,
    progress: bool,
}

/// Lives through a storm, comes to rest, and is judged.
pub(crate) async fn run(setup: &Setup, daemons: usize, length: Duration, seed: u64) -> (Evidence, Verdict) {
    let mut fleet = Fleet::prepare(setup).await;
    let rng = StdRng::seed_from_u64(seed);
    let mut slots = Vec::new();
    for _ in 0..daemons {
        slots.push(Slot::Up(fleet.start().await));
    }
    let (later, rolling, complaints) = (Vec::new(), VecDeque::new(), Vec::new());
    let progress = setup.progress;
    let mut storm = Storm { fleet: &mut fleet, rng, slots, later, rolling, complaints, progress };
    storm.rage(length).await;
    storm.calm().await;
    let (running, mut complaints) = (storm.running(), storm.complaints);
    fleet.journal.fault("calm: waiting for rest".to_owned());
    let at_rest = settle(&mut fleet).await;
    let (evidence, more) = collect(&mut fleet, at_rest, &running).await;
    complaints.extend(more);
    let mut verdict = judge(&evidence);
    verdict.complaints.extend(complaints);
    (evidence, verdict)
}

impl Storm<'_> {
    async fn rage(&mut self, length: Duration) {
        let began = self.fleet.journal.now();
        let mut next_blow = began + Duration::from_secs(4);
        let mut next_round = began + ROUND;
        while self.fleet.journal.now() < began + length {
            self.tend().await;
            if self.fleet.journal.now() >= next_round {
                self.operate().await;
                next_round = self.fleet.journal.now() + ROUND;
            }
            if self.fleet.journal.now() >= next_blow {
                self.strike().await;
                next_blow = self.fleet.journal.now() + self.draw_seconds(1.5, 4.5);
            }
            self.show_progress(self.fleet.journal.now().saturating_sub(began), length);
            tokio::time::sleep(TICK).await;
        }
    }

    /// For people who watch; a trace tells more.
    fn show_progress(&self, elapsed: Duration, length: Duration) {
        if !self.progress {
            return;
        }
        let (granted, faults) = self.fleet.journal.progress();
        let (elapsed, length) = (elapsed.as_secs(), length.as_secs());
        eprint!("\r{elapsed} s of {length}: {granted} redemptions, {faults} blows  ");
    }

    /// Mends everything, and waits until every place is filled.
    async fn calm(&mut self) {
        self.fleet.network.clear_all();
        self.rolling.clear();
        for (at, _) in &mut self.later {
            *at = Duration::ZERO;
        }
        let bound = self.fleet.journal.now() + self.fleet.timings.drain + PROMPT;
        loop {
            self.tend().await;
            if self.slots.iter().all(|slot| matches!(slot, Slot::Up(_))) {
                return;
            }
            if self.fleet.journal.now() > bound {
                self.complaints.push(format!("not every place was filled again: {:?}", self.slots));
                return;
            }
            tokio::time::sleep(TICK).await;
        }
    }

    fn running(&self) -> Vec<Task> {
        self.slots
            .iter()
            .filter_map(|slot| if let Slot::Up(task) = slot { Some(*task) } else { None })
            .collect()
    }

    /// Does what is due, and looks after every place.
    async fn tend(&mut self) {
        let now = self.fleet.journal.now();
        let (due, later) = self.later.drain(..).partition(|(at, _)| *at <= now);
        self.later = later;
        for (_, what) in due {
            self.end(what).await;
        }
        for place in 0..self.slots.len() {
            self.look_after(place).await;
        }
        self.roll();
    }

    async fn end(&mut self, what: Later) {
        match what {
            Later::Start(place) if self.slots[place] == Slot::Down => {
                self.slots[place] = Slot::Up(self.fleet.start().await);
            }
            Later::Start(_) => {}
            Later::Continue(place) => {
                if let Slot::Stopped(task, from) = self.slots[place] {
                    self.fleet.run(task).process.signal("CONT");
                    self.fleet.journal.stopped(task, from);
                    self.fleet.journal.fault(format!("task {task} goes on"));
                    self.slots[place] = Slot::Up(task);
                }
            }
            Later::Mend(task, hop) => self.fleet.network.clear(task, hop),
            Later::SetRight(task) => self.fleet.skew(task, 0),
        }
    }

    /// A daemon that ends without being asked to is a failure; one that was asked to is replaced.
    async fn look_after(&mut self, place: usize) {
        match self.slots[place] {
            Slot::Up(task) if self.fleet.run(task).process.has_ended() => {
                let words = self.last_words(task);
                self.complaints.push(format!("task {task} ended by itself: {words}"));
                self.slots[place] = Slot::Up(self.fleet.start().await);
            }
            Slot::Draining(task) if self.fleet.run(task).process.has_ended() => {
                let code = self.fleet.run(task).process.exit_code(PROMPT).await;
                if code != 0 {
                    let words = self.last_words(task);
                    self.complaints.push(format!("task {task} ended with {code}: {words}"));
                }
                self.slots[place] = Slot::Up(self.fleet.start().await);
            }
            _ => {}
        }
    }

    fn last_words(&mut self, task: Task) -> String {
        let errors = self.fleet.run(task).process.errors();
        errors.lines().rev().take(3).collect::<Vec<_>>().join("\n")
    }

    /// The next place of a rolling restart, once the one before is filled again.
    fn roll(&mut self) {
        if self.slots.iter().any(|slot| matches!(slot, Slot::Draining(_))) {
            return;
        }
        let Some(place) = self.rolling.pop_front() else { return };
        if let Slot::Up(task) = self.slots[place] {
            self.fleet.run(task).process.signal("TERM");
            self.slots[place] = Slot::Draining(task);
        }
    }

    /// An operator who never sleeps: customers consent again, and what is held is tried again.
    async fn operate(&mut self) {
        for id in self.fleet.ids.clone() {
            match self.fleet.stands(&id).await {
                Standing::Dead => {
                    self.fleet.journal.fault(format!("{id} is lost: its customer consents again"));
                    self.fleet.consent_again(&id).await;
                }
                Standing::Held => {
                    self.fleet.journal.fault(format!("{id} is held: the operator lets it be tried"));
                    self.fleet.retry(&id);
                }
                _ => {}
            }
        }
    }

    async fn strike(&mut self) {
        let up: Vec<_> =
            (0..self.slots.len()).filter(|place| matches!(self.slots[*place], Slot::Up(_))).collect();
        let Some(place) = self.pick(&up) else { return };
        let Slot::Up(task) = self.slots[place] else { return };
        // Somebody has to do the work, or nothing is tested.
        let may_fall = up.len() > self.slots.len().div_ceil(2);
        // A stop may be long: kills are to fall meanwhile.
        let stopped = self.slots.iter().any(|slot| matches!(slot, Slot::Stopped(..)));
        match self.rng.random_range(0..100) {
            0..25 if may_fall => self.kill(place, task).await,
            25..45 if may_fall && !stopped => self.stop(place, task).await,
            45..52 if self.rolling.is_empty() => {
                self.fleet.journal.fault("a rolling restart begins".to_owned());
                self.rolling = (0..self.slots.len()).collect();
            }
            52..62 if faketime::library().is_some() => self.step_clock(task),
            _ => self.change_weather(task),
        }
    }

    async fn kill(&mut self, place: usize, task: Task) {
        let (aim, release) = (self.draw_aim(), self.draw_release());
        let mut trap = aim.map(|aim| self.fleet.network.traps.set(task, aim));
        let caught = match &mut trap {
            Some(trap) => tokio::time::timeout(AIM, trap.caught()).await.ok().flatten(),
            None => None,
        };
        self.fleet.journal.fault(format!("task {task} is killed{}", told(aim, caught.as_deref())));
        self.fleet.kill(task).await;
        if let Some(trap) = trap.filter(|_| caught.is_some()) {
            trap.release(release);
        }
        self.slots[place] = Slot::Down;
        let at = self.fleet.journal.now() + self.draw_seconds(0.0, 4.0);
        self.later.push((at, Later::Start(place)));
    }

    /// For up to three times the take-over wait; more often for less.
    async fn stop(&mut self, place: usize, task: Task) {
        let aim = self.draw_aim();
        let mut trap = aim.map(|aim| self.fleet.network.traps.set(task, aim));
        let caught = match &mut trap {
            Some(trap) => tokio::time::timeout(AIM, trap.caught()).await.ok().flatten(),
            None => None,
        };
        let longest = self.fleet.timings.take_over.as_secs_f64() * 3.0;
        let share = self.rng.random::<f64>();
        let length = Duration::from_secs_f64((longest * share * share).max(0.3));
        let what = told(aim, caught.as_deref());
        self.fleet.journal.fault(format!("task {task} is stopped for {:.1} s{what}", length.as_secs_f64()));
        let from = self.fleet.journal.now();
        self.fleet.run(task).process.signal("STOP");
        if let Some(trap) = trap.filter(|_| caught.is_some()) {
            trap.release(Release::Deliver);
        }
        self.slots[place] = Slot::Stopped(task, from);
        self.later.push((from + length, Later::Continue(place)));
    }

    fn step_clock(&mut self, task: Task) {
        let seconds = [-45, -20, -8, -3, 3, 8, 20, 45][self.rng.random_range(0..8)];
        self.fleet.journal.fault(format!("task {task} has its clock stepped by {seconds} s"));
        self.fleet.skew(task, seconds);
        let at = self.fleet.journal.now() + self.draw_seconds(2.0, 15.0);
        self.later.push((at, Later::SetRight(task)));
    }

    fn change_weather(&mut self, task: Task) {
        let hop = if self.rng.random_bool(0.5) { Hop::Store } else { Hop::Provider };
        let slow = Weather::Slow(self.draw_seconds(0.0, 1.5), self.draw_seconds(0.0, 1.5));
        let kinds = [
            Weather::Cut,
            slow,
            Weather::HalfClose,
            Weather::LoseReply,
            Weather::Silence,
            Weather::Throttle,
            Weather::Unavailable,
        ];
        let weather = kinds[self.rng.random_range(0..kinds.len())];
        // Longer than the spill waits, now and then; longer than a drain, never.
        let long = hop == Hop::Store && self.rng.random_bool(0.3);
        let length = if long { self.draw_seconds(11.0, 16.0) } else { self.draw_seconds(0.5, 4.0) };
        let seconds = length.as_secs_f64();
        self.fleet
            .journal
            .fault(format!("task {task} has {weather:?} before its {hop:?} for {seconds:.1} s"));
        self.fleet.network.set(task, hop, weather);
        self.later.push((self.fleet.journal.now() + length, Later::Mend(task, hop)));
    }

    fn pick(&mut self, among: &[usize]) -> Option<usize> {
        (!among.is_empty()).then(|| among[self.rng.random_range(0..among.len())])
    }

    /// Three blows of four are aimed.
    fn draw_aim(&mut self) -> Option<(Row, Side)> {
        self.rng.random_bool(0.75).then(|| FAILPOINTS[self.rng.random_range(0..FAILPOINTS.len())])
    }

    /// What is held may still arrive after the death of whoever sent it.
    fn draw_release(&mut self) -> Release {
        if self.rng.random_bool(0.5) { Release::Deliver } else { Release::Drop }
    }

    fn draw_seconds(&mut self, from: f64, to: f64) -> Duration {
        Duration::from_secs_f64(self.rng.random_range(from..to))
    }
}

fn told(aim: Option<(Row, Side)>, caught: Option<&str>) -> String {
    match (aim, caught) {
        (Some((row, side)), Some(client)) => format!(" at {row:?} {side:?} of {client}"),
        _ => String::new(),
    }
}
