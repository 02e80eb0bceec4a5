//! What a task does: the driver of an attempt, in the order of `src/refresh.rs`, a step at a time.
//!
//! A step ends where the flow awaits something. Between two steps anything may happen, for any number of ticks: a task
//! that is paused is one that makes no step. The one thing that is not interrupted is a look at the clock and the
//! system call after it, see [`Control::LateSend`].

use perennial::plan::Lifetimes;
use perennial::plan::in_doubt::{Risk, Silent, take_over_in};
use perennial::plan::lease::{self, Commit, Intent, Release, Standing, standing};
use perennial::plan::outcome::{self, Go, Judge, Verdict};
use perennial::plan::schedule::{self, Due, due, wanted_at};
use perennial::record::{Gen, Lease};
use perennial::reply::{Reply, Tokens};
use perennial::time::{Moment, Timestamp};

use super::control::{Control, misread};
use super::fleet::{BEGUN, Event, Fate, Fleet, LEASE, Move, NOW, Way, at, ticks};
use super::laws::Law;
use super::provider::Answer;
use super::table::{Applied, Shared, Table, id};
use super::world::{Going, Order, Purpose, Request, Step, Task, World};

impl Fleet {
    pub(crate) fn moves_of_a_task(&self, world: &World, number: usize, moves: &mut Vec<Move>) {
        let (task, left) = (&world.tasks[number], &world.left);
        let faulty = left.store_faults > 0;
        let mut with_faults = |make: fn(usize, Way) -> Move, ways: &[Way]| {
            moves.push(make(number, Way::There));
            if faulty {
                moves.extend(ways.iter().map(|way| make(number, *way)));
            }
        };
        match &task.step {
            Step::Idle => {
                if task.known.as_ref() != Some(&world.table) {
                    moves.push(Move::Look(number));
                }
                if left.acquires > 0 && self.may_begin(world, task) {
                    moves.push(Move::Begin(number));
                }
                return;
            }
            Step::Acquiring { unanswered, .. } => {
                if unanswered.is_none() || task.age < 1 {
                    let ways = [Way::Nowhere, Way::Silently, Way::Late, Way::Twice];
                    with_faults(Move::Acquire, &ways);
                }
                if unanswered.is_some() && task.age >= 1 {
                    with_faults(Move::Abandon, &[Way::Nowhere, Way::Late]);
                }
            }
            Step::Reading { .. } => {
                moves.push(Move::Read(number));
                if faulty && task.age >= 1 {
                    moves.push(Move::ReadInVain(number));
                }
            }
            Step::Sending { .. } => moves.push(Move::Send(number)),
            Step::Waiting { answer: Some(_), .. } => moves.push(Move::Receive(number)),
            Step::Waiting { .. } => {
                moves.push(Move::Deliver(number, Fate::Answered));
                if left.provider_faults > 0 {
                    let fates = [Fate::ReplyLost, Fate::RequestLost, Fate::Late, Fate::Fault, Fate::NotSent];
                    moves.extend(fates.map(|fate| Move::Deliver(number, fate)));
                }
            }
            Step::Pausing { .. } => moves.push(Move::SendAgain(number)),
            Step::Rechecking { .. } => {
                moves.push(Move::Recheck(number));
                if faulty {
                    moves.push(Move::RecheckInVain(number));
                }
            }
            Step::Committing { .. } => {
                with_faults(Move::Commit, &[Way::Silently, Way::Late, Way::Twice]);
            }
            Step::Releasing { .. } => {
                with_faults(Move::Release, &[Way::Silently, Way::Late, Way::Twice]);
                if faulty && task.age >= LEASE {
                    moves.push(Move::LetGo(number));
                }
            }
        }
        moves_of_death(world, number, moves);
    }

    /// As the scheduler does it, but that a backoff may be over at any time, and a patient wait too.
    fn may_begin(&self, world: &World, task: &Task) -> bool {
        let Some((known, client, lease, token)) = task.known.as_ref().and_then(|known| {
            Some((known, known.read.client()?, known.lease()?, known.read.token.as_ref()?))
        }) else {
            return false;
        };
        match due(client, lease, token) {
            Due::At(_) => wanted_at(client, token) <= at(world.hour),
            Due::InDoubt if self.lacks(Control::NoWait) || self.lacks(Control::Clock) => true,
            Due::InDoubt => {
                let Some((seen, waited)) = task.silent else { return false };
                let silent = Silent {
                    lease: std::time::Duration::from_millis(lease.lease_ms.unsigned_abs()),
                    first_seen: BEGUN,
                    expires_at: token.expires_at,
                };
                let (risk, now) = (Risk::of(&self.provider, client.grant), at(world.hour));
                let moment = BEGUN.plus(ticks(waited));
                debug_assert_eq!(seen, known.lease().map_or(Gen::NONE, |lease| lease.generation));
                take_over_in(&silent, &risk, &self.timing, false, moment, now).is_zero()
            }
            Due::Recheck | Due::Never => false,
        }
    }

    pub(crate) fn step(&self, world: &mut World, step: Move) {
        match step {
            Move::Look(number) => look(world, number),
            Move::Begin(number) => begin(world, number),
            Move::Acquire(number, way) => self.acquire(world, number, way),
            Move::Abandon(number, way) => self.abandon(world, number, way),
            Move::Read(number) => self.read(world, number),
            Move::ReadInVain(number) => self.read_in_vain(world, number),
            Move::Send(number) => self.send(world, number),
            Move::Deliver(number, fate) => self.deliver(world, number, fate),
            Move::Receive(number) => self.receive(world, number),
            Move::SendAgain(number) => self.send_again(world, number),
            Move::Recheck(number) => self.recheck(world, number),
            Move::RecheckInVain(number) => self.recheck_in_vain(world, number),
            Move::Commit(number, way) => self.commit(world, number, way),
            Move::Release(number, way) => self.release(world, number, way),
            Move::LetGo(number) => rest(&mut world.tasks[number]),
            Move::Crash(number, late) => self.crash(world, number, late),
            other => panic!("{other:?} is no step of a task"),
        }
    }

    fn acquire(&self, world: &mut World, number: usize, way: Way) {
        let Step::Acquiring { seen, unanswered } = world.tasks[number].step.clone() else {
            panic!("no acquire")
        };
        let nonce = unanswered.unwrap_or_else(|| unused_nonce(world));
        let owner = owner(nonce);
        let intent = Intent { owner: owner.clone(), lease: self.timing.lease(), now: NOW };
        let known = seen.lease().expect("it was seen");
        let Some((change, held)) = lease::acquire(&id(), known, seen.tok_gen(), &intent) else {
            return rest(&mut world.tasks[number]);
        };
        let took_over = standing(known, seen.tok_gen()) == Standing::InDoubt;
        let order = Shared::new(Order { purpose: Purpose::Acquire, change }, number);
        let applied = self.submit(world, Some(number), &order, way);
        let stands = world.table.lease().cloned();
        let mine = stands.as_ref().and_then(|lease| lease.owner.as_ref()) == Some(&owner);
        world.tasks[number].step = match applied {
            None => Step::Acquiring { seen, unanswered: Some(nonce) },
            Some(Applied::Lost) if !mine => return rest(&mut world.tasks[number]),
            Some(applied) => {
                if matches!(applied, Applied::Lost) {
                    self.witness(Event::OwnAcquire);
                }
                if took_over {
                    self.witness(Event::TakeOver);
                }
                self.compare_memory(world, &held);
                Step::Reading { held: Shared::new(held, ()) }
            }
        };
    }

    /// What the task believes to stand there now is what its next attempt begins from.
    fn compare_memory(&self, world: &mut World, remembered: &Lease) {
        if self.control.is_none() && world.table.lease() != Some(remembered) {
            world.history.broke(Law::Memory);
        }
    }

    fn abandon(&self, world: &mut World, number: usize, way: Way) {
        let Step::Acquiring { unanswered: Some(nonce), .. } = world.tasks[number].step else {
            panic!("no acquire")
        };
        let change = lease::abandon(&id(), &owner(nonce));
        let order = Shared::new(Order { purpose: Purpose::Abandon, change }, number);
        // Whatever becomes of it, nothing was sent.
        let _applied = self.submit(world, Some(number), &order, way);
        rest(&mut world.tasks[number]);
    }

    fn read(&self, world: &mut World, number: usize) {
        let Step::Reading { held } = world.tasks[number].step.clone() else { panic!("no lease") };
        let read = misread(self.control, held.generation, world.table.read.clone());
        let go = outcome::after_read(read, &held, &self.provider, &self.backoff, BEGUN, at(world.hour), 0.0);
        world.tasks[number].step = match go {
            Go::Drop(_) => {
                self.witness(Event::FencedOut);
                return rest(&mut world.tasks[number]);
            }
            Go::Release(release) => releasing(held, release),
            Go::Send(attempt) => {
                let source = (held.clone(), world.table.clone());
                Step::Sending { going: Going::new(held, Shared::made_from(*attempt, source)) }
            }
        };
    }

    fn read_in_vain(&self, world: &mut World, number: usize) {
        world.left.store_faults -= 1;
        let Step::Reading { held } = world.tasks[number].step.clone() else { panic!("no lease") };
        world.tasks[number].step = releasing(held, Release::NotNeeded);
    }

    fn send(&self, world: &mut World, number: usize) {
        let Step::Sending { going } = world.tasks[number].step.clone() else { panic!("nothing to send") };
        let age = ticks(world.tasks[number].age);
        if age > self.timing.window() && !self.lacks(Control::LateSend) {
            self.witness(Event::WindowMissed);
            world.tasks[number].step = releasing(going.held, Release::NotNeeded);
            return;
        }
        let announced = going.attempt.begins_with().is_some();
        if announced {
            self.witness(Event::SendInDoubt);
        }
        self.dispatch(world, number, going, announced);
    }

    /// The request leaves.
    fn dispatch(&self, world: &mut World, number: usize, going: Going, announced: bool) {
        let request = Request { token: going.token(), announced };
        self.look_for_others(world, number, &going);
        world.tasks[number].step = Step::Waiting { going, request, answer: None, aged: false };
    }

    /// [`Law::Alone`]: no other attempt that may still be waiting or sending has the same token within its lease, and
    /// this one's lease has not been taken over.
    fn look_for_others(&self, world: &mut World, number: usize, going: &Going) {
        let token = going.token();
        let in_use = |(other, task): (usize, &Task)| {
            other != number && task.age < LEASE && task.going().is_some_and(|going| going.token() == token)
        };
        let others = world.tasks.iter().enumerate().any(in_use);
        let same_token = world.table.refresh_token() == Some(token);
        let taken = world.table.lease().is_some_and(|lease| lease.generation > going.held.generation);
        if others || (same_token && taken) {
            world.history.broke(Law::Alone);
        }
    }

    fn deliver(&self, world: &mut World, number: usize, fate: Fate) {
        let Step::Waiting { request, .. } = world.tasks[number].step else { panic!("nothing was sent") };
        if fate != Fate::Answered {
            world.left.provider_faults -= 1;
        }
        let answered = match fate {
            Fate::Answered => self.redeem(world, request),
            Fate::ReplyLost => {
                let lost = self.redeem(world, request);
                self.lose(world, Some(lost));
                Answer::Silence
            }
            Fate::RequestLost => Answer::Silence,
            Fate::Late => {
                world.late_requests.push(request);
                world.late_requests.sort();
                Answer::Silence
            }
            Fate::Fault => Answer::Fault,
            Fate::NotSent => Answer::NotSent,
        };
        if let Step::Waiting { answer, aged, .. } = &mut world.tasks[number].step {
            (*answer, *aged) = (Some(answered), false);
        }
    }

    fn receive(&self, world: &mut World, number: usize) {
        let Step::Waiting { mut going, answer: Some(answer), .. } = world.tasks[number].step.clone() else {
            panic!("nothing was answered")
        };
        let reply = answer.reply();
        going.count(&going.tally().with(&reply));
        world.tasks[number].step = self.judged(reply, answer, going, world.tasks[number].age, world.hour);
    }

    fn judged(&self, reply: Reply, answer: Answer, going: Going, age: u8, hour: u8) -> Step {
        let judge = self.judge(age);
        match outcome::after_send(reply, &going.attempt, &going.tally(), &judge) {
            Verdict::Commit(tokens) => self.committing(going, *tokens, answer, hour),
            Verdict::Replay(_) => Step::Pausing { going, after: answer },
            Verdict::RecheckGrant(_) => Step::Rechecking { going },
            Verdict::RecheckClient(code) => panic!("{code}: the application is never refused here"),
            Verdict::Release(release) => releasing(going.held, release),
        }
    }

    fn judge(&self, age: u8) -> Judge<'_> {
        let moment: Moment = BEGUN.plus(ticks(age));
        Judge { timing: &self.timing, backoff: &self.backoff, moment, now: NOW, unit: 0.0 }
    }

    fn committing(&self, going: Going, tokens: Tokens, answer: Answer, hour: u8) -> Step {
        let (bounds, issued): (Lifetimes, Timestamp) = (Lifetimes::default(), at(hour));
        let lifetime = schedule::lifetime(tokens.lifetime, self.provider.default_lifetime, &bounds);
        let generation = going.held.generation;
        let commit = Commit {
            generation,
            expires_at: issued.plus(lifetime),
            refresh_at: schedule::refresh_at(issued, lifetime, &bounds, false, 0.0),
            now: NOW,
            binding: going.attempt.client.binding(&self.provider),
            grant: going.attempt.client.grant,
            item_exists: going.attempt.token.is_some(),
            tokens,
        };
        let answer = if let Answer::Granted(token) = answer { token } else { None };
        let order = Order { purpose: Purpose::Commit(generation), change: lease::commit(&id(), &commit) };
        Step::Committing { held: going.held, order: Shared::new(order, answer), answer }
    }

    fn send_again(&self, world: &mut World, number: usize) {
        let Step::Pausing { going, after } = world.tasks[number].step.clone() else { panic!("no pause") };
        let judge = self.judge(world.tasks[number].age);
        match outcome::after_send(after.reply(), &going.attempt, &going.tally(), &judge) {
            Verdict::Release(release) => world.tasks[number].step = releasing(going.held, release),
            _ => {
                self.witness(Event::Replay);
                self.dispatch(world, number, going, true);
            }
        }
    }

    fn recheck(&self, world: &mut World, number: usize) {
        let Step::Rechecking { going } = world.tasks[number].step.clone() else { panic!("no refusal") };
        let code = "invalid_grant".to_owned();
        let tally = going.tally();
        let release = outcome::after_grant_recheck(code, &world.table.read, &going.attempt, &tally);
        if release == Release::NotNeeded {
            self.witness(Event::SiblingWon);
        }
        world.tasks[number].step = releasing(going.held, release);
    }

    fn recheck_in_vain(&self, world: &mut World, number: usize) {
        world.left.store_faults -= 1;
        let Step::Rechecking { going } = world.tasks[number].step.clone() else { panic!("no refusal") };
        let judge = self.judge(world.tasks[number].age);
        let release = outcome::unverified(&going.attempt, &going.tally(), &judge);
        world.tasks[number].step = releasing(going.held, release);
    }

    /// Again and again until the table has answered.
    fn commit(&self, world: &mut World, number: usize, way: Way) {
        let Step::Committing { held, order, .. } = world.tasks[number].step.clone() else {
            panic!("nothing to store")
        };
        let taken = world.table.lease().is_some_and(|lease| lease.generation > held.generation);
        match self.submit(world, Some(number), &order, way) {
            None => return,
            Some(Applied::Committed) if taken => self.witness(Event::Salvage),
            Some(Applied::Committed) => {}
            Some(Applied::Lost) => self.look_at_loss(world, held.generation),
        }
        rest(&mut world.tasks[number]);
    }

    /// [`Law::Answer`]: it was stored before, or something newer is, or there is no such client.
    fn look_at_loss(&self, world: &mut World, generation: Gen) {
        match &world.table.read.token {
            None => self.witness(Event::Homeless),
            Some(stored) if stored.generation == generation => self.witness(Event::OwnCommit),
            Some(stored) if stored.generation > generation => self.witness(Event::Superseded),
            Some(_) => world.history.broke(Law::Answer),
        }
    }

    fn release(&self, world: &mut World, number: usize, way: Way) {
        let Step::Releasing { held, release } = world.tasks[number].step.clone() else {
            panic!("nothing to give back")
        };
        let change = lease::release(&id(), held.generation, &release);
        let order = Shared::new(Order { purpose: Purpose::Release, change }, number);
        match self.submit(world, Some(number), &order, way) {
            None => return,
            Some(Applied::Committed) => {
                match &*release {
                    Release::Bury { .. } => self.witness(Event::Buried),
                    Release::Hold { .. } => self.witness(Event::Held),
                    _ => {}
                }
                self.compare_memory(world, &lease::released(&held, &release));
            }
            Some(Applied::Lost) => self.witness(Event::ReleaseRefused),
        }
        rest(&mut world.tasks[number]);
    }

    /// The process ends; another begins in its place and knows nothing.
    fn crash(&self, world: &mut World, number: usize, late: bool) {
        world.left.crashes -= 1;
        match std::mem::take(&mut world.tasks[number]).step {
            Step::Waiting { request, answer: None, .. } if late => {
                world.late_requests.push(request);
                world.late_requests.sort();
            }
            Step::Waiting { answer, .. } => self.lose(world, answer),
            Step::Committing { answer, .. } => self.lose(world, Some(Answer::Granted(answer))),
            _ => {}
        }
    }
}

fn moves_of_death(world: &World, number: usize, moves: &mut Vec<Move>) {
    if world.left.crashes > 0 {
        moves.push(Move::Crash(number, false));
        if let Step::Waiting { answer: None, .. } = world.tasks[number].step {
            moves.push(Move::Crash(number, true));
        }
    }
}

/// A strongly consistent look. The timer of a silent owner is kept across looks.
fn look(world: &mut World, number: usize) {
    let (table, task): (Table, &mut Task) = (world.table.clone(), &mut world.tasks[number]);
    let in_flight = table.lease().filter(|lease| standing(lease, table.tok_gen()) == Standing::InDoubt);
    task.silent = match (in_flight.map(|lease| lease.generation), task.silent) {
        (Some(generation), Some((seen, waited))) if seen == generation => Some((seen, waited)),
        (Some(generation), _) => Some((generation, 0)),
        (None, _) => None,
    };
    task.known = Some(table);
}

fn begin(world: &mut World, number: usize) {
    let task = &mut world.tasks[number];
    let seen = task.known.take().expect("it has looked");
    task.age = 0;
    task.step = Step::Acquiring { seen, unanswered: None };
}

/// Nonces never repeat. Here they do, where no trace of the former use is left, so that states do.
fn unused_nonce(world: &World) -> u8 {
    let stands = world.table.lease().and_then(|lease| lease.owner.clone());
    let traces: Vec<_> = world.late_writes.iter().map(|order| format!("{:?}", order.change)).collect();
    let acquires = |task: &Task, wanted: u8| matches!(task.step, Step::Acquiring { unanswered: Some(nonce), .. } if nonce == wanted);
    let is_used = |nonce: &u8| {
        let owner = owner(*nonce);
        stands.as_ref() == Some(&owner)
            || traces.iter().any(|trace| trace.contains(&owner))
            || world.tasks.iter().any(|task| acquires(task, *nonce))
    };
    (0..=u8::MAX).find(|nonce| !is_used(nonce)).expect("few are in use")
}

/// It ends with a mark, so that no name is the beginning of another.
fn owner(nonce: u8) -> String {
    format!("task#{nonce}.")
}

fn releasing(held: Shared<Lease>, release: Release) -> Step {
    Step::Releasing { held, release: Shared::new(release, ()) }
}

/// The attempt is over. What stands there now has to be looked at.
fn rest(task: &mut Task) {
    *task = Task { silent: task.silent, ..Task::default() };
}
