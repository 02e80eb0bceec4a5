//! A provider in memory: it redeems, rotates and revokes as real ones do, and fails on cue.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use perennial::client::Grant;
use perennial::provider::{TokenEndpoint, TokenRequest};
use perennial::reply::{Lifetime, Reply, Tokens};
use perennial::secret::Secret;
use perennial::time::Clock as _;

use super::world::SimClock;

/// What becomes of a refresh token when it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rotation {
    /// It is spent, and its second use revokes the grant.
    Strict,
    /// It is spent, and accepted again for so long.
    Grace(Duration),
    /// It stays good.
    Fixed,
}

/// How the provider deals with one request.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// As it should.
    Honest,
    /// Not processed; this is the reply.
    Say(Reply),
    /// Processed; this is the reply in the place of the honest one.
    LoseReply(Reply),
    /// Processed, and answered honestly after so long.
    Late(Duration),
    /// Processed, and no answer ever.
    Silence,
    /// The transport panics before anything is processed.
    Panic,
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// Which one, from 0.
    pub(crate) nth: usize,
    /// Since the simulation began.
    pub(crate) at: Duration,
    /// Whose: the client id that the refresh token names, or the OAuth client id.
    pub(crate) who: String,
    /// OAuth client id.
    pub(crate) app: String,
    /// OAuth client secret.
    pub(crate) secret: Option<String>,
}

/// Tokens that were granted.
#[derive(Clone, Debug)]
pub(crate) struct Granted {
    pub(crate) who: String,
    pub(crate) at: Duration,
    pub(crate) lifetime: Duration,
}

#[derive(Default)]
struct Books {
    calls: Vec<Call>,
    grants: Vec<Granted>,
    live: BTreeMap<String, u32>,
    spent: BTreeMap<String, Duration>,
    revoked: BTreeSet<String>,
    double_redemptions: u32,
    in_flight: usize,
    most_in_flight: usize,
    busy: BTreeSet<String>,
    overlaps: u32,
}

type Script = dyn FnMut(&Call) -> Act + Send;

/// The provider. Refresh tokens are spelt `r|<client>|<n>`.
pub(crate) struct Endpoint {
    clock: Arc<SimClock>,
    books: Mutex<Books>,
    script: Mutex<Box<Script>>,
    /// May be changed by a test while nothing runs.
    pub(crate) manner: Mutex<Manner>,
}

/// How it answers when it answers.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    pub(crate) rotation: Rotation,
    pub(crate) latency: Duration,
    pub(crate) lifetime: Lifetime,
    pub(crate) lifetimes: BTreeMap<String, Duration>,
    pub(crate) scope: Option<String>,
    pub(crate) access_len: usize,
    /// Secrets that it accepts; all of them where empty.
    pub(crate) secrets: BTreeSet<String>,
}

impl Endpoint {
    pub(crate) fn new(clock: Arc<SimClock>) -> Self {
        let manner = Manner {
            rotation: Rotation::Strict,
            latency: Duration::from_millis(50),
            lifetime: Lifetime::Stated(Duration::from_secs(3600)),
            lifetimes: BTreeMap::new(),
            scope: Some("read".into()),
            access_len: 20,
            secrets: BTreeSet::new(),
        };
        let script: Box<Script> = Box::new(|_| Act::Honest);
        Self { clock, books: Mutex::default(), script: Mutex::new(script), manner: Mutex::new(manner) }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn manner(&self, change: impl FnOnce(&mut Manner)) {
        change(&mut self.manner.lock().unwrap());
    }

    /// Decides on every request from now on.
    pub(crate) fn script(&self, script: impl FnMut(&Call) -> Act + Send + 'static) {
        *self.script.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(script);
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.books().calls.clone()
    }

    pub(crate) fn sends(&self) -> usize {
        self.books().calls.len()
    }

    pub(crate) fn sends_of(&self, who: &str) -> usize {
        self.books().calls.iter().filter(|call| call.who == who).count()
    }

    pub(crate) fn grants(&self) -> Vec<Granted> {
        self.books().grants.clone()
    }

    pub(crate) fn double_redemptions(&self) -> u32 {
        self.books().double_redemptions
    }

    pub(crate) fn most_in_flight(&self) -> usize {
        self.books().most_in_flight
    }

    /// Requests for one client that began while another of its own was under way.
    pub(crate) fn overlaps(&self) -> u32 {
        self.books().overlaps
    }

    /// The refresh token that is good now; `None` where the grant is gone.
    pub(crate) fn live(&self, who: &str) -> Option<String> {
        let books = self.books();
        let good = !books.revoked.contains(who);
        books.live.get(who).filter(|_| good).map(|n| spell(who, *n))
    }

    /// A first refresh token, as a consent leaves it. Consenting anew makes the older ones worthless.
    pub(crate) fn consent(&self, who: &str) -> Secret {
        let mut books = self.books();
        books.revoked.remove(who);
        let n = *books.live.entry(who.to_owned()).and_modify(|n| *n += 100).or_insert(0);
        Secret::new(spell(who, n))
    }

    fn arrive(&self, request: &TokenRequest) -> Call {
        let who = match &request.refresh_token {
            Some(token) => token.expose().split('|').nth(1).unwrap_or("?").to_owned(),
            None => request.client_id.clone(),
        };
        let mut books = self.books();
        books.in_flight += 1;
        books.most_in_flight = books.most_in_flight.max(books.in_flight);
        if !books.busy.insert(who.clone()) {
            books.overlaps += 1;
        }
        let call = Call {
            nth: books.calls.len(),
            at: self.clock.elapsed(),
            who,
            app: request.client_id.clone(),
            secret: request.client_secret.as_ref().map(|secret| secret.expose().to_owned()),
        };
        books.calls.push(call.clone());
        call
    }

    fn process(&self, call: &Call, request: &TokenRequest) -> Reply {
        let manner = self.manner.lock().unwrap().clone();
        let known = |secret: &String| manner.secrets.is_empty() || manner.secrets.contains(secret);
        if !call.secret.as_ref().is_some_and(known) {
            return Reply::Rejected("invalid_client".into());
        }
        let refresh_token = match (request.grant, &request.refresh_token) {
            (Grant::ClientCredentials, _) => Ok(None),
            (Grant::RefreshToken, Some(token)) => self.redeem(&call.who, token.expose(), manner.rotation),
            (Grant::RefreshToken, None) => Err(Reply::Rejected("invalid_request".into())),
        };
        let refresh_token = match refresh_token {
            Ok(token) => token,
            Err(reply) => return reply,
        };
        let stated = manner.lifetimes.get(&call.who).map(|life| Lifetime::Stated(*life));
        let lifetime = stated.unwrap_or(manner.lifetime);
        let life = if let Lifetime::Stated(life) = lifetime { life } else { Duration::ZERO };
        let granted = Granted { who: call.who.clone(), at: self.clock.elapsed(), lifetime: life };
        self.books().grants.push(granted);
        let filler = "x".repeat(manner.access_len);
        Reply::Granted(Box::new(Tokens {
            access_token: Secret::new(format!("a|{}|{}|{filler}", call.who, call.nth)),
            refresh_token: refresh_token.map(Secret::new),
            token_type: Some("Bearer".into()),
            scope: manner.scope,
            lifetime,
        }))
    }

    fn redeem(&self, who: &str, token: &str, rotation: Rotation) -> Result<Option<String>, Reply> {
        let now = self.clock.elapsed();
        let mut books = self.books();
        let gone = || Reply::Rejected("invalid_grant".into());
        let Some(n) = books.live.get(who).copied().filter(|_| !books.revoked.contains(who)) else {
            return Err(gone());
        };
        let spent_for = books.spent.get(token).map(|at| now - *at);
        match (rotation, spent_for) {
            (Rotation::Fixed, _) if token == spell(who, n) => return Ok(None),
            (_, None) if token == spell(who, n) => {}
            (Rotation::Grace(window), Some(age)) if age < window => {
                books.double_redemptions += 1;
                return Ok(Some(spell(who, n)));
            }
            (_, Some(_)) => {
                books.double_redemptions += 1;
                books.revoked.insert(who.to_owned());
                return Err(gone());
            }
            _ => return Err(gone()),
        }
        books.spent.insert(token.to_owned(), now);
        books.live.insert(who.to_owned(), n + 1);
        Ok(Some(spell(who, n + 1)))
    }
}

fn spell(who: &str, n: u32) -> String {
    format!("r|{who}|{n}")
}

/// Leaves the books in order however the request ends, a dropped task included.
struct Presence<'a>(&'a Endpoint, String);

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        let mut books = self.0.books();
        books.in_flight -= 1;
        books.busy.remove(&self.1);
    }
}

impl TokenEndpoint for Endpoint {
    async fn send(&self, request: &TokenRequest) -> Reply {
        let call = self.arrive(request);
        let _presence = Presence(self, call.who.clone());
        let act = (self.script.lock().unwrap_or_else(PoisonError::into_inner))(&call);
        let latency = self.manner.lock().unwrap().latency;
        match act {
            Act::Panic => panic!("the transport broke"),
            Act::Say(reply) => {
                self.clock.sleep(if is_timeout(&reply) { request.timeout } else { latency }).await;
                reply
            }
            Act::Honest => {
                self.clock.sleep(latency).await;
                self.process(&call, request)
            }
            Act::Late(delay) => {
                let reply = self.process(&call, request);
                self.clock.sleep(delay).await;
                reply
            }
            Act::LoseReply(reply) => {
                drop(self.process(&call, request));
                self.clock.sleep(if is_timeout(&reply) { request.timeout } else { latency }).await;
                reply
            }
            Act::Silence => {
                drop(self.process(&call, request));
                std::future::pending().await
            }
        }
    }
}

fn is_timeout(reply: &Reply) -> bool {
    reply.code() == "timeout"
}

/// Nothing was heard within the exchange's time.
pub(crate) fn timeout() -> Reply {
    Reply::Unknown { code: "timeout".into(), server_fault: false, after: None }
}

/// The server says that it failed.
pub(crate) fn server_error() -> Reply {
    Reply::Unknown { code: "http_500".into(), server_fault: true, after: None }
}

/// It asks for less.
pub(crate) fn throttled(after: Option<u64>) -> Reply {
    Reply::Throttled { code: "http_429".into(), after: after.map(Duration::from_secs) }
}
