//! "This token was refused": when that is worth a refresh.
//!
//! A reader knows only that a provider answered 401. The token may have been revoked, or the reader may lack a right
//! that no token brings. So a refresh is asked for at most once for a generation, never for a token that is hardly
//! older than a refresh takes, and less and less often while refreshing does not help.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use quick_cache::unsync::Cache;

use crate::client::ClientId;
use crate::reader::AccessToken;
use crate::reader::freshness::Now;
use crate::record::Gen;
use crate::time::Moment;

/// Clients that are remembered.
const REMEMBERED: usize = 4096;
/// However often refreshing did not help.
const LONGEST: Duration = Duration::from_secs(3600);

/// What is done about a rejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A refresh is asked for.
    Refresh,
    /// It was asked for already.
    Asked,
    /// Not yet; in so long.
    TooSoon(Duration),
}

/// The last refresh that was asked for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    at: Moment,
    generation: Gen,
    /// Refreshes in a row that did not help for long.
    in_vain: u32,
}

/// What was asked for, by client. Bounded.
pub(super) struct Rejections {
    interval: Duration,
    asked: Mutex<Cache<ClientId, Asked>>,
}

impl Rejections {
    /// `interval`: how old a token must be.
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, asked: Mutex::new(Cache::new(REMEMBERED)) }
    }

    /// Judges a rejection of the stored token, and remembers the verdict: of a thousand at once one gets [`Verdict::Refresh`].
    pub(super) fn judge(&self, id: &ClientId, token: &AccessToken, now: Now) -> Verdict {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let last = asked.get(id).copied();
        let verdict = judge(token, last, self.interval, now);
        if verdict == Verdict::Refresh {
            let in_vain = last.map_or(0, |last| in_vain(&last, self.interval, now.moment));
            asked.insert(id.clone(), Asked { at: now.moment, generation: token.generation, in_vain });
        }
        verdict
    }

    /// It could not be asked for.
    pub(super) fn forget(&self, id: &ClientId) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

fn judge(token: &AccessToken, last: Option<Asked>, interval: Duration, Now { moment, wall }: Now) -> Verdict {
    if let Some(last) = last {
        let since = moment.since(last.at);
        let wait = pause(interval, last.in_vain);
        if last.generation == token.generation && since < wait {
            return Verdict::Asked;
        }
        if since < wait {
            return Verdict::TooSoon(wait - since);
        }
    }
    // The table's own record: it holds for all agents together.
    let age = token.stored_at.map_or(interval, |stored| wall.since(stored));
    if age < interval { Verdict::TooSoon(interval - age) } else { Verdict::Refresh }
}

/// How often in a row it has been in vain, this time included: long rests count as success.
fn in_vain(last: &Asked, interval: Duration, now: Moment) -> u32 {
    let rested = now.since(last.at) > pause(interval, last.in_vain).saturating_mul(2).max(LONGEST);
    if rested { 0 } else { last.in_vain.saturating_add(1) }
}

fn pause(interval: Duration, in_vain: u32) -> Duration {
    interval.saturating_mul(2_u32.saturating_pow(in_vain)).min(LONGEST.max(interval))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader::written::Written;
    use crate::secret::Secret;
    use crate::time::Timestamp;

    const MINUTE: Duration = Duration::from_secs(60);

    fn token(generation: i64, stored_secs: u64) -> AccessToken {
        AccessToken {
            secret: Secret::new("a").into(),
            token_type: None,
            scope: None,
            expires_at: Timestamp::MAX,
            refresh_at: None,
            stored_at: Some(Timestamp::EPOCH.plus(Duration::from_secs(stored_secs))),
            generation: Gen(generation),
            written: Written::default(),
        }
    }

    fn at(secs: u64) -> Now {
        let since = Duration::from_secs(secs);
        Now { moment: Moment::default().plus(since), wall: Timestamp::EPOCH.plus(since) }
    }

    fn acme() -> ClientId {
        ClientId::new("acme").expect("an id")
    }

    #[test]
    fn a_flood_is_one_refresh() {
        let rejections = Rejections::new(MINUTE);
        let verdicts = (0..1000).map(|_| rejections.judge(&acme(), &token(1, 0), at(600)));
        assert_eq!(verdicts.filter(|verdict| *verdict == Verdict::Refresh).count(), 1);
    }

    #[test]
    fn a_token_that_has_just_been_stored_is_not_replaced() {
        let rejections = Rejections::new(MINUTE);
        let verdict = rejections.judge(&acme(), &token(1, 590), at(600));
        assert_eq!(verdict, Verdict::TooSoon(Duration::from_secs(50)));
        assert_eq!(rejections.judge(&acme(), &token(1, 590), at(650)), Verdict::Refresh);
    }

    /// Every new token is rejected the second it is there, for a day.
    #[test]
    fn a_provider_that_refuses_everything_causes_no_loop() {
        let rejections = Rejections::new(MINUTE);
        let (mut generation, mut stored, mut refreshes) = (1, 0, 0);
        for now in (600..600 + 86_400).step_by(1) {
            if rejections.judge(&acme(), &token(generation, stored), at(now)) == Verdict::Refresh {
                (generation, stored, refreshes) = (generation + 1, now, refreshes + 1);
            }
        }
        assert!((24..=32).contains(&refreshes), "{refreshes}");
    }

    #[test]
    fn after_a_rest_the_first_is_taken_at_its_word_again() {
        let rejections = Rejections::new(MINUTE);
        for (generation, now) in [(1, 600), (2, 700), (3, 900)] {
            rejections.judge(&acme(), &token(generation, now - 60), at(now));
        }
        assert_eq!(rejections.judge(&acme(), &token(4, 5000), at(9000)), Verdict::Refresh);
        assert_eq!(rejections.judge(&acme(), &token(5, 9001), at(9061)), Verdict::Refresh);
    }

    #[test]
    fn what_could_not_be_asked_for_is_asked_for_again() {
        let rejections = Rejections::new(MINUTE);
        assert_eq!(rejections.judge(&acme(), &token(1, 0), at(600)), Verdict::Refresh);
        assert_eq!(rejections.judge(&acme(), &token(1, 0), at(601)), Verdict::Asked);
        rejections.forget(&acme());
        assert_eq!(rejections.judge(&acme(), &token(1, 0), at(602)), Verdict::Refresh);
    }
}
