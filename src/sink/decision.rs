//! What is to become of a file, by what is known: pure.
//!
//! Two rules carry it. A file changes only for a token that is good and is another one. And it is removed as soon as either
//! clock says that its token has expired, or the table says that there is none; while the table says nothing, a good token
//! stays.

use std::time::Duration;

use crate::reader::freshness::Now;
use crate::reader::{Refusal, Served};
use crate::record::Gen;
use crate::time::{Moment, Timestamp};

/// The token that stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The generation that produced it.
    pub generation: Gen,
    /// Its expiry, to the second.
    pub expires_at: Timestamp,
    /// The same by the steady clock.
    pub until: Moment,
}

impl Held {
    /// As a note of an earlier process says.
    pub fn of(generation: Gen, expires_at: Timestamp, now: Now) -> Self {
        Self { generation, expires_at, until: now.moment.plus(expires_at.since(now.wall)) }
    }

    /// Whether it is no longer good, by either clock.
    pub fn has_expired(&self, now: Now) -> bool {
        self.remaining(now).is_zero()
    }

    /// For how long it is good from `now`, by the more careful clock.
    fn remaining(&self, now: Now) -> Duration {
        self.until.since(now.moment).min(self.expires_at.since(now.wall))
    }
}

/// What the reader says of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// There is a good token.
    Good(Gen, Timestamp),
    /// There is none: the table says so.
    Without,
    /// The table says nothing.
    Silence,
}

impl News {
    /// In so many words.
    pub fn of(seen: &Result<Served, Refusal>) -> Self {
        match seen {
            Ok(served) => Self::Good(served.token().generation, served.token().expires_at),
            Err(Refusal::Unavailable(_) | Refusal::Forbidden) => Self::Silence,
            Err(
                Refusal::Absent
                | Refusal::Dead(_)
                | Refusal::Held(_)
                | Refusal::Paused
                | Refusal::Pending(_)
                | Refusal::Expired(_)
                | Refusal::ShortLived(_)
                | Refusal::NoNewer(_),
            ) => Self::Without,
        }
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Keep,
    /// Write the good token.
    Write,
    /// Remove the file.
    Remove,
}

/// Decides. `held` is none where there is no file of ours: what stands there from elsewhere is replaced and never removed.
pub fn decide(held: Option<&Held>, news: &News, now: Now) -> Step {
    let Some(held) = held else {
        return if matches!(news, News::Good(..)) { Step::Write } else { Step::Keep };
    };
    let has_expired = held.has_expired(now);
    match *news {
        News::Good(generation, expires_at) => {
            // Tables of other tools have no generations: all of their tokens are of one.
            let is_later = generation > held.generation
                || generation == held.generation && expires_at != held.expires_at;
            if is_later || has_expired { Step::Write } else { Step::Keep }
        }
        News::Without => Step::Remove,
        News::Silence if has_expired => Step::Remove,
        News::Silence => Step::Keep,
    }
}

/// What to do where the good token cannot be written, or not yet again: what stands there stays for as long as it is good.
pub fn unwritten(held: Option<&Held>, now: Now) -> Step {
    if held.is_some_and(|held| held.has_expired(now)) { Step::Remove } else { Step::Keep }
}

/// How long a file can be left alone: at most `look`, and no longer than its token is good.
pub fn rest(held: Option<&Held>, now: Now, look: Duration) -> Duration {
    const SHORT: Duration = Duration::from_millis(10);
    held.map_or(look, |held| held.remaining(now).clamp(SHORT, look))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(moment: u64, wall: i64) -> Now {
        Now { moment: Moment::from_origin(Duration::from_secs(moment)), wall: Timestamp::from_secs(wall) }
    }

    /// Generation 3, good until second 1100 of the wall clock and 200 of the steady one, seen at 1000 and 100.
    fn held() -> Held {
        Held::of(Gen(3), Timestamp::from_secs(1100), at(100, 1000))
    }

    fn good(generation: i64, expires_at: i64) -> News {
        News::Good(Gen(generation), Timestamp::from_secs(expires_at))
    }

    #[test]
    fn a_file_changes_for_another_good_token_and_for_nothing_else() {
        let now = at(150, 1050);
        for (news, step) in [
            (good(3, 1100), Step::Keep),
            (good(4, 1200), Step::Write),
            (good(4, 1100), Step::Write),
            (good(3, 1200), Step::Write),
            // Whoever tells of an older one than we have is behind.
            (good(2, 1200), Step::Keep),
            (News::Silence, Step::Keep),
            (News::Without, Step::Remove),
        ] {
            assert_eq!(decide(Some(&held()), &news, now), step, "{news:?}");
        }
    }

    #[test]
    fn an_expired_token_goes_by_either_clock_whatever_the_table_says() {
        // The wall clock was set back, or the steady one stood still in a snapshot.
        for now in [at(200, 1000), at(100, 1100), at(300, 1300)] {
            assert_eq!(decide(Some(&held()), &News::Silence, now), Step::Remove, "{now:?}");
            assert_eq!(decide(Some(&held()), &good(4, 2000), now), Step::Write);
            assert_eq!(decide(Some(&held()), &good(2, 2000), now), Step::Write, "a table that was restored");
        }
        assert_eq!(decide(Some(&held()), &News::Silence, at(199, 1099)), Step::Keep);
    }

    #[test]
    fn an_expired_token_does_not_wait_for_a_successor_that_cannot_be_written() {
        assert_eq!(unwritten(Some(&held()), at(199, 1099)), Step::Keep);
        assert_eq!(unwritten(Some(&held()), at(200, 1000)), Step::Remove);
        assert_eq!(unwritten(Some(&held()), at(100, 1100)), Step::Remove);
        assert_eq!(unwritten(None, at(300, 1300)), Step::Keep, "it is not ours");
    }

    #[test]
    fn what_is_not_ours_is_replaced_and_never_removed() {
        let now = at(0, 0);
        assert_eq!(decide(None, &good(1, 10), now), Step::Write);
        assert_eq!(decide(None, &News::Without, now), Step::Keep);
        assert_eq!(decide(None, &News::Silence, now), Step::Keep);
    }

    #[test]
    fn nobody_rests_beyond_an_expiry() {
        let look = Duration::from_secs(1);
        assert_eq!(rest(None, at(0, 0), look), look);
        assert_eq!(rest(Some(&held()), at(150, 1050), look), look);
        let short = rest(Some(&held()), at(150, 1100), look);
        assert!(!short.is_zero() && short < look, "{short:?}");
    }
}
