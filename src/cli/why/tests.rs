//! The story of each state, told from items.

use std::time::Duration;

use super::*;
use crate::client::Grant;
use crate::plan::testing::{client, provider};
use crate::record::Gen;
use crate::secret::Secret;

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

fn ago(secs: u64) -> Timestamp {
    NOW.minus(Duration::from_secs(secs))
}

fn ahead(secs: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(secs))
}

/// A client whose last refresh went well half an hour ago.
fn fine() -> Snapshot {
    let client = Client { joined: ago(86_400), ..client() };
    let lease = Lease {
        state: State::InFlight,
        owner: Some("me#1".into()),
        lease_ms: 90_000,
        intended_at: Some(ago(1800)),
        ..Lease::idle(Gen(7))
    };
    let token = Token {
        access_token: Some(Secret::new("canary-access")),
        refresh_token: Some(Secret::new("canary-refresh")),
        expires_at: ahead(1800),
        refresh_at: Some(ahead(720)),
        binding: Some(client.binding(&provider())),
        ..Token::stub(Gen(7))
    };
    Snapshot { registration: Registration::Live(Box::new(client)), lease: Some(lease), token: Some(token) }
}

fn with_lease(lease: impl FnOnce(Lease) -> Lease) -> Snapshot {
    let read = fine();
    Snapshot { lease: read.lease.map(lease), ..read }
}

fn with_token(token: impl FnOnce(Token) -> Token) -> Snapshot {
    let read = fine();
    Snapshot { token: read.token.map(token), ..read }
}

fn with_client(change: impl FnOnce(&mut Client)) -> Snapshot {
    let mut read = fine();
    if let Registration::Live(client) = &mut read.registration {
        change(client);
    }
    read
}

/// The story's state, and all of its text; never with a secret in it.
fn story(read: Snapshot) -> (String, String) {
    let story = tell(&client().id, &Ok(read), Some(&provider()), NOW);
    let text = story.text();
    assert!(!text.contains("canary"), "{text}");
    (story.state, text)
}

fn expect(read: Snapshot, state: &str, parts: &[&str]) {
    let (found, text) = story(read);
    assert_eq!(found, state, "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn a_pause_beside_a_dead_or_held_grant_is_told() {
    for (state, phase) in [(State::Dead, "dead"), (State::Held, "held")] {
        let mut read = with_lease(|lease| Lease { state, of: Some(Gen(7)), generation: Gen(8), ..lease });
        if let Registration::Live(client) = &mut read.registration {
            client.paused = true;
        }
        expect(read, phase, &["It is paused by an operator, too", "perennial clients resume"]);
    }
}

#[test]
fn idle_and_fine() {
    expect(
        fine(),
        "idle",
        &["good until", "(in 30m)", "refreshed at", "(in 12m)", "ended without a failure"],
    );
}

#[test]
fn failures_before_a_success_are_not_told() {
    let read = with_lease(|lease| Lease { fails: 3, error: Some("timeout".into()), ..lease });
    let (_, text) = story(read);
    assert!(!text.contains("timeout"), "{text}");
}

#[test]
fn pending_first_token() {
    let read = Snapshot { token: Some(Token::stub(Gen(0))), lease: Some(Lease::idle(Gen(0))), ..fine() };
    expect(
        read,
        "pending",
        &["first token, since", "(1d ago)", "no attempt yet", "It is due", "perennial run"],
    );
}

#[test]
fn failing_with_backoff() {
    let read = with_lease(|lease| Lease {
        state: State::Idle,
        generation: Gen(9),
        fails: 3,
        error: Some("http_503".into()),
        next_at: Some(ahead(1000)),
        ..lease
    });
    expect(read, "idle", &["failed 3 times in a row, with http_503 last", "backs off", "(in 16m 40s)"]);
}

#[test]
fn in_flight() {
    let begun = Some(ago(10));
    let read = with_lease(|lease| Lease { generation: Gen(8), intended_at: begun, ..lease });
    expect(read, "refreshing", &["being refreshed", "by me#1", "(in 1m 20s)"]);
}

#[test]
fn in_doubt_after_its_owner_died() {
    let read = with_lease(|lease| Lease { generation: Gen(8), ..lease });
    expect(read, "in-doubt", &["its owner may have died", "may be spent", "takes over once", "by me#1"]);
}

#[test]
fn held_for_an_operator() {
    let read = with_lease(|lease| Lease {
        generation: Gen(8),
        state: State::Held,
        of: Some(Gen(7)),
        doubt: Some((Gen(7), 3)),
        fails: 3,
        error: Some("timeout".into()),
        ..lease
    });
    expect(read, "held", &["in 3 sends", "resolve c1 --retry", "resolve c1 --dead", "import-token c1"]);
}

fn dead(code: &str) -> Snapshot {
    with_lease(|lease| Lease {
        generation: Gen(8),
        state: State::Dead,
        of: Some(Gen(7)),
        fails: 1,
        error: Some(code.into()),
        ..lease
    })
}

#[test]
fn dead_because_the_provider_said_so() {
    expect(dead("invalid_grant"), "dead", &["the provider said invalid_grant", "import-token c1 --refresh"]);
}

#[test]
fn dead_because_a_rotation_was_lost() {
    expect(
        dead("lost_rotation"),
        "dead",
        &["spent by an attempt whose answer was lost", "exists nowhere else"],
    );
}

#[test]
fn a_newer_token_voids_the_death() {
    let read = dead("invalid_grant");
    let token = read.token.clone().map(|token| Token { generation: Gen(8), ..token });
    assert_eq!(story(Snapshot { token, ..read }).0, "idle");
}

#[test]
fn paused() {
    expect(with_client(|client| client.paused = true), "paused", &["paused by", "clients resume c1"]);
}

#[test]
fn removed_and_absent() {
    let removed = Snapshot { registration: Registration::Removed, lease: None, token: None };
    expect(removed, "removed", &["was removed", "clients add c1"]);
    let absent = Snapshot { registration: Registration::Absent, lease: None, token: None };
    expect(absent.clone(), "absent", &["No such client"]);
    let foreign = Snapshot { token: fine().token, ..absent };
    expect(foreign, "absent", &["another tool wrote", "adopts"]);
}

#[test]
fn a_malformed_item_is_named() {
    let malformed = Malformed {
        item: "CLIENT#c1/LEASE".into(),
        attribute: "gen".into(),
        problem: "has type S, needs N".into(),
    };
    let text = tell(&client().id, &Err(malformed), None, NOW).text();
    assert!(text.contains("CLIENT#c1/LEASE: attribute `gen` has type S, needs N"), "{text}");
    assert!(text.contains("never overwrites"), "{text}");
}

#[test]
fn a_registration_without_a_lease_is_told() {
    expect(Snapshot { lease: None, ..fine() }, "malformed", &["CLIENT#c1/LEASE is missing"]);
}

#[test]
fn a_state_of_a_newer_version_is_left_alone() {
    let read = with_lease(|lease| Lease { state: State::Unknown("Z".into()), ..lease });
    expect(read, "held", &["\"Z\"", "newer version"]);
}

#[test]
fn binding_mismatch() {
    let read = with_client(|client| client.client_id = "other".into());
    expect(read, "idle", &["another provider, token endpoint", "not sent", "--replace"]);
}

#[test]
fn expired_with_a_long_streak() {
    let read = with_token(|token| Token { expires_at: ago(7200), ..token });
    let lease = read.lease.clone().map(|lease| Lease {
        state: State::Idle,
        generation: Gen(30),
        fails: 22,
        error: Some("http_500".into()),
        next_at: Some(ahead(60)),
        ..lease
    });
    expect(Snapshot { lease, ..read }, "expired", &["expired at", "(2h ago)", "long streak", "22 times"]);
}

#[test]
fn a_provider_that_is_not_configured() {
    let story = tell(&client().id, &Ok(fine()), None, NOW).text();
    assert!(story.contains("`acme` is not in this configuration"), "{story}");
    assert!(story.contains("add [providers.acme]"), "{story}");
}

#[test]
fn refresh_now_was_asked_for() {
    let read = with_client(|client| {
        client.refresh_now = Some(Gen(7));
        client.joined = ago(5);
    });
    expect(read, "idle", &["asked for a new token", "It is due, since", "(5s ago)"]);
}

#[test]
fn a_ttl_on_a_live_refresh_token() {
    let read = with_token(|token| Token { ttl: Some(ahead(3600)), ..token });
    expect(read, "idle", &["carries a ttl", "delete the grant", "takes the ttl off"]);
}

#[test]
fn a_client_secret_that_died_is_no_dead_grant() {
    let read = with_lease(|lease| Lease {
        state: State::Idle,
        generation: Gen(9),
        fails: 1,
        error: Some("invalid_client".into()),
        next_at: Some(ahead(1000)),
        ..lease
    });
    expect(read, "idle", &["failed once", "refuses the application itself"]);
}

#[test]
fn a_mintable_token_that_ttl_took_is_pending() {
    let mut read = with_client(|client| client.grant = Grant::ClientCredentials);
    read.token = None;
    expect(read, "in-doubt", &["takes over", "refreshes it as always"]);
    let mut idle = with_client(|client| client.grant = Grant::ClientCredentials);
    idle.token = None;
    idle.lease = Some(Lease::idle(Gen(7)));
    expect(idle, "pending", &["first token"]);
}
