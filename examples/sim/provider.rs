//! Token endpoints in memory, with books of every redemption: what was processed, and whether the answer was heard.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use perennial::client::Grant;
use perennial::entropy::Entropy;
use perennial::provider::{TokenEndpoint, TokenRequest};
use perennial::reply::{Lifetime, Reply, Tokens};
use perennial::secret::Secret;
use perennial::time::Clock as _;

use super::clock::Machine;
use super::witness::Witness;

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

impl Rotation {
    /// By the profile's name.
    pub(crate) fn of(provider: &str) -> Self {
        match provider {
            "grace" => Self::Grace(Duration::from_secs(120)),
            "fixed" => Self::Fixed,
            _ => Self::Strict,
        }
    }
}

/// How a provider is today.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Mood {
    /// Nothing is processed: 503, refused connections, silence.
    pub(crate) down: bool,
    /// Share of the requests that are answered by 429.
    pub(crate) throttles: f64,
    /// Share of the requests that are processed, and whose answer is lost.
    pub(crate) loses_replies: f64,
    /// Now and then an answer comes nearly too late.
    pub(crate) dawdles: bool,
}

/// A grant: one consent of one customer.
#[derive(Debug)]
struct Family {
    live: u32,
    revoked: bool,
    /// When each token was spent, by number.
    spent: BTreeMap<u32, Duration>,
    /// How often each was redeemed: accepted, or refused as spent.
    redeemed: BTreeMap<u32, u32>,
}

/// An answer with new tokens: on its way, or not.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Whose.
    pub(crate) client: String,
    /// The refresh token in it.
    pub(crate) token: String,
    /// Which process had asked.
    pub(crate) by: String,
    /// Whether it has reached that process.
    pub(crate) heard: bool,
    /// When it was given.
    pub(crate) at: Duration,
}

#[derive(Default)]
struct Books {
    families: BTreeMap<String, Family>,
    consents: BTreeMap<String, u32>,
    moods: BTreeMap<String, Mood>,
    lifetimes: BTreeMap<String, Duration>,
    answers: Vec<Answer>,
    redemptions: u64,
    grants: Vec<Duration>,
    /// Requests under way, by process.
    in_flight: BTreeMap<String, u32>,
    objections: Vec<String>,
}

/// All providers of a simulated world. Refresh tokens are spelt `canary-r|<client>|<consent>|<n>`.
#[derive(Clone, Default)]
pub(crate) struct Providers(Arc<Mutex<Books>>);

impl Providers {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long access tokens of this client live.
    pub(crate) fn lifetime(&self, client: &str, lifetime: Duration) {
        self.books().lifetimes.insert(client.to_owned(), lifetime);
    }

    pub(crate) fn mood(&self, provider: &str, change: impl FnOnce(&mut Mood)) {
        change(self.books().moods.entry(provider.to_owned()).or_default());
    }

    /// A customer consents: a first refresh token. Older grants of the same customer are no good any more.
    pub(crate) fn consent(&self, client: &str) -> Secret {
        let mut books = self.books();
        let consent = books.consents.entry(client.to_owned()).and_modify(|n| *n += 1).or_insert(0);
        let name = format!("{client}|{consent}");
        let family = Family { live: 0, revoked: false, spent: BTreeMap::new(), redeemed: BTreeMap::new() };
        books.families.insert(name.clone(), family);
        Secret::new(format!("canary-r|{name}|0"))
    }

    /// Whether this refresh token is good.
    pub(crate) fn is_live(&self, token: &str) -> bool {
        let Some((name, n)) = parse(token) else { return false };
        self.books().families.get(&name).is_some_and(|family| !family.revoked && family.live == n)
    }

    /// A process that has a request under way.
    pub(crate) fn waiting(&self) -> Option<String> {
        self.books().in_flight.iter().find(|(_, count)| **count > 0).map(|(name, _)| name.clone())
    }

    /// Answers that carried new refresh tokens.
    pub(crate) fn answers(&self) -> Vec<Answer> {
        self.books().answers.clone()
    }

    pub(crate) fn redemptions(&self) -> u64 {
        self.books().redemptions
    }

    /// When access tokens were granted.
    pub(crate) fn grants(&self) -> Vec<Duration> {
        self.books().grants.clone()
    }

    pub(crate) fn objections(&self) -> Vec<String> {
        self.books().objections.clone()
    }

    /// Redeems a token. A second time has to have been announced, by an order of the in-doubt policy.
    fn redeem(
        &self,
        token: &str,
        rotation: Rotation,
        at: Duration,
        orders: u64,
    ) -> Result<Option<String>, Reply> {
        let gone = || Reply::Rejected("invalid_grant".into());
        let (name, n) = parse(token).ok_or_else(gone)?;
        let mut books = self.books();
        books.redemptions += 1;
        let family = books.families.get_mut(&name).ok_or_else(gone)?;
        if rotation == Rotation::Fixed {
            return if family.revoked { Err(gone()) } else { Ok(None) };
        }
        let times = family.redeemed.entry(n).or_insert(0);
        *times += 1;
        let unannounced = u64::from(*times) > 1 + orders;
        let (good, spent) = (family.live == n && !family.revoked, family.spent.get(&n).copied());
        let outcome = match (spent, rotation) {
            _ if good => {
                family.spent.insert(n, at);
                family.live = n + 1;
                Ok(Some(format!("canary-r|{name}|{}", n + 1)))
            }
            (Some(when), Rotation::Grace(window)) if !family.revoked && at - when < window => {
                Ok(Some(format!("canary-r|{name}|{}", family.live)))
            }
            (Some(_), _) => {
                family.revoked = true;
                Err(gone())
            }
            (None, _) => Err(gone()),
        };
        if unannounced {
            books
                .objections
                .push(format!("{name}: refresh token {n} was redeemed again, and nobody had ordered it"));
        }
        outcome
    }
}

fn parse(token: &str) -> Option<(String, u32)> {
    let (name, n) = token.strip_prefix("canary-r|")?.rsplit_once('|')?;
    Some((name.to_owned(), n.parse().ok()?))
}

/// The way from one process to the providers.
pub(crate) struct Wire {
    pub(crate) machine: Machine,
    pub(crate) providers: Providers,
    pub(crate) dice: Arc<Entropy>,
    pub(crate) witness: Witness,
    /// The process's name.
    pub(crate) by: String,
    /// Whether this process is cut off.
    pub(crate) cut: Arc<std::sync::atomic::AtomicBool>,
}

impl Wire {
    async fn wait(&self, time: Duration) {
        self.machine.sleep(time).await;
    }

    fn is_cut(&self) -> bool {
        self.cut.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// What the endpoint makes of a request that has reached it. The second value is the place of the answer.
    fn process(&self, request: &TokenRequest) -> (Reply, Option<usize>) {
        let at = self.machine.origin().elapsed();
        let client = request.params.get("customer").map_or_else(String::new, |name| name.expose().to_owned());
        let rotation = Rotation::of(&request.provider);
        let token = request.refresh_token.as_ref().map(|token| token.expose().to_owned());
        let renewed = match (request.grant, &token) {
            (Grant::ClientCredentials, _) => Ok(None),
            (Grant::RefreshToken, Some(token)) => {
                self.providers.redeem(token, rotation, at, self.witness.orders(token_owner(token)))
            }
            (Grant::RefreshToken, None) => Err(Reply::Rejected("invalid_request".into())),
        };
        let renewed = match renewed {
            Ok(renewed) => renewed,
            Err(reply) => return (reply, None),
        };
        let mut books = self.providers.books();
        books.grants.push(at);
        let lifetime = books.lifetimes.get(&client).copied().unwrap_or(Duration::from_secs(3600));
        let place = renewed.clone().map(|token| {
            books.answers.push(Answer {
                client: client.clone(),
                token,
                by: self.by.clone(),
                heard: false,
                at,
            });
            books.answers.len() - 1
        });
        let tokens = Tokens {
            access_token: Secret::new(format!("canary-a|{client}|{}", books.grants.len())),
            refresh_token: renewed.map(Secret::new),
            token_type: Some("Bearer".into()),
            scope: None,
            lifetime: Lifetime::Stated(lifetime),
        };
        (Reply::Granted(Box::new(tokens)), place)
    }
}

/// The refresh token that takes the place of this one.
pub(crate) fn next(token: &str) -> Option<String> {
    let (name, n) = parse(token)?;
    Some(format!("canary-r|{name}|{}", n + 1))
}

/// Of `canary-r|<client>|<consent>|<n>`.
fn token_owner(token: &str) -> &str {
    token.split('|').nth(1).unwrap_or_default()
}

/// A request under way, whatever becomes of its sender.
struct UnderWay<'a>(&'a Wire);

impl<'a> UnderWay<'a> {
    fn of(wire: &'a Wire) -> Self {
        *wire.providers.books().in_flight.entry(wire.by.clone()).or_default() += 1;
        Self(wire)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(count) = self.0.providers.books().in_flight.get_mut(&self.0.by) {
            *count -= 1;
        }
    }
}

impl TokenEndpoint for Wire {
    async fn send(&self, request: &TokenRequest) -> Reply {
        let _under_way = UnderWay::of(self);
        let unit = || self.dice.unit();
        let mood = self.providers.books().moods.get(&request.provider).copied().unwrap_or_default();
        if self.is_cut() {
            self.wait(Duration::from_secs(5)).await;
            return Reply::NotSent("connect".into());
        }
        // What has left is on its way, even if its sender is suspended now. (To be suspended exactly between the last
        // look at the clock and the system call, for longer than the take-over wait, is the one thing that no lease
        // survives.)
        self.machine.travel(Duration::from_millis(20).mul_f64(1.0 + 9.0 * unit())).await;
        if mood.down {
            return self.unavailable(request, unit()).await;
        }
        if unit() < mood.throttles {
            let after = Some(Duration::from_secs(20));
            return Reply::Throttled { code: "http_429".into(), after };
        }
        // One request in two hundred dawdles on its way, longer than its sender waits.
        if unit() < 0.005 && mood.loses_replies > 0.0 {
            self.machine.travel(request.timeout).await;
            drop(self.process(request));
            return unheard();
        }
        let (reply, place) = self.process(request);
        if unit() < mood.loses_replies {
            self.wait(request.timeout).await;
            return unheard();
        }
        let slowness = if mood.dawdles { 500.0 * unit().powi(6) } else { 5.0 * unit() };
        self.wait(Duration::from_millis(30).mul_f64(1.0 + slowness)).await;
        if let Some(place) = place {
            self.providers.books().answers[place].heard = true;
        }
        reply
    }
}

impl Wire {
    async fn unavailable(&self, request: &TokenRequest, draw: f64) -> Reply {
        if draw < 0.6 {
            return Reply::Unknown { code: "http_503".into(), server_fault: true, after: None };
        }
        if draw < 0.9 {
            return Reply::NotSent("connect".into());
        }
        self.wait(request.timeout).await;
        unheard()
    }
}

/// Nothing was heard within the exchange's time.
fn unheard() -> Reply {
    Reply::Unknown { code: "timeout".into(), server_fault: false, after: None }
}
