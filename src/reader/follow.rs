//! For whoever keeps a copy of a token, and has to know when there is another.

use std::time::Duration;

use super::freshness::{self, Judgement, Now, Question, Refusal, Served, Want};
use super::{Inner, PACE, Reader};
use crate::client::ClientId;
use crate::store::Store;

impl<S: Store> Reader<S> {
    /// The two clocks, by which everything here is judged.
    pub fn now(&self) -> Now {
        self.0.now()
    }

    /// As [`Reader::token`], for one that is good now: nobody is counted as served, and the client counts as in use. Asks the
    /// table no more often than a reader may, so it can be called as often as anybody likes.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn look(&self, id: &ClientId) -> Result<Served, Refusal> {
        Inner::look_again(&self.0, id).await
    }

    /// Returns when a question about the client has ended, whoever put it, and after `bound` in any case. Puts none.
    pub async fn heard(&self, id: &ClientId, bound: Duration) {
        let slot = self.0.slot(id);
        let ended = slot.ended.notified();
        tokio::select! { () = ended => {}, () = self.0.clock.sleep(bound) => {} }
    }
}

impl<S: Store> Inner<S> {
    async fn look_again(this: &std::sync::Arc<Self>, id: &ClientId) -> Result<Served, Refusal> {
        let slot = this.slot(id);
        let mut has_asked = false;
        loop {
            let ended = slot.ended.notified();
            let (entry, now) = (slot.entry.load_full(), this.now());
            slot.touch(now.moment);
            match freshness::judge(&entry, Want::default(), now) {
                Judgement::Serve(served) => {
                    if freshness::is_due(&entry, now) {
                        this.ask(&slot, Question::Which);
                    }
                    return Ok(served);
                }
                Judgement::Refuse(refusal) | Judgement::Await(_, refusal) => return Err(refusal),
                // A question whose task died told nothing.
                Judgement::Ask if has_asked => return Err(Refusal::Unavailable(PACE)),
                Judgement::Ask => {
                    this.ask(&slot, Question::Which);
                    ended.await;
                    has_asked = true;
                }
            }
        }
    }
}
