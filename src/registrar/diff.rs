//! What a wanted registration changes in the one that stands: create, update field by field, or nothing.
//!
//! Pure. Its invariant: a live refresh token is never overwritten, dropped, or carried over to another provider,
//! endpoint or OAuth client id, unless the operator says for this very client that it is to be replaced.

use std::collections::{BTreeMap, BTreeSet};

use crate::client::credentials::Credential;
use crate::client::{Client, Grant, Provider, without_query};
use crate::plan::lease::{Standing, standing};
use crate::plan::registry::{Imported, Refusal, stamp};
use crate::record::Snapshot;
use crate::secret::Secret;
use crate::time::Timestamp;

/// A registration as an operator wants it.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// All of it but what operators say by commands: its `refresh_now`, `joined` and `paused` are not read.
    pub client: Client,
    /// Whether it is to be paused; `None` leaves that as it is.
    pub paused: Option<bool>,
}

impl Wanted {
    /// The registration as it is to be written over what was read.
    pub fn over(&self, read: &Snapshot, now: Timestamp, mint_anew: bool) -> Client {
        let was = read.client();
        Client {
            paused: self.paused.unwrap_or_else(|| was.is_some_and(|was| was.paused)),
            refresh_now: if mint_anew { Some(read.tok_gen()) } else { was.and_then(|was| was.refresh_now) },
            joined: was.map_or(now, |was| Timestamp::from_millis(stamp(was, now))),
            ..self.client.clone()
        }
    }
}

/// One field of a registration that changes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Field {
    /// Its name in a clients file.
    pub field: &'static str,
    /// How, in words; never the value of a secret.
    pub change: String,
}

/// What is to be done about one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Register it.
    Create {
        /// Whether it takes over tokens that another tool wrote.
        adopts: bool,
    },
    /// Change the registration; the tokens stay.
    Update {
        /// What changes.
        fields: Vec<Field>,
        /// Whether the next token is asked for at once.
        mint_anew: bool,
    },
    /// Change what there is to change, and put other tokens in the place of the old ones.
    Replace {
        /// What changes beside the tokens.
        fields: Vec<Field>,
        /// Whether the new ones are minted, and not those that are given.
        minted: bool,
    },
    /// Nothing.
    Unchanged,
}

impl Step {
    pub(super) fn mints_anew(&self) -> bool {
        matches!(self, Self::Update { mint_anew: true, .. })
    }
}

/// Whether the client lives on a stored refresh token that may still be good: neither dead nor held.
pub(super) fn has_live_grant(read: &Snapshot) -> bool {
    let needs = read.client().is_some_and(|client| client.grant.needs_refresh_token());
    let stored = read.token.as_ref().is_some_and(|token| token.refresh_token.is_some());
    let over = read
        .lease
        .as_ref()
        .is_some_and(|lease| matches!(standing(lease, read.tok_gen()), Standing::Dead | Standing::Held));
    needs && stored && !over
}

/// What it takes to make the registration what is wanted.
pub fn diff(
    wanted: &Wanted,
    read: &Snapshot,
    tokens: &Imported,
    provider: &Provider,
    replace: bool,
) -> Result<Step, Refusal> {
    tokens.fit(&wanted.client)?;
    match read.client() {
        None => create(wanted, read, tokens, replace),
        Some(was) => update(wanted, was, read, tokens, provider, replace),
    }
}

fn create(wanted: &Wanted, read: &Snapshot, tokens: &Imported, replace: bool) -> Result<Step, Refusal> {
    let id = &wanted.client.id;
    let found = read.token.as_ref().and_then(|token| token.refresh_token.as_ref());
    let needs = wanted.client.grant.needs_refresh_token();
    match (found, &tokens.refresh_token) {
        (None, None) if needs => Err(Refusal::NeedsRefreshToken(id.clone())),
        (Some(found), Some(given)) if found != given && !replace => Err(Refusal::LiveGrant(id.clone())),
        // The very token that stands there: the access token beside it is the better one, too.
        (Some(found), Some(given)) if found == given => Ok(Step::Create { adopts: true }),
        (_, Some(_)) => Ok(Step::Create { adopts: false }),
        (_, None) => Ok(Step::Create { adopts: read.token.is_some() && tokens.access_token.is_none() }),
    }
}

fn update(
    wanted: &Wanted,
    was: &Client,
    read: &Snapshot,
    tokens: &Imported,
    provider: &Provider,
    replace: bool,
) -> Result<Step, Refusal> {
    let id = &wanted.client.id;
    let fields = changed_fields(was, wanted, provider);
    let needs = wanted.client.grant.needs_refresh_token();
    let given = tokens.refresh_token.is_some();
    let live = has_live_grant(read);
    if replace && needs && !given {
        return Err(Refusal::NeedsRefreshToken(id.clone()));
    }
    if let Some(field) = rebinds(was, wanted, provider) {
        return match (needs, replace) {
            (_, true) => Ok(Step::Replace { fields, minted: false }),
            (_, false) if live => Err(Refusal::Moved(id.clone(), field)),
            (true, false) if was.grant.needs_refresh_token() => Err(Refusal::Moved(id.clone(), field)),
            (true, false) if !given => Err(Refusal::NeedsRefreshToken(id.clone())),
            (true, false) => Ok(Step::Replace { fields, minted: false }),
            (false, false) => Ok(Step::Replace { fields, minted: true }),
        };
    }
    // A client that mints its tokens, with none given: there is nothing to put in the place of a good one.
    let gives = given || tokens.access_token.is_some();
    if replace && gives && !already_there(read, tokens) {
        return Ok(Step::Replace { fields, minted: false });
    }
    if fields.is_empty() {
        return Ok(Step::Unchanged);
    }
    let asks_otherwise = |field: &Field| ["scopes", "audience", "resource", "params"].contains(&field.field);
    let mint_anew = wanted.client.grant == Grant::ClientCredentials && fields.iter().any(asks_otherwise);
    Ok(Step::Update { fields, mint_anew })
}

/// Whether the given refresh token is the stored one and in good standing: replacing it would only fence out
/// whatever is in flight.
fn already_there(read: &Snapshot, tokens: &Imported) -> bool {
    let stored = read.token.as_ref().and_then(|token| token.refresh_token.as_ref());
    tokens.refresh_token.is_some() && stored == tokens.refresh_token.as_ref() && has_live_grant(read)
}

/// The first field whose change takes the tokens' use away.
fn rebinds(was: &Client, wanted: &Wanted, provider: &Provider) -> Option<&'static str> {
    let is = &wanted.client;
    let checks = [
        ("provider", was.provider != is.provider),
        ("grant", was.grant != is.grant),
        ("token_url", was.endpoint(provider) != is.endpoint(provider)),
        ("client_id", was.client_id != is.client_id),
    ];
    checks.into_iter().find(|(_, changed)| *changed).map(|(field, _)| field)
}

fn changed_fields(was: &Client, wanted: &Wanted, provider: &Provider) -> Vec<Field> {
    let is = &wanted.client;
    let url = |client: &Client| client.token_url.as_ref().map(without_query);
    let paused = wanted.paused.unwrap_or(was.paused);
    let plain = [
        ("provider", Some(was.provider.clone()), Some(is.provider.clone())),
        ("grant", Some(was.grant.to_string()), Some(is.grant.to_string())),
        ("client_id", Some(was.client_id.clone()), Some(is.client_id.clone())),
        ("scopes", list(&was.scopes), list(&is.scopes)),
        ("audience", was.audience.clone(), is.audience.clone()),
        ("resource", list(&was.resource), list(&is.resource)),
        ("paused", Some(was.paused.to_string()), Some(paused.to_string())),
    ];
    let mut fields: Vec<Field> = plain
        .into_iter()
        .filter(|(_, was, is)| was != is)
        .map(|(field, was, is)| Field { field, change: arrow(was, is) })
        .collect();
    fields.extend(changed_secret("client_secret", &was.credentials.first, &is.credentials.first));
    fields.extend(changed_secret("second_client_secret", &was.credentials.second, &is.credentials.second));
    if was.params != is.params {
        fields.push(Field { field: "params", change: changed_names(&was.params, &is.params) });
    }
    if was.token_url != is.token_url {
        let default = || format!("the provider's ({})", without_query(&provider.token_url));
        let shown = |client| Some(url(client).unwrap_or_else(default));
        fields.push(Field { field: "token_url", change: arrow(shown(was), shown(is)) });
    }
    fields
}

/// A secret by what it is, or where; of two that are both in the table nothing is told apart.
fn changed_secret(field: &'static str, was: &Option<Credential>, is: &Option<Credential>) -> Option<Field> {
    let shown = |credential: &Option<Credential>| credential.as_ref().map(|one| one.shown().to_owned());
    let change = match (was, is) {
        _ if was == is => return None,
        (Some(Credential::Stored(_)), Some(Credential::Stored(_))) => "changed".to_owned(),
        _ => arrow(shown(was), shown(is)),
    };
    Some(Field { field, change })
}

fn list(words: &[String]) -> Option<String> {
    (!words.is_empty()).then(|| words.join(" "))
}

fn arrow(was: Option<String>, is: Option<String>) -> String {
    let shown = |text: Option<String>| text.unwrap_or_else(|| "none".into());
    format!("{} -> {}", shown(was), shown(is))
}

/// Parameters by their names alone: their values may be anything.
fn changed_names(was: &BTreeMap<String, Secret>, is: &BTreeMap<String, Secret>) -> String {
    let names: BTreeSet<&String> = was.keys().chain(is.keys()).collect();
    let changed: Vec<&str> =
        names.into_iter().filter(|name| was.get(*name) != is.get(*name)).map(String::as_str).collect();
    format!("{} changed", changed.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::credentials::Credentials;
    use crate::plan::testing::{client, provider};
    use crate::record::Registration;

    #[test]
    fn what_changes_is_told_without_a_secret() {
        let (mut was, mut is) = (client(), client());
        was.credentials = Credentials::stored("canary-1");
        was.params.insert("assertion".into(), "canary-2".into());
        is.credentials = Credentials::stored("canary-3");
        is.credentials.second = Some(Credential::At("ssm:/acme".parse().expect("a reference")));
        is.params.insert("assertion".into(), "canary-4".into());
        is.token_url = Some(provider().token_url);
        let read = Snapshot { registration: Registration::Live(Box::new(was)), lease: None, token: None };
        let wanted = Wanted { client: is, paused: None };
        let step = diff(&wanted, &read, &Imported::nothing(), &provider(), false).expect("allowed");
        let Step::Update { fields, .. } = &step else { panic!("{step:?}") };
        let told: Vec<_> = fields.iter().map(|field| (field.field, field.change.as_str())).collect();
        let secrets = [("client_secret", "changed"), ("second_client_secret", "none -> ssm:/acme")];
        assert_eq!((&told[..2], told[2]), (&secrets[..], ("params", "assertion changed")));
        assert_eq!(told[3].0, "token_url", "the same endpoint by name: the tokens stay");
        assert!(!format!("{step:?}").contains("canary"));
    }
}
