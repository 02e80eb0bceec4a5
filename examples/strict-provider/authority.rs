//! Who may have which token: clients, grants, rotation, and the detection of reuse. No HTTP here.
//!
//! The invariant: a refresh token is redeemed at most once, and the second attempt kills its family, that is the
//! grant with its newest refresh token and all its access tokens.
//!
//! A token names its family and its generation and carries a tag under the server's key. So memory grows with the
//! grants and never with the refreshes, and a benchmark may run for as long as it likes. A table of spent tokens
//! would have been the more usual way and would have grown for ever.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::request::{Credentials, Params, Refusal, TokenRequest};

/// The rules that hold for all grants of this provider.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    /// Life of an access token.
    pub(crate) lifetime: Duration,
    /// A refresh replaces the refresh token.
    pub(crate) rotate: bool,
    /// How long after a rotation the previous refresh token still works.
    pub(crate) grace: Duration,
}

/// A client's registration, as `/control/clients` takes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Client {
    client_id: String,
    #[serde(default)]
    client_secret: Option<String>,
    auth: AuthMethod,
    /// Grant types the client may use.
    #[serde(default = "all_grants")]
    grants: Vec<String>,
    /// Scopes the client may ask for; any where it is absent.
    #[serde(default)]
    scopes: Option<Vec<String>>,
}

impl Client {
    /// One that authenticates by HTTP Basic, and may use every grant.
    pub(crate) fn basic(client_id: &str, client_secret: &str) -> Self {
        Self {
            client_id: client_id.to_owned(),
            client_secret: Some(client_secret.to_owned()),
            auth: AuthMethod::Basic,
            grants: all_grants(),
            scopes: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum AuthMethod {
    Basic,
    Post,
    None,
}

fn all_grants() -> Vec<String> {
    ["client_credentials", "refresh_token"].map(str::to_owned).to_vec()
}

/// Tokens just issued.
#[derive(Debug, Clone)]
pub(crate) struct Granted {
    pub(crate) access_token: String,
    pub(crate) refresh_token: Option<String>,
    pub(crate) lifetime: Duration,
    pub(crate) scope: Option<String>,
    /// Family and generation, for the event log. A client_credentials grant has none.
    pub(crate) origin: Option<(usize, u64)>,
}

/// What the authority knows of a refresh token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Standing {
    /// This provider issued it.
    pub(crate) known: bool,
    /// It is its family's newest, and the family is not revoked.
    pub(crate) live: bool,
    /// Its family is revoked.
    pub(crate) revoked: bool,
}

/// One grant with all the tokens that descend from it.
#[derive(Debug)]
struct Family {
    client: usize,
    scope: String,
    /// Number of the refresh token that is live.
    generation: u64,
    rotated_at: SystemTime,
    revoked: bool,
}

#[derive(Debug, Default, Clone, Serialize)]
struct Counts {
    token_requests: u64,
    granted: u64,
    refused: u64,
    double_redemptions: u64,
    grace_replays: u64,
}

/// The provider's whole memory.
#[derive(Debug)]
pub(crate) struct Authority {
    policy: Policy,
    key: [u8; 32],
    clients: Vec<Client>,
    numbers: HashMap<String, usize>,
    families: Vec<Family>,
    /// Numbers the access tokens, so that no two are equal.
    serial: u64,
    total: Counts,
    by_client: BTreeMap<String, Counts>,
    refused_by_error: BTreeMap<&'static str, u64>,
}

impl Authority {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            policy,
            key: rand::random(),
            clients: Vec::new(),
            numbers: HashMap::new(),
            families: Vec::new(),
            serial: 0,
            total: Counts::default(),
            by_client: BTreeMap::new(),
            refused_by_error: BTreeMap::new(),
        }
    }

    /// Registers a client. Registering it again replaces its secret and its rights and keeps its grants.
    pub(crate) fn register(&mut self, client: Client) {
        self.by_client.entry(client.client_id.clone()).or_default();
        match self.numbers.get(&client.client_id) {
            Some(&number) => self.clients[number] = client,
            None => {
                self.numbers.insert(client.client_id.clone(), self.clients.len());
                self.clients.push(client);
            }
        }
    }

    /// Makes a fresh grant, as if a user had consented. `None` where the client is unknown.
    pub(crate) fn mint(&mut self, client_id: &str, scope: &str, now: SystemTime) -> Option<Granted> {
        let client = *self.numbers.get(client_id)?;
        let family =
            Family { client, scope: scope.to_owned(), generation: 0, rotated_at: now, revoked: false };
        self.families.push(family);
        Some(self.issue(self.families.len() - 1, scope.to_owned(), true, now))
    }

    /// Counts a token request that a fault keeps from being processed.
    pub(crate) fn count_unprocessed(&mut self, client_id: Option<&str>) {
        self.count(client_id, |counts| counts.token_requests += 1);
    }

    /// Answers a token request: RFC 6749 sections 4.4 and 6, and RFC 9700 section 4.14.
    pub(crate) fn token(&mut self, request: &TokenRequest, now: SystemTime) -> Result<Granted, Refusal> {
        let outcome = self.decide(request, now);
        let client_id = request.credentials.client_id();
        match outcome {
            Ok(_) => self.count(Some(client_id), |counts| {
                counts.token_requests += 1;
                counts.granted += 1;
            }),
            Err(refusal) => self.count_refusal(Some(client_id), refusal),
        }
        outcome
    }

    /// Counts a request that was refused, here or before it came so far.
    pub(crate) fn count_refusal(&mut self, client_id: Option<&str>, refusal: Refusal) {
        *self.refused_by_error.entry(refusal.error).or_default() += 1;
        self.count(client_id, |counts| {
            counts.token_requests += 1;
            counts.refused += 1;
            counts.double_redemptions += u64::from(refusal.double_redemption);
        });
    }

    pub(crate) fn standing(&self, refresh_token: &str) -> Standing {
        let Some((number, generation)) = self.open_refresh(refresh_token) else {
            return Standing { known: false, live: false, revoked: false };
        };
        let family = &self.families[number];
        let live = !family.revoked && family.generation == generation;
        Standing { known: true, live, revoked: family.revoked }
    }

    /// Revokes the grant that a refresh token belongs to, as a user does who disconnects the application.
    pub(crate) fn revoke(&mut self, refresh_token: &str) -> bool {
        let opened = self.open_refresh(refresh_token);
        if let Some((number, _)) = opened {
            self.families[number].revoked = true;
        }
        opened.is_some()
    }

    /// RFC 7662: what is known of a token, and nothing but `active: false` where it is not active.
    pub(crate) fn introspect(&self, token: &str, now: SystemTime) -> Value {
        let about_access = self.open_access(token, now);
        let about_refresh = || self.standing(token).live.then(|| self.describe_refresh(token)).flatten();
        about_access.or_else(about_refresh).unwrap_or_else(|| json!({ "active": false }))
    }

    pub(crate) fn stats(&self) -> Value {
        let live = || self.families.iter().filter(|family| !family.revoked);
        let families_live = live().count();
        let live_clients = live().map(|family| family.client).collect::<HashSet<_>>().len();
        let mut stats = json!({
            "clients": self.clients.len(),
            "live_clients": live_clients,
            "families": self.families.len(),
            "families_live": families_live,
            "families_revoked": self.families.len() - families_live,
            "refused_by_error": self.refused_by_error,
            "by_client": self.by_client,
        });
        merge(&mut stats, json!(self.total));
        stats
    }

    fn decide(&mut self, request: &TokenRequest, now: SystemTime) -> Result<Granted, Refusal> {
        let number = self.authenticate(&request.credentials)?;
        let grant_type =
            request.params.value("grant_type").ok_or(Refusal::invalid_request("grant_type is missing"))?;
        let client = &self.clients[number];
        match grant_type {
            "client_credentials" | "refresh_token"
                if !client.grants.iter().any(|held| held == grant_type) =>
            {
                Err(Refusal::new("unauthorized_client", "the client may not use this grant type"))
            }
            "client_credentials" if client.auth == AuthMethod::None => {
                Err(Refusal::new("unauthorized_client", "client_credentials is for confidential clients"))
            }
            "client_credentials" => self.client_credentials(number, &request.params, now),
            "refresh_token" => self.redeem(number, &request.params, now),
            _ => Err(Refusal::new("unsupported_grant_type", "only client_credentials and refresh_token")),
        }
    }

    fn authenticate(&self, credentials: &Credentials) -> Result<usize, Refusal> {
        let failed = Refusal::invalid_client("unknown client, or client authentication failed");
        let &number = self.numbers.get(credentials.client_id()).ok_or(failed)?;
        let client = &self.clients[number];
        let authentic = match (client.auth, credentials) {
            (AuthMethod::Basic, Credentials::Basic { secret, .. })
            | (AuthMethod::Post, Credentials::Post { secret, .. }) => {
                client.client_secret.as_ref() == Some(secret)
            }
            (AuthMethod::None, Credentials::Public { .. }) => true,
            _ => false,
        };
        if authentic { Ok(number) } else { Err(failed) }
    }

    fn client_credentials(
        &mut self,
        client: usize,
        params: &Params,
        now: SystemTime,
    ) -> Result<Granted, Refusal> {
        let scope = params.value("scope").map(str::to_owned);
        if let Some(scope) = &scope {
            check_scope(scope)?;
            self.clients[client].check_rights(scope)?;
        }
        let access_token = self.seal_access("cc", client, now);
        Ok(Granted { access_token, refresh_token: None, lifetime: self.policy.lifetime, scope, origin: None })
    }

    fn redeem(&mut self, client: usize, params: &Params, now: SystemTime) -> Result<Granted, Refusal> {
        let presented =
            params.value("refresh_token").ok_or(Refusal::invalid_request("refresh_token is missing"))?;
        let (number, generation) =
            self.open_refresh(presented).ok_or(Refusal::invalid_grant("unknown refresh token"))?;
        let (policy, family) = (self.policy, &mut self.families[number]);
        if family.client != client {
            return Err(Refusal::invalid_grant("the refresh token was issued to another client"));
        }
        if family.revoked && generation == family.generation {
            return Err(Refusal::invalid_grant("the grant is revoked"));
        }
        let replay = generation < family.generation;
        if replay && !(policy.grace_holds(family, now) && generation + 1 == family.generation) {
            family.revoked = true;
            let reuse = Refusal::invalid_grant("the refresh token was used before; the grant is revoked");
            return Err(Refusal { double_redemption: true, ..reuse });
        }
        let scope = narrowed(params.value("scope"), &family.scope)?;
        if replay {
            let client_id = self.clients[client].client_id.clone();
            self.count(Some(&client_id), |counts| counts.grace_replays += 1);
        } else if policy.rotate {
            family.generation += 1;
            family.rotated_at = now;
        }
        Ok(self.issue(number, scope, policy.rotate, now))
    }

    fn issue(&mut self, number: usize, scope: String, with_refresh: bool, now: SystemTime) -> Granted {
        let generation = self.families[number].generation;
        Granted {
            access_token: self.seal_access("at", number, now),
            refresh_token: with_refresh.then(|| self.seal(&format!("rt-{number:x}-{generation:x}"))),
            lifetime: self.policy.lifetime,
            scope: Some(scope),
            origin: Some((number, generation)),
        }
    }

    fn count(&mut self, client_id: Option<&str>, add: impl Fn(&mut Counts)) {
        add(&mut self.total);
        if let Some(counts) = client_id.and_then(|id| self.by_client.get_mut(id)) {
            add(counts);
        }
    }

    /// Seals an access token: `at` for a family's, `cc` for a client's own.
    fn seal_access(&mut self, kind: &str, owner: usize, now: SystemTime) -> String {
        self.serial += 1;
        let expiry = epoch(now + self.policy.lifetime).as_millis();
        self.seal(&format!("{kind}-{owner:x}-{:x}-{expiry:x}", self.serial))
    }

    fn open_access(&self, token: &str, now: SystemTime) -> Option<Value> {
        let mut fields = self.open(token)?.split('-');
        let (kind, owner, _serial) = (fields.next()?, hex(fields.next()?)?, fields.next()?);
        let expiry = Duration::from_millis(hex(fields.next()?)?);
        if expiry <= epoch(now) {
            return None;
        }
        let owner = usize::try_from(owner).ok()?;
        let claims = json!({ "active": true, "token_type": "Bearer", "exp": expiry.as_secs() });
        match kind {
            "cc" => Some(with(claims, json!({ "client_id": self.clients[owner].client_id }))),
            "at" => Some(with(claims, self.describe_family(owner)?)),
            _ => None,
        }
    }

    fn describe_refresh(&self, token: &str) -> Option<Value> {
        let (number, _) = self.open_refresh(token)?;
        Some(with(json!({ "active": true }), self.describe_family(number)?))
    }

    fn describe_family(&self, number: usize) -> Option<Value> {
        let family = &self.families[number];
        let client_id = &self.clients[family.client].client_id;
        (!family.revoked).then(|| json!({ "client_id": client_id, "scope": family.scope }))
    }

    /// Family and generation of a refresh token of ours.
    fn open_refresh(&self, token: &str) -> Option<(usize, u64)> {
        let (number, generation) = self.open(token)?.strip_prefix("rt-")?.split_once('-')?;
        Some((usize::try_from(hex(number)?).ok()?, hex(generation)?))
    }

    fn seal(&self, payload: &str) -> String {
        format!("{payload}.{}", self.tag(payload))
    }

    fn open<'token>(&self, token: &'token str) -> Option<&'token str> {
        let (payload, tag) = token.rsplit_once('.')?;
        (tag == self.tag(payload)).then_some(payload)
    }

    fn tag(&self, payload: &str) -> String {
        let digest = Sha256::new_with_prefix(self.key).chain_update(payload).finalize();
        digest.iter().take(16).fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a string takes what is written");
            text
        })
    }
}

impl Policy {
    fn grace_holds(&self, family: &Family, now: SystemTime) -> bool {
        let age = now.duration_since(family.rotated_at).unwrap_or_default();
        !family.revoked && age < self.grace
    }
}

impl Client {
    fn check_rights(&self, scope: &str) -> Result<(), Refusal> {
        let allowed = |name| self.scopes.as_ref().is_none_or(|held| held.iter().any(|held| held == name));
        if scope.split(' ').all(allowed) {
            return Ok(());
        }
        Err(Refusal::new("invalid_scope", "the client may not ask for this scope"))
    }
}

/// The scope of a refresh: the granted one, or the part of it that is asked for (RFC 6749 section 6).
fn narrowed(asked: Option<&str>, granted: &str) -> Result<String, Refusal> {
    let Some(asked) = asked else { return Ok(granted.to_owned()) };
    check_scope(asked)?;
    if asked.split(' ').all(|name| granted.split(' ').any(|held| held == name)) {
        return Ok(asked.to_owned());
    }
    Err(Refusal::new("invalid_scope", "the scope exceeds the grant"))
}

/// The alphabet of RFC 6749 section 3.3.
fn check_scope(scope: &str) -> Result<(), Refusal> {
    let legal = |byte: u8| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
    if scope.split(' ').all(|name| !name.is_empty() && name.bytes().all(legal)) {
        return Ok(());
    }
    Err(Refusal::new("invalid_scope", "the scope is malformed"))
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

fn epoch(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

fn with(mut object: Value, more: Value) -> Value {
    merge(&mut object, more);
    object
}

fn merge(object: &mut Value, more: Value) {
    if let (Value::Object(object), Value::Object(more)) = (object, more) {
        object.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: Option<&str> = Some("application/x-www-form-urlencoded");
    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn authority(rotate: bool, grace: u64) -> Authority {
        let (lifetime, grace) = (Duration::from_secs(30), Duration::from_secs(grace));
        let mut authority = Authority::new(Policy { lifetime, rotate, grace });
        for (id, auth) in [("app", "post"), ("other", "post")] {
            let client = json!({ "client_id": id, "client_secret": "s", "auth": auth });
            authority.register(serde_json::from_value(client).unwrap());
        }
        authority
    }

    fn ask(authority: &mut Authority, body: &str, now: SystemTime) -> Result<Granted, Refusal> {
        authority.token(&TokenRequest::parse(FORM, None, body.as_bytes()).unwrap(), now)
    }

    fn refresh(authority: &mut Authority, client: &str, token: &str) -> Result<Granted, Refusal> {
        refresh_at(authority, client, token, NOW)
    }

    fn refresh_at(
        authority: &mut Authority,
        client: &str,
        token: &str,
        now: SystemTime,
    ) -> Result<Granted, Refusal> {
        let body =
            format!("grant_type=refresh_token&client_id={client}&client_secret=s&refresh_token={token}");
        ask(authority, &body, now)
    }

    fn minted(authority: &mut Authority) -> String {
        authority.mint("app", "read write", NOW).unwrap().refresh_token.unwrap()
    }

    fn active(authority: &Authority, token: &str, now: SystemTime) -> bool {
        authority.introspect(token, now)["active"] == true
    }

    #[test]
    fn each_refresh_replaces_the_refresh_token() {
        let mut authority = authority(true, 0);
        let mut token = minted(&mut authority);
        for _ in 0..5 {
            let next = refresh(&mut authority, "app", &token).unwrap().refresh_token.unwrap();
            assert!(!authority.standing(&token).live && authority.standing(&next).live);
            token = next;
        }
        assert_eq!(authority.stats()["double_redemptions"], 0);
    }

    #[test]
    fn reuse_kills_the_family() {
        let mut authority = authority(true, 0);
        let first = minted(&mut authority);
        let second = refresh(&mut authority, "app", &first).unwrap();
        assert!(active(&authority, &second.access_token, NOW));

        let reuse = refresh(&mut authority, "app", &first).unwrap_err();
        assert!(reuse.double_redemption && reuse.error == "invalid_grant");
        let newest = second.refresh_token.unwrap();
        assert_eq!(refresh(&mut authority, "app", &newest).unwrap_err().error, "invalid_grant");
        assert!(!active(&authority, &second.access_token, NOW));
        let stats = authority.stats();
        assert_eq!((&stats["double_redemptions"], &stats["families_revoked"]), (&json!(1), &json!(1)));
        assert_eq!(stats["by_client"]["app"]["double_redemptions"], 1);
    }

    #[test]
    fn a_reuse_spares_the_other_families() {
        let mut authority = authority(true, 0);
        let (victim, bystander) = (minted(&mut authority), minted(&mut authority));
        refresh(&mut authority, "app", &victim).unwrap();
        refresh(&mut authority, "app", &victim).unwrap_err();
        refresh(&mut authority, "app", &bystander).unwrap();
    }

    #[test]
    fn another_client_gets_nothing_and_harms_nothing() {
        let mut authority = authority(true, 0);
        let token = minted(&mut authority);
        let refusal = refresh(&mut authority, "other", &token).unwrap_err();
        assert_eq!((refusal.error, refusal.double_redemption), ("invalid_grant", false));
        refresh(&mut authority, "app", &token).unwrap();
    }

    #[test]
    fn a_refused_scope_does_not_spend_the_refresh_token() {
        let mut authority = authority(true, 0);
        let token = minted(&mut authority);
        let body = format!("grant_type=refresh_token&client_id=app&client_secret=s&refresh_token={token}");
        let wider = ask(&mut authority, &format!("{body}&scope=admin"), NOW).unwrap_err();
        assert_eq!(wider.error, "invalid_scope");
        let narrower = ask(&mut authority, &format!("{body}&scope=read"), NOW).unwrap();
        assert_eq!(narrower.scope.as_deref(), Some("read"));
    }

    #[test]
    fn grace_allows_the_previous_token_for_its_time_only() {
        let mut authority = authority(true, 10);
        let first = minted(&mut authority);
        let second = refresh(&mut authority, "app", &first).unwrap().refresh_token.unwrap();
        let again = refresh(&mut authority, "app", &first).unwrap().refresh_token.unwrap();
        assert_eq!(again, second);
        let late = NOW + Duration::from_secs(10);
        assert!(refresh_at(&mut authority, "app", &first, late).unwrap_err().double_redemption);
    }

    #[test]
    fn without_rotation_the_token_stays_and_none_is_sent() {
        let mut authority = authority(false, 0);
        let token = minted(&mut authority);
        for _ in 0..3 {
            assert_eq!(refresh(&mut authority, "app", &token).unwrap().refresh_token, None);
        }
        assert!(authority.standing(&token).live);
    }

    #[test]
    fn access_tokens_expire_and_differ() {
        let mut authority = authority(true, 0);
        let body = "grant_type=client_credentials&client_id=app&client_secret=s";
        let (one, two) = (ask(&mut authority, body, NOW).unwrap(), ask(&mut authority, body, NOW).unwrap());
        assert_ne!(one.access_token, two.access_token);
        assert!(active(&authority, &one.access_token, NOW + Duration::from_secs(29)));
        assert!(!active(&authority, &one.access_token, NOW + Duration::from_secs(30)));
    }

    #[test]
    fn forged_and_foreign_tokens_are_unknown() {
        let mut authority = authority(true, 0);
        let token = minted(&mut authority);
        let forged = token.replace("rt-0-0", "rt-0-1");
        for stranger in [forged.as_str(), "", "x.y", "rt-0-0"] {
            assert!(!authority.standing(stranger).known, "{stranger}");
        }
    }

    #[test]
    fn clients_are_held_to_their_registration() {
        let mut authority = authority(true, 0);
        let limited = json!({
            "client_id": "limited", "client_secret": "s", "auth": "post",
            "grants": ["client_credentials"], "scopes": ["read"],
        });
        authority.register(serde_json::from_value(limited).unwrap());
        let public = json!({ "client_id": "public", "auth": "none" });
        authority.register(serde_json::from_value(public).unwrap());
        let mut refused = |body: &str| ask(&mut authority, body, NOW).unwrap_err().error;
        let limited = "client_id=limited&client_secret=s&grant_type=";
        assert_eq!(refused(&format!("{limited}refresh_token&refresh_token=x")), "unauthorized_client");
        assert_eq!(refused(&format!("{limited}client_credentials&scope=write")), "invalid_scope");
        assert_eq!(refused(&format!("{limited}password")), "unsupported_grant_type");
        assert_eq!(refused("client_id=limited&client_secret=s"), "invalid_request");
        assert_eq!(refused("client_id=public&grant_type=client_credentials"), "unauthorized_client");
        assert_eq!(refused("client_id=public&grant_type=refresh_token&refresh_token=x"), "invalid_grant");
        assert_eq!(refused("client_id=app&client_secret=no&grant_type=client_credentials"), "invalid_client");
        assert_eq!(refused("client_id=app&grant_type=client_credentials"), "invalid_client");
    }

    #[test]
    fn a_revoked_grant_is_dead_without_being_a_double_redemption() {
        let mut authority = authority(true, 0);
        let token = minted(&mut authority);
        assert!(authority.revoke(&token));
        let refusal = refresh(&mut authority, "app", &token).unwrap_err();
        assert_eq!((refusal.error, refusal.double_redemption), ("invalid_grant", false));
    }
}
