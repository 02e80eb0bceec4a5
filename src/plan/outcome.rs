//! From what is known to what is done: the two judgements of a refresh.
//!
//! [`after_read`] judges a freshly read partition: send, give the lease back, or drop the attempt. [`after_send`]
//! judges a reply, over the whole attempt and not only its last send. Both are total: nothing that a table or a
//! provider may say is left undecided.

use std::time::Duration;

use super::backoff;
use super::in_doubt::{MOST_SENDS, Risk, fits_in_lease, may_replay, may_send_in_doubt};
use super::lease::{Doubt, Release};
use super::policy::{Backoff, Timing};
use super::schedule::wanted_at;
use crate::client::{Binding, Client, InDoubt, Provider};
use crate::record::{Gen, Lease, Snapshot, State, Token};
use crate::reply::{Reply, Tokens, ends_grants, is_verdict, refuses_application};
use crate::secret::Secret;
use crate::time::{Moment, Timestamp};

/// The longest pause before a replay.
const PAUSE: Duration = Duration::from_secs(1);
/// What keeps an attempt from being sent that only an operator can change.
const UNSENDABLE: [&str; 4] = ["no_token_item", "no_refresh_token", "binding_mismatch", SECRET_REFUSED];
/// The code of a client secret that a reference does not lead to, or may not.
pub const SECRET_REFUSED: &str = "secret_refused";
/// The code of a client secret about which there is no answer.
pub const SECRET_UNAVAILABLE: &str = "secret_unavailable";
/// Failures in a row that are an alarm once the token has expired, whatever their class.
pub const LONG_STREAK: u32 = 8;

/// What is to be done with a lease just acquired, now that the partition has been read.
#[derive(Clone, Debug, PartialEq)]
pub enum Go {
    /// Send the refresh.
    Send(Box<Attempt>),
    /// Give the lease back.
    Release(Release),
    /// The lease is no longer ours: do nothing at all.
    Drop(&'static str),
}

/// A refresh that is to be sent: everything that the judgement of its replies depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// The registration.
    pub client: Client,
    /// The client secret that is sent; none for public clients, and until a reference has been followed.
    pub secret: Option<Secret>,
    /// The stored token; none where TTL took the item of a mintable grant.
    pub token: Option<Token>,
    /// The lease that is held.
    pub lease: Lease,
    /// What is at stake.
    pub risk: Risk,
    /// The moment before the acquire was begun.
    pub begun: Moment,
}

impl Attempt {
    /// The generation of the stored token.
    pub fn tok_gen(&self) -> Gen {
        self.token.as_ref().map_or(Gen::NONE, |token| token.generation)
    }

    /// Unanswered sends of the stored refresh token by earlier attempts; `None` where it is not in doubt.
    pub fn begins_with(&self) -> Option<u32> {
        self.lease.doubt_about(self.tok_gen())
    }

    /// The expiry of the stored access token.
    pub fn expires_at(&self) -> Timestamp {
        self.token.as_ref().map_or(Timestamp::EPOCH, |token| token.expires_at)
    }
}

/// Judges the partition as it was read after the acquire of `held`.
pub fn after_read(
    read: Snapshot,
    held: &Lease,
    provider: &Provider,
    backoff: &Backoff,
    begun: Moment,
    now: Timestamp,
    unit: f64,
) -> Go {
    let stored = read.tok_gen();
    if read.lease.as_ref().map(|lease| lease.generation) != Some(held.generation) || stored >= held.generation
    {
        return Go::Drop("fenced out");
    }
    let (Some(client), Some(lease)) = (read.client().cloned(), read.lease) else {
        return Go::Drop("removed");
    };
    let token = read.token;
    let failed = |code: &str| {
        let expires_at = token.as_ref().map_or(Timestamp::EPOCH, |token| token.expires_at);
        let next_at =
            backoff::next_attempt(backoff, lease.fails.saturating_add(1), expires_at, None, now, unit);
        Go::Release(Release::Failed { code: code.to_owned(), next_at, doubt: Doubt::Unchanged })
    };
    // Moved by hand to another provider: this one must not see its secret.
    let moved = client.provider != provider.name;
    if moved || client.paused || token.as_ref().is_some_and(|token| wanted_at(&client, token) > now) {
        return Go::Release(Release::NotNeeded);
    }
    if client.grant.needs_refresh_token() {
        match &token {
            None => return failed("no_token_item"),
            Some(token) if token.refresh_token.is_none() => return failed("no_refresh_token"),
            Some(token) if token.binding.as_ref().is_some_and(|bound| *bound != client.binding(provider)) => {
                return failed("binding_mismatch");
            }
            Some(_) => {}
        }
    }
    let risk = Risk::of(provider, client.grant);
    match lease.doubt_about(stored) {
        Some(sends) if risk.rotates && !may_send_in_doubt(&risk, sends) => {
            Go::Release(Release::Hold { code: "in_doubt".into(), of: stored, sends })
        }
        _ => {
            let secret = client.credentials.first.as_ref().and_then(|first| first.stored()).cloned();
            Go::Send(Box::new(Attempt { client, secret, token, lease, risk, begun }))
        }
    }
}

/// The client whose tokens these are, where an earlier attempt was granted them, could not store them, and they may be
/// stored now: the lease is held, they are newer than what stands there, and of this registration.
pub fn takes_spilled(
    granted: Gen,
    binding: &Binding,
    read: &Snapshot,
    held: &Lease,
    provider: &Provider,
) -> Option<Client> {
    let client = read.client()?;
    let holds = read.lease.as_ref().is_some_and(|lease| lease.generation == held.generation);
    let newer = read.tok_gen() < granted && granted < held.generation;
    let same = client.provider == provider.name && *binding == client.binding(provider);
    (holds && newer && same).then(|| client.clone())
}

/// The end of an attempt from which nothing was sent, for the reason of this code: it could not learn whether the answer of
/// the one before is still somewhere, or has no client secret.
pub fn unsent(attempt: &Attempt, code: &str, backoff: &Backoff, now: Timestamp, unit: f64) -> Release {
    let fails = attempt.lease.fails.saturating_add(1);
    let next_at = backoff::next_attempt(backoff, fails, attempt.expires_at(), None, now, unit);
    Release::Failed { code: code.to_owned(), next_at, doubt: Doubt::Unchanged }
}

/// What an attempt has sent so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests sent.
    pub sends: u32,
    /// Those of them that may have been processed without our learning the answer.
    pub unanswered: u32,
    /// Those of the unanswered to which nothing at all was heard: a 5xx is at least a server's word that it failed.
    pub unheard: u32,
    /// Whether another client secret has been tried.
    pub second_secret: bool,
}

impl Tally {
    /// Counts a send and its reply.
    #[must_use]
    pub fn with(self, reply: &Reply) -> Self {
        let (unanswered, unheard) = match reply {
            Reply::Unknown { server_fault, .. } => (1, u32::from(!server_fault)),
            _ => (0, 0),
        };
        Self {
            sends: self.sends + 1,
            unanswered: self.unanswered + unanswered,
            unheard: self.unheard + unheard,
            ..self
        }
    }
}

/// What is to be done after a reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Store the tokens.
    Commit(Box<Tokens>),
    /// Send the same request again, after a pause.
    Replay(Duration),
    /// The grant was refused: read the partition again before believing it.
    RecheckGrant(String),
    /// The application was refused: read `CONFIG` again, its secret may have changed.
    RecheckClient(String),
    /// Give the lease back.
    Release(Release),
}

/// What judging a reply needs beside the attempt.
#[derive(Clone, Copy, Debug)]
pub struct Judge<'a> {
    /// The durations of the protocol.
    pub timing: &'a Timing,
    /// How long to wait after a failure.
    pub backoff: &'a Backoff,
    /// Steady time.
    pub moment: Moment,
    /// Wall time.
    pub now: Timestamp,
    /// Uniform in `[0, 1)`.
    pub unit: f64,
}

/// Judges a reply. `tally` counts it already.
pub fn after_send(reply: Reply, attempt: &Attempt, tally: &Tally, judge: &Judge<'_>) -> Verdict {
    match reply {
        Reply::Granted(tokens) => Verdict::Commit(tokens),
        Reply::Rejected(code) if refuses_application(&code) && !tally.second_secret => {
            Verdict::RecheckClient(code)
        }
        Reply::Rejected(code) if ends_grant(&code, attempt) => Verdict::RecheckGrant(code),
        // What is said of the request or the application is not said of the refresh token: no doubt ends with it.
        Reply::Rejected(code) => Verdict::Release(unanswered(code, None, attempt, tally, judge)),
        Reply::NotSent(_) | Reply::Throttled { .. } | Reply::Blocked(_) => {
            let code = reply.code().to_owned();
            Verdict::Release(unanswered(code, reply.retry_after(), attempt, tally, judge))
        }
        Reply::Unknown { ref code, .. } => {
            let sends = doubtful(attempt, tally);
            let asked_to_wait = reply.retry_after().is_some();
            if !asked_to_wait
                && attempt.begins_with().is_none_or(|_| !attempt.risk.rotates)
                && may_replay(&attempt.risk, judge.timing, tally.sends, sends, attempt.begun, judge.moment)
            {
                return Verdict::Replay(PAUSE.mul_f64(judge.unit));
            }
            Verdict::Release(unanswered(code.clone(), reply.retry_after(), attempt, tally, judge))
        }
    }
}

fn ends_grant(code: &str, attempt: &Attempt) -> bool {
    attempt.client.grant.needs_refresh_token() && ends_grants(code)
}

/// Sends of the stored refresh token to which nothing was heard, earlier attempts included. Replays inside a grace
/// window count as one send: that is what the window is for.
fn doubtful(attempt: &Attempt, tally: &Tally) -> u32 {
    let unheard = if attempt.risk.policy == InDoubt::Grace { tally.unheard.min(1) } else { tally.unheard };
    attempt.begins_with().unwrap_or(0).saturating_add(unheard)
}

/// The end of an attempt without an answer about the refresh token: in doubt if any of its sends may have been
/// processed. (An endpoint that refuses the application has not looked at the token.)
fn unanswered(
    code: String,
    retry_after: Option<Duration>,
    attempt: &Attempt,
    tally: &Tally,
    judge: &Judge<'_>,
) -> Release {
    if tally.unanswered == 0 || !attempt.risk.rotates {
        return failed(code, retry_after, Doubt::Unchanged, attempt, judge);
    }
    // Never zero: only an operator's order leaves that.
    let (of, sends) = (attempt.tok_gen(), doubtful(attempt, tally).max(1));
    if attempt.risk.policy == InDoubt::Hold || sends >= MOST_SENDS {
        return Release::Hold { code, of, sends };
    }
    failed(code, retry_after, Doubt::About(of, sends), attempt, judge)
}

fn failed(
    code: String,
    retry_after: Option<Duration>,
    doubt: Doubt,
    attempt: &Attempt,
    judge: &Judge<'_>,
) -> Release {
    let fails = attempt.lease.fails.saturating_add(1);
    let (now, unit) = (judge.now, judge.unit);
    let next_at = backoff::next_attempt(judge.backoff, fails, attempt.expires_at(), retry_after, now, unit);
    Release::Failed { code, next_at, doubt }
}

/// After a refused grant: `read` is the partition, read again. A newer token means that a sibling won.
pub fn after_grant_recheck(code: String, read: &Snapshot, attempt: &Attempt, tally: &Tally) -> Release {
    let of = attempt.tok_gen();
    if read.tok_gen() != of {
        return Release::NotNeeded;
    }
    // Refused after a send that may have been processed: the answer that was lost had the new refresh token in it.
    let was_in_doubt = attempt.risk.rotates && (tally.unanswered > 0 || attempt.begins_with().is_some());
    Release::Bury { code: if was_in_doubt { "lost_rotation".into() } else { code }, of }
}

/// After a refused application: `read` is the partition, read again. `Ok` is the client whose secrets are to be looked up
/// again; `Err` gives the lease back.
pub fn after_client_recheck(
    code: &str,
    read: &Snapshot,
    attempt: &Attempt,
    tally: &Tally,
    judge: &Judge<'_>,
) -> Result<Client, Release> {
    // Nothing but the secret may have changed: neither who holds the lease, nor where the refresh token would go.
    let ours = read.tok_gen() == attempt.tok_gen()
        && read.lease.as_ref().is_some_and(|lease| lease.generation == attempt.lease.generation);
    match read.client().filter(|client| is_same_registration(client, &attempt.client)) {
        Some(client) if ours && may_send_once_more(attempt, judge) => Ok(client.clone()),
        _ => Err(unanswered(code.to_owned(), None, attempt, tally, judge)),
    }
}

/// One of a client's two secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one that is always sent.
    First,
    /// The one that is there for a rotation.
    Second,
}

/// Which secret is to be tried once more after the refusal of `sent`, where `first` is the first one as it stands by now:
/// that one if it has changed; else the second, and only where the provider says that the *authentication* failed
/// (`invalid_client`, RFC 6749 section 5.2).
pub fn next_secret(code: &str, sent: Option<&Secret>, first: Option<&Secret>) -> Option<Which> {
    match first {
        Some(_) if first != sent => Some(Which::First),
        _ if code == "invalid_client" => Some(Which::Second),
        _ => None,
    }
}

/// Whether the secret that was found is to be tried: it is another than what was refused, and there still is time. `Err`
/// gives the lease back.
pub fn after_offer(
    code: String,
    offered: Option<Secret>,
    attempt: &Attempt,
    tally: &Tally,
    judge: &Judge<'_>,
) -> Result<Secret, Release> {
    match offered.filter(|secret| Some(secret) != attempt.secret.as_ref()) {
        Some(secret) if may_send_once_more(attempt, judge) => Ok(secret),
        _ => Err(unanswered(code, None, attempt, tally, judge)),
    }
}

fn may_send_once_more(attempt: &Attempt, judge: &Judge<'_>) -> bool {
    fits_in_lease(&attempt.risk, judge.timing, attempt.begun, judge.moment)
}

fn is_same_registration(one: &Client, other: &Client) -> bool {
    let place =
        |client: &Client| (client.provider.clone(), client.token_url.clone(), client.client_id.clone());
    place(one) == place(other) && one.grant == other.grant && !one.paused
}

/// A refusal that could not be verified, since the table gave no answer: nothing is concluded from it.
pub fn unverified(attempt: &Attempt, tally: &Tally, judge: &Judge<'_>) -> Release {
    unanswered("store_unavailable".to_owned(), None, attempt, tally, judge)
}

/// Whether a failure with this code goes on until an operator changes something.
pub fn needs_operator(code: &str) -> bool {
    UNSENDABLE.contains(&code) || is_verdict(code)
}

/// Whether a failure is an alarm of its own, whatever its class: a long streak and no good token left.
pub fn escalates(lease: &Lease, expires_at: Timestamp, now: Timestamp) -> bool {
    lease.state == State::Idle && lease.fails >= LONG_STREAK && expires_at <= now
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Gen;

    #[test]
    fn a_long_streak_without_a_good_token_is_an_alarm_whatever_its_class() {
        let now = Timestamp::from_secs(1_000);
        let failed = |fails| Lease { fails, ..Lease::idle(Gen(3)) };
        assert!(escalates(&failed(LONG_STREAK), now, now));
        assert!(!escalates(&failed(LONG_STREAK), now.plus(PAUSE), now), "there still is a good token");
        assert!(!escalates(&failed(LONG_STREAK - 1), now, now));
    }

    #[test]
    fn what_an_operator_has_to_change_is_told_from_what_passes() {
        for code in ["binding_mismatch", "invalid_client", "invalid_scope", SECRET_REFUSED] {
            assert!(needs_operator(code), "{code}");
        }
        for code in ["timeout", "http_503", "dns", "slow_down", SECRET_UNAVAILABLE] {
            assert!(!needs_operator(code), "{code}");
        }
    }

    #[test]
    fn the_second_secret_is_for_a_failed_authentication_and_comes_after_a_changed_first() {
        let (old, new) = (Secret::new("old"), Secret::new("new"));
        let next = |code, first| next_secret(code, Some(&old), first);
        assert_eq!(next("invalid_client", Some(&new)), Some(Which::First));
        assert_eq!(next("unauthorized_client", Some(&new)), Some(Which::First));
        assert_eq!(next("invalid_client", Some(&old)), Some(Which::Second));
        assert_eq!(next("invalid_client", None), Some(Which::Second), "nobody knows the first any more");
        for code in ["unauthorized_client", "invalid_grant", "invalid_request"] {
            assert_eq!(next(code, Some(&old)), None, "{code}");
        }
    }
}
