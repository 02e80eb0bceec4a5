//! What becomes of a client when a job of its ends: a refresh, a look, or a panic.

use std::time::Duration;

use tokio::task::{Id, JoinError};
use tracing::{error, info, warn};

use super::Scheduler;
use super::gate::Pass;
use super::slot::{Done, Pace, Phase};
use crate::client::ClientId;
use crate::plan::schedule::{Due, due};
use crate::provider::TokenEndpoint;
use crate::refresh::{Known, Outcome, Report};
use crate::store::Store;

impl<S: Store, E: TokenEndpoint> Scheduler<S, E> {
    pub(super) fn finish(&mut self, done: Result<(Id, Done), JoinError>) {
        let id = match &done {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some((slot, pass)) = self.running.remove(&id) else { return };
        match done {
            Ok((_, Done::Refreshed(report))) => self.finish_refresh(slot, pass, *report),
            Ok((_, Done::NotBegun)) => self.finish_unbegun(slot, pass),
            Ok((_, Done::Looked(looked))) => self.finish_look(slot, looked),
            Err(error) => self.finish_panic(slot, pass, &error),
        }
    }

    fn finish_refresh(&mut self, slot: u32, pass: Option<Pass>, report: Report) {
        let (moment, unit) = (self.clock.moment(), self.entropy.unit());
        let Some(place) = self.place_mut(slot) else { return };
        place.phase = Phase::Waiting;
        let stale = std::mem::take(&mut place.stale);
        let id = place.known.client.id.clone();
        if let Some(pass) = pass {
            self.gate.ended(&pass, report.reply.as_ref(), moment, unit);
        }
        self.count(&id, &report.outcome);
        if self.dismiss(slot) {
            return;
        }
        let learnt = report.known.is_some();
        if let (Some(place), Some(known)) = (self.place_mut(slot), report.known) {
            place.known = known;
        }
        if self.ends_with(&report.outcome) {
            return;
        }
        match report.outcome {
            _ if stale => self.look(slot),
            // The store may be in trouble.
            Outcome::StoreUnavailable(_) => self.wake_later(slot),
            _ if learnt => self.reschedule(slot, Pace::Again),
            _ => self.look(slot),
        }
    }

    /// It waits in its lane until the task may acquire again.
    fn finish_unbegun(&mut self, slot: u32, pass: Option<Pass>) {
        let (moment, unit) = (self.clock.moment(), self.entropy.unit());
        let Some(place) = self.place_mut(slot) else { return };
        place.phase = Phase::Waiting;
        let stale = std::mem::take(&mut place.stale);
        if let Some(pass) = pass {
            self.gate.ended(&pass, None, moment, unit);
        }
        if self.dismiss(slot) {
            return;
        }
        if stale { self.look(slot) } else { self.reschedule(slot, Pace::Prompt) }
    }

    /// In a run that ends, a client that was tried is done with, whatever came of it.
    fn ends_with(&self, outcome: &Outcome) -> bool {
        self.settings.once.is_some() && !matches!(outcome, Outcome::Conflict)
    }

    fn count(&mut self, id: &ClientId, outcome: &Outcome) {
        self.pulse.ended(outcome);
        match outcome.code() {
            Some(code) if self.settings.once.is_some() => {
                self.summary.unfinished.insert(id.clone(), format!("{}: {code}", outcome.name()));
            }
            _ => {
                self.summary.unfinished.remove(id);
            }
        }
    }

    fn finish_look(&mut self, slot: u32, looked: Result<Option<Box<Known>>, String>) {
        let moment = self.clock.moment();
        let Some(place) = self.place_mut(slot) else { return };
        place.phase = Phase::Waiting;
        let id = place.known.client.id.clone();
        let stale = std::mem::take(&mut place.stale);
        if self.dismiss(slot) {
            return;
        }
        if stale {
            return self.look(slot);
        }
        match looked {
            Ok(Some(known)) => self.finish_good_look(slot, *known),
            Ok(None) => self.forget(&id),
            Err(problem) if self.waited_out(moment) => self.give_up_on(slot, &problem),
            Err(problem) => {
                warn!(client = %id, problem, "could not be read again: will be looked at later");
                self.wake_later(slot);
            }
        }
    }

    fn finish_good_look(&mut self, slot: u32, known: Known) {
        let (now, moment) = (self.clock.now(), self.clock.moment());
        let Some(place) = self.place_mut(slot) else { return };
        place.known = known;
        let same = place.silent.is_some_and(|(seen, _)| seen == place.known.lease.generation);
        let in_doubt = due(&place.known.client, &place.known.lease, &place.known.token) == Due::InDoubt;
        let id = place.known.client.id.clone();
        if same && in_doubt && self.take_over_in(slot, moment, now) == Some(Duration::ZERO) {
            info!(client = %id, "its owner has fallen silent: taking over");
            self.pulse.took_over();
            self.enter_lane(slot);
        } else {
            self.reschedule(slot, Pace::Again);
        }
    }

    fn finish_panic(&mut self, slot: u32, pass: Option<Pass>, error: &JoinError) {
        let (moment, unit) = (self.clock.moment(), self.entropy.unit());
        let Some(place) = self.place_mut(slot) else { return };
        place.phase = Phase::Waiting;
        let id = place.known.client.id.clone();
        error!(alarm = "panic", client = %id, %error, "a refresh panicked: its client will be read again");
        if let Some(pass) = pass {
            self.gate.ended(&pass, None, moment, unit);
        }
        self.pulse.panicked();
        if self.dismiss(slot) {
            return;
        }
        if self.settings.once.is_some() {
            self.summary.unfinished.insert(id, "its refresh panicked".to_owned());
        } else {
            self.wake_later(slot);
        }
    }
}
