//! `perennial why`: what state a client is in, how it came to that, what happens next, and what can be done.
//!
//! The story is a pure function of what the table says, the provider's profile and the time: [`tell`].

use std::process::ExitCode;

use clap::Args;

use super::standing::{ClientStatus, relative};
use super::story::{Remedy, Story};
use super::{App, client_id, output};
use crate::client::{Client, ClientId, InDoubt, Provider};
use crate::plan::condition::{Condition, lease_end};
use crate::plan::in_doubt::Risk;
use crate::plan::outcome::LONG_STREAK;
use crate::plan::schedule::wanted_at;
use crate::record::{Lease, Malformed, Registration, Snapshot, State, Token};
use crate::store::{DynamoVault, Store as _, StoreError};
use crate::time::Timestamp;

/// Tell in plain words what state a client is in, what happens next, and what can be done.
#[derive(Debug, Args)]
pub(super) struct Why {
    /// The client.
    #[arg(value_name = "CLIENT", value_parser = client_id)]
    id: ClientId,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Why {
    pub(super) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let story = story_of(app, &app.store().await?, &self.id).await?;
        if self.json {
            output::json(&story)?
        } else {
            output::line(story.text())?
        }
        Ok(if story.found { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Reads a client, strongly consistent, and tells its story.
pub(super) async fn story_of(app: &App, store: &DynamoVault, id: &ClientId) -> Result<Story, StoreError> {
    let read = store.read(id).await?.decode(id);
    let client = read.as_ref().ok().and_then(Snapshot::client);
    let provider = client.and_then(|client| app.config().providers.get(&client.provider));
    Ok(tell(id, &read, provider.map(AsRef::as_ref), app.clock().now()))
}

/// The whole story of a client, as its items were read.
pub(super) fn tell(
    id: &ClientId,
    read: &Result<Snapshot, Malformed>,
    provider: Option<&Provider>,
    now: Timestamp,
) -> Story {
    let read = match read {
        Ok(read) => read,
        Err(malformed) => return of_malformed(id, malformed),
    };
    let Some(client) = read.client() else { return of_nobody(id, read) };
    let Some(status) = ClientStatus::of(client, read, now) else { return of_half_a_client(id) };
    let mut story = Teller { id, client, read, provider, status: &status, now }.tell();
    if let Registration::Live(client) = &read.registration
        && provider.is_none()
    {
        no_provider(&mut story, client);
    }
    story
}

fn of_malformed(id: &ClientId, malformed: &Malformed) -> Story {
    let mut story = Story::new(id, "malformed");
    story.is(format!("An item of it cannot be understood: {malformed}."));
    story.then("Nothing: the daemon skips the client and never overwrites the item.");
    story.can(
        format!(
            "correct or delete the attribute `{}` of {} in the table",
            malformed.attribute, malformed.item
        ),
        "the client is taken up again at the daemon's next reconciliation, or when it is restarted",
    );
    story
}

fn of_nobody(id: &ClientId, read: &Snapshot) -> Story {
    let removed = read.registration == Registration::Removed;
    let mut story = Story::new(id, if removed { "removed" } else { "absent" });
    story.found = false;
    if removed {
        story.is("It was removed, with its tokens; its generations are remembered for 90 days.");
    } else {
        story.is("No such client is registered.");
    }
    if !removed && read.token.is_some() {
        story.is("There is a token item under its name, which another tool wrote; nobody refreshes it.");
        story.can(format!("perennial clients add {id} ..."), "adopts the tokens that stand there");
    } else {
        story.can(format!("perennial clients add {id} ..."), "registers it");
    }
    story.can("perennial clients list", "shows who is registered");
    story
}

fn of_half_a_client(id: &ClientId) -> Story {
    let mut story = Story::new(id, "malformed");
    story
        .is(format!("CLIENT#{id}/LEASE is missing, though the client is registered: nobody can refresh it."));
    story.then("Nothing: registrations are written whole, so another tool or a person wrote this one.");
    story.can(
        format!("delete CLIENT#{id}/CONFIG by hand, then perennial clients add {id} ..."),
        "registers it whole, and adopts the tokens that stand there",
    );
    story
}

fn no_provider(story: &mut Story, client: &Client) {
    let name = &client.provider;
    story.is(format!("Its provider `{name}` is not in this configuration."));
    story.next =
        vec![format!("Nothing, as long as the daemon's configuration has no [providers.{name}] either.")];
    story.remedies.insert(
        0,
        Remedy {
            command: format!("add [providers.{name}] to the configuration and restart the daemon"),
            effect: "it is refreshed again".into(),
        },
    );
}

struct Teller<'a> {
    id: &'a ClientId,
    client: &'a Client,
    read: &'a Snapshot,
    provider: Option<&'a Provider>,
    status: &'a ClientStatus,
    now: Timestamp,
}

impl Teller<'_> {
    fn tell(&self) -> Story {
        let mut story = Story::new(self.id, self.status.condition.as_str());
        match self.status.condition {
            Condition::Dead => self.dead(&mut story),
            Condition::Held => self.held(&mut story),
            Condition::Refreshing => self.refreshing(&mut story),
            Condition::InDoubt => self.in_doubt(&mut story),
            Condition::Paused => self.paused(&mut story),
            Condition::Pending | Condition::Expired | Condition::Idle => self.waiting(&mut story),
        }
        if self.client.paused && self.status.condition != Condition::Paused {
            story.is(
                "It is paused by an operator, too: whatever is done about the rest, it is not refreshed.",
            );
            story.can(
                format!("perennial clients resume {}", self.id),
                "has it refreshed again, once the rest is done",
            );
        }
        self.attempts(&mut story);
        self.findings(&mut story);
        story
    }

    fn lease(&self) -> Option<&Lease> {
        self.read.lease.as_ref()
    }

    fn token(&self) -> Option<&Token> {
        self.read.token.as_ref()
    }

    fn at(&self, time: Timestamp) -> String {
        format!("{time} ({})", relative(time, self.now))
    }

    fn reason(&self) -> &str {
        self.status.error.as_deref().unwrap_or("unknown reason")
    }

    fn import(&self, story: &mut Story, replace: bool) {
        let id = self.id;
        let replace = if replace { " --replace" } else { "" };
        story.can(
            format!("perennial clients import-token {id} --refresh-token-stdin{replace}"),
            "puts in the refresh token of a new consent; the client lives again",
        );
    }

    fn token_life(&self, story: &mut Story) {
        match self.status.expires_at {
            None => story.is("It has no access token yet."),
            Some(at) if at <= self.now => story.is(format!("Its access token expired at {}.", self.at(at))),
            Some(at) => story.is(format!("Its access token is good until {}.", self.at(at))),
        }
    }

    fn dead(&self, story: &mut Story) {
        if self.lease().is_some_and(|lease| lease.state == State::Removed) {
            story.is("Its LEASE says that it was removed, its CONFIG that it was not: nobody refreshes it.");
            story.can(format!("perennial clients remove {}", self.id), "removes the rest of it");
            return;
        }
        match self.reason() {
            "lost_rotation" => {
                story.is(
                    "Its grant is dead: the refresh token was spent by an attempt whose answer was lost.",
                );
                story.is("The provider rotates: the new refresh token was in that answer, and exists nowhere else.");
            }
            code => story.is(format!("Its grant is dead: the provider said {code}.")),
        }
        self.token_life(story);
        story.then(
            "Nothing by itself. The daemon looks again now and then, in case somebody brings new tokens.",
        );
        self.import(story, false);
        story.can(format!("perennial clients remove {}", self.id), "forgets the client");
    }

    fn held(&self, story: &mut Story) {
        if let Some(State::Unknown(state)) = self.lease().map(|lease| &lease.state) {
            story
                .is(format!("Its LEASE is in the state {state:?}, which a newer version must have written."));
            story.then("This version leaves it alone.");
            story.can("upgrade this installation", "the newer version takes care of it");
            return;
        }
        let sends = self.status.doubt.unwrap_or(1);
        story.is(format!(
            "It is held: its refresh token may have been spent, in {sends} sends to which no answer came ({}).",
            self.reason()
        ));
        self.token_life(story);
        story.then("Nothing by itself: sending a spent refresh token may cost the whole grant. You decide.");
        story.can(
            format!("perennial clients resolve {} --retry", self.id),
            "sends the stored refresh token once more: right if the provider never got the request",
        );
        self.import(story, false);
        story.can(format!("perennial clients resolve {} --dead", self.id), "gives the grant up for lost");
    }

    fn refreshing(&self, story: &mut Story) {
        let lease = self.lease();
        story.is("It is being refreshed.");
        self.token_life(story);
        if let Some(lease) = lease {
            story.then(format!("The attempt ends by {} at the latest.", self.at(lease_end(lease))));
        }
    }

    fn in_doubt(&self, story: &mut Story) {
        let end = self.lease().map(lease_end).unwrap_or_default();
        story.is(format!(
            "In doubt: an attempt should have ended by {}; its owner may have died.",
            self.at(end)
        ));
        self.token_life(story);
        let rotates = self.provider.is_none_or(|provider| Risk::of(provider, self.client.grant).rotates);
        if rotates {
            story.is("Its refresh token may be spent: then the new one was lost with the owner.");
        }
        let policy = self.provider.map(|provider| Risk::of(provider, self.client.grant).policy);
        story.then(match policy.unwrap_or_default() {
            InDoubt::Hold => "A daemon takes over once its wait is over, and holds the client for you to decide.",
            InDoubt::Reusable => "A daemon takes over once its wait is over, and refreshes it as always.",
            InDoubt::Grace | InDoubt::RetryOnce => {
                "A daemon takes over once its wait is over (while the access token is good it may wait until two \
                 minutes before its expiry), and sends the stored refresh token once more."
            }
        });
        story.can("perennial run", "starts a daemon, if none is running");
    }

    fn paused(&self, story: &mut Story) {
        story.is(format!("It is paused by an operator, since {} or before.", self.at(self.client.joined)));
        self.token_life(story);
        story.then("Nothing, until it is resumed.");
        story.can(format!("perennial clients resume {}", self.id), "has it refreshed again");
    }

    fn waiting(&self, story: &mut Story) {
        match self.status.condition {
            Condition::Pending => story.is(format!(
                "It waits for its first token, since {}.",
                self.at(self.client.joined.min(self.now))
            )),
            _ => self.token_life(story),
        }
        let Some(at) = self.status.next_refresh else { return };
        let failures = self.status.failures;
        let backing_off = self.lease().and_then(|lease| lease.next_at).is_some_and(|next| next >= at);
        if at > self.now && failures > 0 && backing_off {
            story.then(format!("The next try is made at {}: it backs off after each failure.", self.at(at)));
        } else if at > self.now {
            story.then(format!("It is refreshed at {}.", self.at(at)));
        } else {
            story.then(format!("It is due, since {}: a running daemon refreshes it now.", self.at(at)));
            story.can("perennial run", "starts a daemon, if none is running");
        }
        if failures > 0 {
            self.remedies_for_failures(story);
        }
    }

    fn remedies_for_failures(&self, story: &mut Story) {
        match self.reason() {
            "no_refresh_token" | "no_token_item" => self.import(story, false),
            "binding_mismatch" => {}
            "spill_unreadable" => story.can(
                "perennial spill list",
                "its newest tokens may lie in the spill, which does not answer or holds a record of it that does not open: \
                 nothing is sent until it does, or the record is removed",
            ),
            "invalid_client" | "unauthorized_client" => story.can(
                "correct the client's secret in its clients file, then perennial clients apply FILE",
                "the provider refuses the application itself: its id or secret is wrong, not the customer's grant",
            ),
            _ => story.can(
                "look at the provider's status, and at the daemon's log for this client",
                "failures like this end by themselves once the provider answers again",
            ),
        }
    }

    fn attempts(&self, story: &mut Story) {
        let Some(lease) = self.lease() else { return };
        let attempt = lease.intended_at.map(|at| self.at(at));
        let owner = lease.owner.as_deref().unwrap_or("unknown");
        match (attempt, self.status.failures) {
            (None, 0) => story.was("There was no attempt yet since its tokens were put in."),
            (None, fails) => story.was(format!("It failed {}: {}.", times(fails), self.reason())),
            (Some(at), 0) => {
                let ended = lease.state != State::InFlight || self.read.tok_gen() >= lease.generation;
                let end = if ended { " and ended without a failure" } else { "" };
                story.was(format!("The last attempt began at {at}{end}, by {owner}."));
            }
            (Some(at), fails) => {
                let last = self.reason();
                story.was(format!(
                    "It failed {}, with {last} last; the last attempt began at {at}, by {owner}.",
                    times(fails)
                ));
            }
        }
        if let Some(sends) = self.status.doubt.filter(|_| self.status.condition != Condition::Held) {
            story.was(format!(
                "The stored refresh token is in doubt: it may be spent, after {sends} sends without an answer."
            ));
        }
    }

    /// What is wrong beside the state, or is about to be.
    fn findings(&self, story: &mut Story) {
        let Some(token) = self.token() else { return };
        let needs = self.client.grant.needs_refresh_token();
        let bound = self.provider.map(|provider| self.client.binding(provider));
        if needs && token.binding.is_some() && bound.is_some() && token.binding != bound {
            story.is("Its tokens were obtained with another provider, token endpoint or OAuth client id.");
            story.next =
                vec!["It is not sent: a refresh token under another client id may be revoked.".into()];
            story.can(
                "change the registration or the configuration back",
                "its refresh token is of use again",
            );
            self.import(story, true);
        }
        if needs && token.refresh_token.is_none() && self.status.condition != Condition::Dead {
            story.is("Its grant needs a refresh token, and none is stored.");
        }
        if token.refresh_token.is_some()
            && let Some(ttl) = token.ttl
        {
            story.is(format!(
                "Its token item carries a ttl of {}: DynamoDB would delete the grant.",
                self.at(ttl)
            ));
            story.then("The daemon takes the ttl off; another tool must have written it.");
        }
        let asked = self.client.refresh_now.is_some_and(|asked| token.generation <= asked);
        if asked && wanted_at(self.client, token) == Timestamp::EPOCH {
            story.is(format!("An operator asked for a new token (at {}).", self.at(self.client.joined)));
        }
        let expired = self.status.expires_at.is_none_or(|at| at <= self.now);
        if self.status.failures >= LONG_STREAK && expired {
            story.is(
                "This is a long streak without a good token: readers of this client are cut off. Act on it.",
            );
        }
    }
}

fn times(count: u32) -> String {
    if count == 1 { "once".into() } else { format!("{count} times in a row") }
}

#[cfg(test)]
mod tests {
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
        Snapshot {
            registration: Registration::Live(Box::new(client)),
            lease: Some(lease),
            token: Some(token),
        }
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
        expect(
            dead("invalid_grant"),
            "dead",
            &["the provider said invalid_grant", "import-token c1 --refresh"],
        );
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
}
