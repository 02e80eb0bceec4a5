//! The agent in the place of AWS's: what [`drop_in`] understands, asked of the same reader, by the same rules.

use std::time::Duration;

use http::Method;
use http::request::Parts;

use super::answer::Answer;
use super::drop_in::{self, Settings, Trouble};
use super::problem::Problem;
use super::{Agent, Allowed, CONFIRMED, admission, audit};
use crate::reader::{Refusal, Served, Want};
use crate::store::Store;

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
        allowed.read(&ask.client)?;
        let served = self.current(&ask).await?;
        drop_in::value(&ask, &served, settings)
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

    /// Whose key this is.
    pub(super) fn whose(&self, key: &[u8]) -> Result<Allowed, Problem> {
        let Some(keys) = &self.keys else { return Ok(Allowed(None)) };
        keys.load().whose(key).map(|reader| Allowed(Some(reader))).ok_or(Problem::UnknownKey)
    }
}
