//! The judge: matches the provider's log, the daemons' logs and the table with what was done to the fleet.
//!
//! Pure: it sees evidence and nothing else, so that it can be shown made-up crimes. What it excuses, it excuses for
//! one reason that it names: a redemption by a replay that the very attempt had logged before the request arrived; a
//! lost grant by a kill or a stop of the very task, or by a fault on the very reply. All else is held against the fleet.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use crate::harvest::Logs;
use crate::journal::{Interruption, Seen, Send, Write};
use crate::meaning::{Call, Fate, Mark};
use crate::provider::Redemption;

/// Two proxies note what they saw one after the other.
const SLACK: Duration = Duration::from_millis(100);

/// How a client stands when everything has come to rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// Its stored refresh token can be redeemed.
    Live(Mark),
    /// The table calls it dead, and the provider agrees.
    Lost(Mark),
    /// Neither, and what is wrong.
    Wrong(String),
}

/// All that there is to know of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evidence {
    pub(crate) seen: Seen,
    pub(crate) logs: Logs,
    pub(crate) redemptions: Vec<Redemption>,
    pub(crate) rest: BTreeMap<String, Rest>,
    /// What a daemon gives an exchange with the provider.
    pub(crate) request_timeout: Duration,
    /// What a taker waits for, at least.
    pub(crate) take_over: Duration,
    /// What an access token lives.
    pub(crate) lifetime: Duration,
    /// When it ended.
    pub(crate) end: Duration,
}

/// The judgement.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) redemptions: usize,
    pub(crate) double_redemptions: usize,
    pub(crate) replays: usize,
    pub(crate) crash_window_injected: usize,
    pub(crate) crash_window_lost: usize,
    pub(crate) reply_lost_injected: usize,
    pub(crate) reply_lost: usize,
    pub(crate) lost_otherwise: usize,
    pub(crate) expired_token: Duration,
    pub(crate) conflicts: usize,
    pub(crate) takeovers: usize,
    pub(crate) takeover_p99: Duration,
    /// Who waited longest, for whoever wonders why.
    pub(crate) slowest_takeover: Option<(Duration, String)>,
    /// Everything that must not be, in words.
    pub(crate) complaints: Vec<String>,
}

impl Verdict {
    pub(crate) fn is_clean(&self) -> bool {
        self.double_redemptions == 0 && self.lost_otherwise == 0 && self.complaints.is_empty()
    }

    /// The line for programs.
    pub(crate) fn summary(&self) -> String {
        format!(
            "summary redemptions={} double_redemptions={} replays={} crash_window_injected={} crash_window_lost={} \
             reply_lost_injected={} reply_lost={} lost_otherwise={} expired_token_seconds={} conflicts={} takeovers={} \
             takeover_p99_s={:.1}",
            self.redemptions,
            self.double_redemptions,
            self.replays,
            self.crash_window_injected,
            self.crash_window_lost,
            self.reply_lost_injected,
            self.reply_lost,
            self.lost_otherwise,
            self.expired_token.as_secs(),
            self.conflicts,
            self.takeovers,
            self.takeover_p99.as_secs_f64(),
        )
    }
}

/// Why an answer of the provider's was not stored in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    CrashWindow,
    ReplyLost,
}

/// Judges a run.
pub(crate) fn judge(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    let case = Case::of(evidence);
    case.match_logs(&mut verdict);
    case.redemptions(&mut verdict);
    case.injections(&mut verdict);
    case.losses(&mut verdict);
    case.leases(&mut verdict);
    verdict.expired_token = case.expired();
    verdict.complaints.extend(evidence.logs.alarms.iter().cloned());
    verdict
}

/// The evidence, with indices.
struct Case<'a> {
    evidence: &'a Evidence,
    /// When new tokens came to stand in the table.
    stored: HashMap<Mark, Duration>,
    /// Requests in the order in which the provider took them, with what it said.
    taken: Vec<(&'a Send, &'a Redemption)>,
}

impl<'a> Case<'a> {
    fn of(evidence: &'a Evidence) -> Self {
        let mut stored = HashMap::new();
        for write in evidence.seen.writes.iter().filter(|write| write.fate == Fate::Landed) {
            if let Call::Commit { token: Some(token), .. } | Call::Outside { token: Some(token), .. } =
                &write.call
            {
                stored.entry(*token).or_insert(write.at);
            }
        }
        let sends = &evidence.seen.sends;
        let send = |redemption: &Redemption| sends.get(usize::try_from(redemption.request?).ok()?);
        let taken =
            evidence.redemptions.iter().filter_map(|redemption| Some((send(redemption)?, redemption)));
        Self { evidence, stored, taken: taken.collect() }
    }

    /// Nobody went around the proxies, and the two logs agree.
    fn match_logs(&self, verdict: &mut Verdict) {
        verdict.redemptions = self.evidence.redemptions.len();
        let around = verdict.redemptions - self.taken.len();
        if around > 0 {
            verdict.complaints.push(format!("{around} redemptions came around the proxy"));
        }
        let mut numbers = HashSet::new();
        for (send, redemption) in &self.taken {
            if !numbers.insert(send.request) {
                verdict.complaints.push(format!("the provider took request {} twice", send.request));
            }
            if send.answered.is_some() && send.accepted != redemption.granted {
                verdict.complaints.push(format!("the provider's log differs from its answer: {send:?}"));
            }
            if send.attempt.is_empty() {
                verdict.complaints.push(format!("sent without an acquire before it: {send:?}"));
            }
        }
        let answered = self.evidence.seen.sends.iter().filter(|send| send.answered.is_some());
        for send in answered.filter(|send| !numbers.contains(&send.request)) {
            verdict.complaints.push(format!("answered, and not in the provider's log: {send:?}"));
        }
    }

    /// No refresh token twice, but by order.
    fn redemptions(&self, verdict: &mut Verdict) {
        let mut spent = HashSet::new();
        for (send, redemption) in &self.taken {
            let announced = self.is_announced(send);
            verdict.replays += usize::from(announced);
            let again = spent.contains(&send.presented);
            if again && !announced {
                verdict.double_redemptions += 1;
                verdict
                    .complaints
                    .push(format!("{}: redeemed twice, and no replay was logged: {send:?}", send.client));
            }
            if redemption.reuse && !again {
                verdict.complaints.push(format!("{}: spent, and nobody saw by whom: {send:?}", send.client));
            }
            // Where the provider does not rotate, the token is as good as before.
            if redemption.granted && (send.granted.is_some() || send.answered.is_none()) {
                spent.insert(send.presented);
            }
        }
    }

    /// Whether the attempt had logged this very send as a replay before it left.
    fn is_announced(&self, send: &Send) -> bool {
        let earlier = self.evidence.seen.sends.iter();
        let earlier = earlier.filter(|other| other.attempt == send.attempt && other.request < send.request);
        let sent_before = earlier.count() as u64;
        let announced = self.evidence.logs.announced.get(&send.attempt).into_iter().flatten();
        // The proxy may have seen fewer sends than the daemon made: a connection can fail before it.
        announced
            .filter(|line| line.ends_at <= send.log_len)
            .any(|line| if sent_before == 0 { true } else { line.sent_before >= sent_before })
    }

    /// What was done to answers that granted something, whether or not it did harm.
    fn injections(&self, verdict: &mut Verdict) {
        for (send, _) in self.taken.iter().filter(|(send, _)| send.granted.is_some()) {
            match self.cause(send) {
                Some(Cause::CrashWindow) => verdict.crash_window_injected += 1,
                Some(Cause::ReplyLost) => verdict.reply_lost_injected += 1,
                None => {}
            }
        }
    }

    /// What kept, or may have kept, an answer from being stored: the first of what was done to it.
    fn cause(&self, send: &Send) -> Option<Cause> {
        let withheld = send.withheld.map(|(at, _)| (at, Cause::ReplyLost));
        let interrupted = self.evidence.seen.interruptions.iter();
        let interrupted = interrupted.filter(|interruption| self.falls_into_window(interruption, send));
        let interrupted =
            interrupted.map(|interruption| (interruption.from, Cause::CrashWindow)).min_by_key(|it| it.0);
        withheld.into_iter().chain(interrupted).min_by_key(|(at, _)| *at).map(|(_, cause)| cause)
    }

    /// Whether that very task was killed, or stopped for longer than its exchange may take, after it had sent and
    /// before the answer was stored.
    fn falls_into_window(&self, interruption: &Interruption, send: &Send) -> bool {
        let stored =
            send.granted.and_then(|granted| self.stored.get(&granted)).copied().unwrap_or(Duration::MAX);
        if interruption.task != send.task || interruption.from >= stored {
            return false;
        }
        match interruption.to {
            // What a task had done with before it was killed, it did wrong by itself.
            None => !self.evidence.logs.ended.contains(&send.attempt),
            Some(to) => {
                let bound = send.arrived + self.evidence.request_timeout.mul_f64(0.75);
                let over = self.next_acquire(send).min(stored);
                to >= bound && interruption.from <= over && send.arrived <= to
            }
        }
    }

    /// When the task began its next attempt on the client: it is done with this one then.
    fn next_acquire(&self, send: &Send) -> Duration {
        let of_this = |write: &&Write| match &write.call {
            Call::Acquire { client, owner, .. } => {
                write.task == send.task
                    && *client == send.client
                    && *owner != send.attempt
                    && write.at > send.arrived
            }
            _ => false,
        };
        self.evidence.seen.writes.iter().find(of_this).map_or(Duration::MAX, |write| write.at)
    }

    /// Which consents are lost, and to what.
    fn losses(&self, verdict: &mut Verdict) {
        let descent = &self.evidence.seen.descent;
        let mut lost: BTreeMap<usize, Duration> = BTreeMap::new();
        for (send, redemption) in self.taken.iter().filter(|(_, redemption)| !redemption.granted) {
            if let Some(consent) = descent.get(&send.presented) {
                lost.entry(*consent).or_insert(if redemption.reuse { send.arrived } else { Duration::MAX });
            }
        }
        for (client, rest) in &self.evidence.rest {
            match rest {
                Rest::Live(mark) => {
                    if descent.get(mark).is_some_and(|consent| lost.contains_key(consent)) {
                        verdict.complaints.push(format!("{client}: live, and refused before"));
                    }
                }
                Rest::Lost(mark) => {
                    if let Some(consent) = descent.get(mark) {
                        lost.entry(*consent).or_insert(Duration::MAX);
                    }
                }
                Rest::Wrong(what) => {
                    verdict.lost_otherwise += 1;
                    verdict.complaints.push(format!("{client}: {what}"));
                }
            }
        }
        for (consent, noticed) in lost {
            match self.why_lost(consent, noticed) {
                Some(Cause::CrashWindow) => verdict.crash_window_lost += 1,
                Some(Cause::ReplyLost) => verdict.reply_lost += 1,
                None => {
                    verdict.lost_otherwise += 1;
                    let client = &self.evidence.seen.consents[consent].client;
                    let last = self.last_granted(consent);
                    verdict.complaints.push(format!("{client}: lost, and nothing explains it: {last:?}"));
                }
            }
        }
    }

    /// A grant is lost by its last answer, if that was not stored before the spent token was presented again.
    fn why_lost(&self, consent: usize, noticed: Duration) -> Option<Cause> {
        let last = self.last_granted(consent)?;
        let stored = last.granted.and_then(|granted| self.stored.get(&granted));
        if stored.is_some_and(|stored| *stored < noticed) {
            return None;
        }
        self.cause(last)
    }

    fn last_granted(&self, consent: usize) -> Option<&Send> {
        let of_this = |send: &Send| self.evidence.seen.descent.get(&send.presented) == Some(&consent);
        let granted = self.taken.iter().rev().filter(|(_, redemption)| redemption.granted);
        granted.map(|(send, _)| *send).find(|send| of_this(send))
    }

    /// One acquire for each generation, which only grows; conflicts; and how long take-overs took.
    fn leases(&self, verdict: &mut Verdict) {
        let mut holders: HashMap<&str, (i64, &Write)> = HashMap::new();
        let mut waits = Vec::new();
        for write in &self.evidence.seen.writes {
            match (&write.call, &write.fate) {
                (Call::Acquire { client, generation, takes_over, .. }, Fate::Landed) => {
                    let before = holders.insert(client, (*generation, write));
                    if let Some((held, _)) = before.filter(|(held, _)| held >= generation) {
                        verdict.complaints.push(format!("{client}: {generation} was acquired after {held}"));
                    }
                    if let (true, Some((_, held))) = (*takes_over, before) {
                        let silent = self.fell_silent(held, write.at);
                        let wait = write.at.saturating_sub(silent);
                        waits.push(wait);
                        let told = format!(
                            "{client}: task {} fell silent at {:.1} s, task {} took over at {:.1} s",
                            held.task,
                            silent.as_secs_f64(),
                            write.task,
                            write.at.as_secs_f64()
                        );
                        verdict.slowest_takeover = verdict.slowest_takeover.take().max(Some((wait, told)));
                        if write.at + SLACK < held.at + self.evidence.take_over {
                            let waited = write.at.saturating_sub(held.at);
                            verdict.complaints.push(format!("{client}: taken over after {waited:?}"));
                        }
                    }
                }
                (Call::Acquire { owner, .. }, Fate::Lost(stands)) => {
                    verdict.conflicts += usize::from(stands.as_ref() != Some(owner));
                }
                (Call::Outside { client, generation, .. }, Fate::Landed) => {
                    holders.insert(client, (*generation, write));
                }
                _ => {}
            }
        }
        waits.sort();
        verdict.takeovers = waits.len();
        verdict.takeover_p99 =
            waits.get(waits.len().saturating_sub(1) * 99 / 100).copied().unwrap_or_default();
    }

    /// When a holder was killed or stopped that was taken over from; else when it acquired.
    fn fell_silent(&self, held: &Write, taken: Duration) -> Duration {
        let interruptions = self.evidence.seen.interruptions.iter();
        let of_this = |it: &&Interruption| {
            it.task == held.task && it.from < taken && it.to.is_none_or(|to| to > held.at)
        };
        interruptions.filter(of_this).map(|it| it.from).min().map_or(held.at, |from| from.max(held.at))
    }

    /// The time in which the newest stored token of a client was past its expiry, from its first token on; what a lost
    /// grant lacked until its customer consented again is no fault of expiry.
    fn expired(&self) -> Duration {
        let lifetime = self.evidence.lifetime;
        let granted =
            self.taken.iter().filter_map(|(send, _)| Some((send.granted?, send.arrived + lifetime)));
        let expiry: HashMap<Mark, Duration> = granted.collect();
        let mut newest: HashMap<&str, (Duration, Mark)> = HashMap::new();
        let mut expired = Duration::ZERO;
        let descent = |mark: &Mark| self.evidence.seen.descent.get(mark);
        for write in self.evidence.seen.writes.iter().filter(|write| write.fate == Fate::Landed) {
            let Call::Commit { client, token: Some(token), .. } = &write.call else { continue };
            let Some(expires_at) = expiry.get(token) else { continue };
            if let Some((until, before)) = newest.insert(client, (*expires_at, *token))
                && descent(&before) == descent(token)
            {
                expired += write.at.saturating_sub(until);
            }
        }
        for (client, (until, _)) in newest {
            if matches!(self.evidence.rest.get(client), Some(Rest::Live(_))) {
                expired += self.evidence.end.saturating_sub(until);
            }
        }
        expired
    }
}
