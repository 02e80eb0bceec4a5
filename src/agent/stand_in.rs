//! The agent in the place of AWS's: what [`drop_in`] understands, asked of the same reader, by the same rules.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::Method;
use http::request::Parts;

use super::answer::Answer;
use super::drop_in::{self, Settings, Trouble};
use super::problem::Problem;
use super::{Agent, Allowed, CONFIRMED, admission, audit};
use crate::client::ClientId;
use crate::reader::{Refusal, Served, Want};
use crate::store::Store;
use crate::time::Moment;

/// How long a client that was not there is taken not to be, where its id would end as an ARN does.
const NOBODY: Duration = Duration::from_secs(60);
/// How many of those are remembered.
const MOST: usize = 10_000;

/// Clients that there would have to be if ARNs were without their random end, and that there are not; since when.
#[derive(Default)]
pub(super) struct Nobodies(Mutex<HashMap<ClientId, Moment>>);

impl Nobodies {
    fn since(&self, id: &ClientId) -> Option<Moment> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied()
    }

    fn note(&self, id: &ClientId, now: Option<Moment>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.clear();
        }
        match now {
            Some(now) => known.insert(id.clone(), now),
            None => known.remove(id),
        };
    }
}

impl<S: Store> Agent<S> {
    pub(super) async fn answer_as_aws(&self, head: &Parts, settings: &Settings) -> Answer {
        match self.respond_as_aws(head, settings).await {
            Ok(answer) => answer,
            Err(trouble) => {
                if let Trouble::Problem(problem) = &trouble {
                    audit(problem, head.uri.path());
                }
                drop_in::trouble(&trouble)
            }
        }
    }

    async fn respond_as_aws(&self, head: &Parts, settings: &Settings) -> Result<Answer, Trouble> {
        admission::admit(head, true)?;
        let reads = head.method == Method::GET;
        let path = head.uri.path();
        if path == "/ping" && reads {
            return Ok(drop_in::healthy());
        }
        // A header that no page and no forwarded link can set is asked for, even where any key is good.
        let key = drop_in::key(&head.headers).ok_or(Problem::NoKey)?;
        let allowed = self.whose(key)?;
        if !reads {
            return Err(Problem::Method("GET").into());
        }
        let ask = drop_in::asked(path, head.uri.query().unwrap_or_default(), settings)?;
        let ask = self.meant(ask, &allowed).await?;
        allowed.read(&ask.client)?;
        let served = self.current(&ask).await?;
        drop_in::value(&ask, &served, settings)
    }

    /// Of an ARN that may be one client's with its random end and another's without, the one that there is. Where there are
    /// both, or that cannot be known, neither: a token of somebody else is the worst answer.
    async fn meant(&self, ask: drop_in::Ask, allowed: &Allowed) -> Result<drop_in::Ask, Problem> {
        let Some(whole) = ask.whole.clone() else { return Ok(ask) };
        allowed.read(&ask.client).or_else(|_| allowed.read(&whole.0))?;
        if self.is_nobody(&whole.0).await? {
            return Ok(ask);
        }
        if self.is_there(&ask.client).await? {
            let why = "the ARN is one secret's with its random end and another's without: ask by name";
            return Err(Problem::Malformed(why.into()));
        }
        Ok(ask.of_whole(whole))
    }

    /// Remembered for a while, and for longer where the table gives no answer.
    async fn is_nobody(&self, id: &ClientId) -> Result<bool, Problem> {
        let (known, now) = (self.nobodies.since(id), self.clock.moment());
        if known.is_some_and(|since| now.since(since) < NOBODY) {
            return Ok(true);
        }
        match self.is_there(id).await {
            Err(_) if known.is_some() => Ok(true),
            Err(problem) => Err(problem),
            Ok(is_there) => {
                self.nobodies.note(id, (!is_there).then_some(now));
                Ok(!is_there)
            }
        }
    }

    async fn is_there(&self, id: &ClientId) -> Result<bool, Problem> {
        if self.reader.at_hand(id, Want::default()).is_some() {
            return Ok(true);
        }
        let _waits = self.waiting.try_acquire().map_err(|_| Problem::Busy)?;
        match self.reader.wait_for(id, Want::default(), Duration::ZERO).await {
            Err(Refusal::Absent) => Ok(false),
            Err(refusal @ (Refusal::Unavailable(_) | Refusal::Forbidden)) => Err(Problem::Refused(refusal)),
            _ => Ok(true),
        }
    }

    async fn current(&self, ask: &drop_in::Ask) -> Result<Served, Problem> {
        let (id, want) = (&ask.client, Want::default());
        if let Some(served) = self.reader.at_hand(id, want).filter(|_| !ask.refresh) {
            return Ok(served);
        }
        let _waits = self.waiting.try_acquire().map_err(|_| Problem::Busy)?;
        if !ask.refresh {
            return self.reader.wait_for(id, want, Duration::ZERO).await.map_err(Problem::Refused);
        }
        // However many ask for it, the table is asked about a client once in this time.
        let since = self.clock.moment().minus(CONFIRMED);
        self.reader.confirm(id, since).await;
        let served = self.reader.token(id, want, Duration::ZERO).await.map_err(Problem::Refused)?;
        let is_confirmed = served.sighting.seen >= since && !served.stale;
        is_confirmed.then_some(served).ok_or(Problem::Refused(Refusal::Unavailable(CONFIRMED)))
    }
}
