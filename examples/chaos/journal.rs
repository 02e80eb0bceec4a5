//! What was seen to happen: on every hop, and by our own hand. The checker judges nothing else.
//!
//! All times are of one steady clock, counted from the beginning of the run.

#![allow(clippy::disallowed_methods, reason = "real processes live in real time")]

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::meaning::{Call, Fate, Mark};

/// A process from its start to its end; 0 is the operator's command line.
pub(crate) type Task = u32;

/// A token request that reached the proxy.
#[derive(Clone, Debug)]
pub(crate) struct Send {
    pub(crate) request: u64,
    pub(crate) task: Task,
    pub(crate) client: String,
    /// `<incarnation>#<nonce>` of the attempt that sends.
    pub(crate) attempt: String,
    pub(crate) presented: Mark,
    /// How long the sender's log was then: what lies below was written before it sent.
    pub(crate) log_len: u64,
    pub(crate) arrived: Duration,
    /// Whether it went on to the provider.
    pub(crate) forwarded: bool,
    /// When the provider had answered, whether with tokens, and with which refresh token.
    pub(crate) answered: Option<Duration>,
    pub(crate) accepted: bool,
    pub(crate) granted: Option<Mark>,
    /// When the proxy kept the answer back, and by which fault.
    pub(crate) withheld: Option<(Duration, &'static str)>,
}

/// A write that reached the table.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) at: Duration,
    pub(crate) task: Task,
    pub(crate) call: Call,
    pub(crate) fate: Fate,
}

/// What we did to a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interruption {
    pub(crate) task: Task,
    pub(crate) from: Duration,
    /// When a stopped process was continued; a killed one never is.
    pub(crate) to: Option<Duration>,
}

/// A customer's consent.
#[derive(Clone, Debug)]
pub(crate) struct Consent {
    pub(crate) client: String,
    pub(crate) token: Mark,
    pub(crate) at: Duration,
}

/// Everything that was seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) sends: Vec<Send>,
    pub(crate) writes: Vec<Write>,
    pub(crate) interruptions: Vec<Interruption>,
    pub(crate) consents: Vec<Consent>,
    /// Which consent a refresh token descends from.
    pub(crate) descent: HashMap<Mark, usize>,
    /// Injected faults by name.
    pub(crate) faults: Vec<(Duration, String)>,
}

/// Takes the notes.
pub(crate) struct Journal {
    began: Instant,
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    seen: Seen,
    /// The last attempt of a task on a client, and whether it has sent.
    attempts: HashMap<(Task, String), (String, bool)>,
    logs: HashMap<Task, PathBuf>,
    /// Print as it happens.
    aloud: bool,
}

impl Journal {
    pub(crate) fn new(aloud: bool) -> Self {
        let notes = Notes { aloud, ..Notes::default() };
        Self { began: Instant::now(), notes: Mutex::new(notes) }
    }

    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub(crate) fn seen(&self) -> Seen {
        self.notes().seen.clone()
    }

    /// How much has been seen: redemptions granted, and faults injected.
    pub(crate) fn progress(&self) -> (usize, usize) {
        let notes = self.notes();
        let granted = notes.seen.sends.iter().filter(|send| send.granted.is_some()).count();
        (granted, notes.seen.faults.len())
    }

    pub(crate) fn consent(&self, client: &str, token: &str) {
        let (at, token) = (self.now(), Mark::of(token));
        let mut notes = self.notes();
        let number = notes.seen.consents.len();
        notes.seen.consents.push(Consent { client: client.to_owned(), token, at });
        notes.seen.descent.insert(token, number);
    }

    pub(crate) fn logs_to(&self, task: Task, log: PathBuf) {
        self.notes().logs.insert(task, log);
    }

    pub(crate) fn log_len(&self, task: Task) -> Option<u64> {
        let log = self.notes().logs.get(&task).cloned()?;
        std::fs::metadata(log).ok().map(|metadata| metadata.len())
    }

    /// An acquire is on its way: what the task sends next for that client is this attempt's.
    pub(crate) fn acquiring(&self, task: Task, client: &str, owner: &str) {
        self.notes().attempts.insert((task, client.to_owned()), (owner.to_owned(), false));
    }

    /// Whether a task has begun an attempt on a client and not sent yet.
    pub(crate) fn is_before_send(&self, task: Task, client: &str) -> bool {
        self.notes().attempts.get(&(task, client.to_owned())).is_some_and(|(_, sent)| !sent)
    }

    pub(crate) fn wrote(&self, task: Task, call: Call, fate: Fate) {
        let at = self.now();
        self.notes().seen.writes.push(Write { at, task, call, fate });
    }

    /// Numbers a token request.
    pub(crate) fn arrived(&self, task: Task, presented: Mark, log_len: u64) -> u64 {
        let arrived = self.now();
        let mut notes = self.notes();
        let consent = notes.seen.descent.get(&presented).copied();
        let client = consent.map(|number| notes.seen.consents[number].client.clone()).unwrap_or_default();
        let attempt = notes.attempts.get_mut(&(task, client.clone())).map(|(owner, sent)| {
            *sent = true;
            owner.clone()
        });
        let request = notes.seen.sends.len() as u64;
        notes.seen.sends.push(Send {
            request,
            task,
            client,
            attempt: attempt.unwrap_or_default(),
            presented,
            log_len,
            arrived,
            forwarded: false,
            answered: None,
            accepted: false,
            granted: None,
            withheld: None,
        });
        request
    }

    pub(crate) fn client_of(&self, request: u64) -> String {
        self.with_send(request, |send| send.client.clone())
    }

    pub(crate) fn forwarded(&self, request: u64) {
        self.with_send(request, |send| send.forwarded = true);
    }

    pub(crate) fn answered(&self, request: u64, accepted: bool, granted: Option<Mark>) {
        let at = self.now();
        let presented = self.with_send(request, |send| {
            (send.answered, send.accepted, send.granted) = (Some(at), accepted, granted);
            send.presented
        });
        let mut notes = self.notes();
        if let (Some(granted), Some(consent)) = (granted, notes.seen.descent.get(&presented).copied()) {
            notes.seen.descent.insert(granted, consent);
        }
    }

    pub(crate) fn withheld(&self, request: u64, fault: &'static str) {
        let at = self.now();
        self.with_send(request, |send| send.withheld = Some((at, fault)));
    }

    /// How long ago a token request arrived.
    pub(crate) fn age(&self, request: u64) -> Duration {
        self.now().saturating_sub(self.with_send(request, |send| send.arrived))
    }

    fn with_send<T>(&self, request: u64, change: impl FnOnce(&mut Send) -> T) -> T {
        let number = usize::try_from(request).expect("it was an index");
        change(&mut self.notes().seen.sends[number])
    }

    pub(crate) fn killed(&self, task: Task) {
        let from = self.now();
        self.notes().seen.interruptions.push(Interruption { task, from, to: None });
    }

    pub(crate) fn stopped(&self, task: Task, from: Duration) {
        let to = Some(self.now());
        self.notes().seen.interruptions.push(Interruption { task, from, to });
    }

    /// Notes what is done to the fleet.
    pub(crate) fn fault(&self, what: String) {
        let at = self.now();
        let mut notes = self.notes();
        if notes.aloud {
            eprintln!("{:>8.2}s {what}", at.as_secs_f64());
        }
        notes.seen.faults.push((at, what));
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
