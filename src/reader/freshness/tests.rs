use proptest::prelude::*;

use super::*;
use crate::secret::Secret;

const WALL: Timestamp = Timestamp::from_secs(1_700_000_000);

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// `elapsed` after everything was seen, on both clocks.
fn after(elapsed: Duration) -> Now {
    Now { moment: Moment::default().plus(elapsed), wall: WALL.plus(elapsed) }
}

/// Lives for an hour, and is replaced after 54 minutes.
fn token() -> AccessToken {
    AccessToken {
        secret: Secret::new("a").into(),
        token_type: None,
        scope: None,
        expires_at: WALL.plus(secs(3600)),
        refresh_at: Some(WALL.plus(secs(3240))),
        stored_at: Some(WALL),
        generation: Gen(7),
        written: Written::default(),
    }
}

fn seen(token: Option<AccessToken>, standing: Standing) -> Sighting {
    Sighting { token, standing, overlap: None, seen: Moment::default(), seen_at: WALL }
}

fn entry(sighting: Sighting) -> Entry {
    confirmed(sighting, secs(300), after(Duration::ZERO), 0.5)
}

fn good() -> Entry {
    entry(seen(Some(token()), Standing::Kept))
}

fn refusal(judgement: Judgement) -> Refusal {
    match judgement {
        Judgement::Refuse(refusal) | Judgement::Await(_, refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_token_is_served_until_its_expiry_and_not_in_it() {
    let served = |at| matches!(judge(&good(), Want::default(), after(at)), Judgement::Serve(_));
    assert!(served(secs(0)) && served(secs(3599)));
    assert!(!served(secs(3600)) && !served(secs(4000)));
}

#[test]
fn neither_a_clock_set_back_nor_a_frozen_one_revives_a_token() {
    let set_back = Now { wall: WALL, ..after(secs(3600)) };
    let frozen = Now { wall: WALL.plus(secs(3600)), ..after(secs(1)) };
    for now in [set_back, frozen] {
        assert!(matches!(judge(&good(), Want::default(), now), Judgement::Ask), "{now:?}");
    }
}

#[test]
fn the_table_is_asked_once_and_not_again_while_it_gives_no_answer() {
    let now = after(secs(10));
    let unknown = Entry::default();
    assert!(matches!(judge(&unknown, Want::default(), now), Judgement::Ask));
    let failed_once = failed(&unknown, false, now, now, 0.0);
    let refused = refusal(judge(&failed_once, Want::default(), now));
    assert_eq!(refused, Refusal::Unavailable(secs(1)));
    assert!(matches!(judge(&failed_once, Want::default(), after(secs(11))), Judgement::Ask));
    let forbidden = failed(&unknown, true, now, now, 0.0);
    assert_eq!(refusal(judge(&forbidden, Want::default(), now)), Refusal::Forbidden);
}

#[test]
fn a_good_token_outlives_the_table_and_says_so() {
    let now = after(secs(3000));
    let cut_off = (0..9).fold(good(), |entry, _| failed(&entry, false, now, now, 0.5));
    let Judgement::Serve(served) = judge(&cut_off, Want::default(), now) else { panic!("it is good") };
    assert_eq!((served.stale, served.remaining, served.age), (true, secs(600), secs(3000)));
    assert!(!matches!(judge(&cut_off, Want::default(), after(secs(3600))), Judgement::Serve(_)));
}

#[test]
fn a_longer_life_is_waited_for_where_a_refresh_is_due() {
    let want = Want { min_ttl: secs(3000), after: None };
    let at = |now| judge(&good(), want, after(secs(now)));
    assert!(matches!(at(599), Judgement::Serve(_)));
    assert!(matches!(at(600), Judgement::Await(wait, Refusal::ShortLived(_)) if wait == secs(2640)));
    assert!(matches!(at(3300), Judgement::Await(Duration::ZERO, _)));
    let paused = entry(seen(Some(token()), Standing::Paused));
    assert!(matches!(judge(&paused, want, after(secs(3300))), Judgement::Refuse(Refusal::ShortLived(_))));
}

#[test]
fn a_later_generation_is_waited_for() {
    let judged =
        |after_| judge(&good(), Want { after: Some(Gen(after_)), ..Want::default() }, after(secs(1)));
    assert!(matches!(judged(6), Judgement::Serve(_)));
    assert!(matches!(judged(7), Judgement::Await(Duration::ZERO, Refusal::NoNewer(_))));
}

#[test]
fn an_old_generation_is_served_unconfirmed_no_longer_than_its_provider_lets_it_live() {
    let entry = entry(Sighting { overlap: Some(secs(30)), ..seen(Some(token()), Standing::Kept) });
    assert!(matches!(judge(&entry, Want::default(), after(secs(3270))), Judgement::Serve(_)));
    assert!(matches!(judge(&entry, Want::default(), after(secs(3271))), Judgement::Ask));
    let cut_off = failed(&entry, false, after(secs(3271)), after(secs(3271)), 0.5);
    assert!(matches!(
        judge(&cut_off, Want::default(), after(secs(3271))),
        Judgement::Refuse(Refusal::Unavailable(_))
    ));
    // The steady clock stood still with the machine; the token was replaced meanwhile.
    let thawed = Now { moment: Moment::default().plus(secs(1)), wall: WALL.plus(secs(3300)) };
    assert!(matches!(judge(&entry, Want::default(), thawed), Judgement::Ask));
}

#[test]
fn without_a_token_the_reason_is_told() {
    let expired = || Some(AccessToken { expires_at: WALL, ..token() });
    let told =
        |token, standing| refusal(judge(&entry(seen(token, standing)), Want::default(), after(secs(0))));
    assert_eq!(told(None, Standing::Absent), Refusal::Absent);
    assert_eq!(
        told(expired(), Standing::Dead("invalid_grant".into())),
        Refusal::Dead("invalid_grant".into())
    );
    assert_eq!(told(expired(), Standing::Held("timeout".into())), Refusal::Held("timeout".into()));
    assert_eq!(told(expired(), Standing::Paused), Refusal::Paused);
    assert!(matches!(told(None, Standing::Kept), Refusal::Pending(_)));
    assert!(matches!(told(expired(), Standing::Kept), Refusal::Expired(_)));
}

#[test]
fn the_grant_may_be_gone_while_the_last_token_is_good() {
    let dead = entry(seen(Some(token()), Standing::Dead("invalid_grant".into())));
    assert!(matches!(judge(&dead, Want::default(), after(secs(1))), Judgement::Serve(_)));
}

#[test]
fn the_table_is_asked_again_soon_after_a_refresh_was_due() {
    let look = |elapsed| {
        let entry = confirmed(seen(Some(token()), Standing::Kept), secs(300), after(secs(elapsed)), 0.5);
        entry.check_at.since(after(secs(elapsed)).moment)
    };
    assert_eq!(look(0), Duration::from_secs_f64(300.0 * 0.95));
    assert_eq!(look(3235), secs(7), "5 s to go, 1 s for the refresh, 1 s of spread");
    assert_eq!(look(3242), secs(1));
    assert!(look(3300) > secs(20) && look(3300) <= secs(30));
}

#[test]
fn whoever_is_spread_last_still_asks_well_before_the_token_expires() {
    let short =
        AccessToken { expires_at: WALL.plus(secs(12)), refresh_at: Some(WALL.plus(secs(8))), ..token() };
    let entry = confirmed(seen(Some(short), Standing::Kept), secs(300), after(Duration::ZERO), 1.0);
    assert_eq!(
        entry.check_at.since(after(Duration::ZERO).moment),
        secs(10),
        "8 s, 1 s, and a quarter of 4 s"
    );
}

proptest! {
    /// Whatever the clocks, the wishes and the table's failures: what is served is good by both clocks.
    #[test]
    fn nothing_expired_is_ever_served(
        moment in 0_u64..8000, wall in 0_u64..8000, lives in 0_u64..7200, due in proptest::option::of(0_u64..7200),
        overlap in proptest::option::of(1_u64..600), failures in 0_u32..4, min_ttl in 0_u64..600,
    ) {
        let token = AccessToken {
            expires_at: WALL.plus(secs(lives)), refresh_at: due.map(|due| WALL.plus(secs(due))), ..token()
        };
        let sighting = Sighting { overlap: overlap.map(secs), ..seen(Some(token), Standing::Kept) };
        let now = Now { moment: Moment::default().plus(secs(moment)), wall: WALL.plus(secs(wall)) };
        let entry = (0..failures).fold(entry(sighting), |entry, _| failed(&entry, false, now, now, 0.5));
        if let Judgement::Serve(served) = judge(&entry, Want { min_ttl: secs(min_ttl), after: None }, now) {
            prop_assert!(moment < lives && wall < lives);
            prop_assert!(served.remaining > secs(min_ttl));
            prop_assert!(served.remaining <= secs(lives - moment.max(wall)));
        }
    }

    /// Nobody asks the table in a tight loop, and nobody forgets to ask.
    #[test]
    fn the_next_look_is_neither_at_once_nor_never(
        elapsed in 0_u64..8000, lives in 0_u64..7200, due in 0_u64..7200, unit in 0.0..1.0_f64,
    ) {
        let token = AccessToken {
            expires_at: WALL.plus(secs(lives)), refresh_at: Some(WALL.plus(secs(due))), ..token()
        };
        let now = after(secs(elapsed));
        let sighting = Sighting { seen: now.moment, seen_at: now.wall, ..seen(Some(token), Standing::Kept) };
        let pause = confirmed(sighting, secs(300), now, unit).check_at.since(now.moment);
        prop_assert!(pause >= Duration::from_millis(500) && pause <= secs(300), "{pause:?}");
    }
}
