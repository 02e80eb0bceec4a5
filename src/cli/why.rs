//! `perennial why`: what state a client is in, how it came to that, what happens next, and what can be done.
//!
//! The story is a pure function of what the table says, the provider's profile and the time: [`tell`].

use std::process::ExitCode;

use clap::Args;

use super::standing::{ClientStatus, relative};
use super::story::{Remedy, Story};
use super::{App, client_id, output};
use crate::client::credentials::{Credential, Credentials};
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
        self.secrets(&mut story);
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
            "secret_unavailable" => story.can(
                format!("perennial clients secret check {}", self.id),
                "looks its secret up from here: nothing is sent until whoever keeps it answers",
            ),
            "unreadable_secret" => story.can(
                "perennial seal status",
                "a secret of it does not open: the daemon's log names the item and the key; docs/runbook.md#unreadable_secret",
            ),
            "secret_refused" => story.can(
                format!("perennial clients secret check {}", self.id),
                "says why its secret cannot be had: a missing rule in secrets.allow, a missing right, or nothing there",
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

    /// Where its secrets are, and what is left to do about a second one.
    fn secrets(&self, story: &mut Story) {
        let Credentials { first, second } = &self.client.credentials;
        if let Some(reference) = first.as_ref().and_then(Credential::reference) {
            story.is(format!("Its client secret is looked up at {reference}."));
        }
        let Some(second) = second else { return };
        story.is(format!(
            "It has a second client secret ({}), tried where the provider refuses the first.",
            second.shown()
        ));
        story.can(
            format!("perennial clients secret promote {}", self.id),
            "makes the second the first, once the provider takes it: as long as it refuses the first, each refresh is sent \
             twice",
        );
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
mod tests;
