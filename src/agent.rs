//! The agent: tokens for the programs of this machine, over HTTP on loopback and a Unix socket.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/token/{client}` | the token as JSON, or as plain text where that is accepted |
//! | ... `?min_ttl=120s&max_wait=5s` | one that lives for longer, waited for |
//! | ... `?after=7&wait=30s` | the next generation, waited for; 304 where there is none |
//! | `POST /v1/tokens` `{"clients": [..]}` | many, each with a status of its own |
//! | `POST /v1/token/{client}/rejected` `{"generation": 7}` | a refresh is asked for, once |
//! | `GET /healthz`, `/metrics` | for whoever looks after the agent; no key, no secret |
//!
//! At a port of its own, AWS's way of asking for a secret is understood as well: [`drop_in`].
//!
//! What is good is in [`crate::reader`]; who may ask is in [`keys`]; this is the way between.
//! Invariant: a token leaves only with a key that allows its client, in a request that came straight from a program of
//! this machine.

mod admission;
mod answer;
mod body;
pub mod drop_in;
pub mod keys;
mod listen;
mod problem;
mod query;
mod rejection;
mod server;
mod stand_in;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::{ACCEPT, AUTHORIZATION};
use http::request::Parts;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::client::ClientId;
use crate::item::{Change, Key};
use crate::metrics;
use crate::plan::registry;
use crate::reader::{Reader, Refusal, Want};
use crate::record::{Gen, Partition};
use crate::store::{Applied, Store, StoreError, View};
use crate::time::Clock;

pub use keys::Keys;
pub use listen::{Socket, SocketError, make_room_for};

use answer::{Answer, Form};
use body::Body;
use problem::Problem;
use query::Query;
use rejection::{Rejections, Verdict};
use server::Connections;

/// A body, at most.
const BODY_BYTES: usize = 64 * 1024;
/// Reading it, at most.
const BODY_TIME: Duration = Duration::from_secs(5);
/// Clients in one batch.
const BATCH: usize = 200;
/// How old a confirmation of a rejected token may be: a flood of rejections is few questions.
const CONFIRMED: Duration = Duration::from_secs(1);

/// Tries to ask for a refresh while operators change the client.
const TRIES: u32 = 3;

/// How an agent behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The longest that a request may wait for a newer token.
    pub max_wait: Duration,
    /// Connections that may be open at once.
    pub connections: usize,
    /// Requests that may wait at once, for the table or for a newer token.
    pub waiting: usize,
    /// How old a token must be before its rejection asks for another; `None`: rejections are not taken.
    pub rejection_interval: Option<Duration>,
    /// How tokens are told where it is asked as AWS's agent is.
    pub drop_in: Option<drop_in::Settings>,
}

/// How a socket is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As this agent.
    Own,
    /// As AWS's.
    DropIn,
}

/// An agent, before a table.
pub struct Agent<S> {
    reader: Reader<S>,
    store: S,
    clock: Arc<dyn Clock>,
    settings: Settings,
    /// `None`: no key is asked for.
    keys: Option<Arc<ArcSwap<Keys>>>,
    rejections: Option<Rejections>,
    waiting: Semaphore,
    nobodies: stand_in::Nobodies,
    connections: Arc<Connections>,
    exporter: Option<Arc<metrics::Exporter>>,
}

impl<S: Store> Agent<S> {
    /// With a reader, and the store behind it, to which rejections are written.
    pub fn new(
        reader: Reader<S>,
        store: S,
        clock: Arc<dyn Clock>,
        keys: Option<Arc<ArcSwap<Keys>>>,
        exporter: Option<Arc<metrics::Exporter>>,
        settings: Settings,
    ) -> Self {
        Self {
            reader,
            store,
            clock,
            keys,
            rejections: settings.rejection_interval.map(Rejections::new),
            waiting: Semaphore::new(settings.waiting),
            nobodies: stand_in::Nobodies::default(),
            connections: Connections::new(settings.connections),
            exporter,
            settings,
        }
    }

    /// What it reads with, for whoever else wants tokens in this process.
    pub fn reader(&self) -> &Reader<S> {
        &self.reader
    }

    /// Answers at these sockets until `drain` is cancelled and what is under way has ended.
    pub async fn serve(self: Arc<Self>, sockets: Vec<(Socket, Manner)>, drain: CancellationToken) {
        let (connections, clock) = (Arc::clone(&self.connections), Arc::clone(&self.clock));
        let doors = sockets.into_iter().map(|(socket, manner)| {
            let visitors = Arc::new(Visitors { agent: Arc::clone(&self), is_local: socket.is_tcp(), manner });
            socket.serve(visitors, Arc::clone(&connections), Arc::clone(&clock), drain.clone())
        });
        let answering = futures_util::future::join_all(doors);
        tokio::select! {
            _ = answering => {}
            () = server::watch(Arc::clone(&connections), Arc::clone(&clock)) => {}
            () = self.reader.keep() => {}
        }
    }

    /// Reads a token before somebody wants it.
    pub async fn warm(&self, id: &ClientId) {
        if let Err(refusal) = self.reader.token(id, Want::default(), Duration::ZERO).await {
            warn!(client = %id, ?refusal, "there is no token yet");
        }
    }

    async fn answer(&self, request: Request<Incoming>, is_tcp: bool) -> Answer {
        let (head, body) = request.into_parts();
        let is_head = head.method == Method::HEAD;
        let mut answer = match self.respond(&head, body, is_tcp).await {
            Ok(answer) => answer,
            Err(problem) => {
                audit(&problem, head.uri.path());
                answer::problem(&problem)
            }
        };
        if is_head {
            *answer.body_mut() = Body::default();
        }
        answer
    }

    /// What is rare or long is boxed: a future is moved as a whole, as large as the largest of its ways.
    async fn respond(&self, head: &Parts, body: Incoming, is_tcp: bool) -> Result<Answer, Problem> {
        admission::admit(head, is_tcp)?;
        let path = head.uri.path();
        let reads = matches!(head.method, Method::GET | Method::HEAD);
        let posts = head.method == Method::POST;
        if let Some(rest) = path.strip_prefix("/v1/token/") {
            return match rest.split_once('/') {
                None if reads => self.one(head, rest).await,
                None => Err(Problem::Method("GET, HEAD")),
                Some((id, "rejected")) if posts => Box::pin(self.rejected(head, id, body)).await,
                Some((_, "rejected")) => Err(Problem::Method("POST")),
                Some(_) => Err(Problem::NoSuchPath),
            };
        }
        match path {
            "/v1/tokens" if posts => Box::pin(self.many(head, body)).await,
            "/v1/tokens" => Err(Problem::Method("POST")),
            "/healthz" if reads => Ok(answer::text("ok\n".into(), "text/plain; charset=utf-8")),
            "/metrics" if reads => {
                Ok(answer::text(self.metrics(), "text/plain; version=0.0.4; charset=utf-8"))
            }
            "/healthz" | "/metrics" => Err(Problem::Method("GET, HEAD")),
            _ => Err(Problem::NoSuchPath),
        }
    }

    async fn one(&self, head: &Parts, id: &str) -> Result<Answer, Problem> {
        let id = self.readable(&head.headers, id)?;
        let query = Query::parse(head.uri.query().unwrap_or_default(), self.settings.max_wait)?;
        let form = form(&head.headers);
        if let Some(served) = self.reader.at_hand(&id, query.want) {
            return Ok(answer::token(&id, served, form, &head.headers, None));
        }
        Box::pin(self.one_later(head, &id, query, form)).await
    }

    async fn one_later(
        &self,
        head: &Parts,
        id: &ClientId,
        query: Query,
        form: Form,
    ) -> Result<Answer, Problem> {
        let _waits = self.waiting.try_acquire().map_err(|_| Problem::Busy)?;
        let begun = self.clock.moment();
        match self.reader.wait_for(id, query.want, query.max_wait).await {
            Ok(served) => {
                let waited = Some(self.clock.moment().since(begun));
                Ok(answer::token(id, served, form, &head.headers, waited))
            }
            // Whoever asks for the next generation has the last.
            Err(Refusal::NoNewer(_)) => Ok(answer::not_modified()),
            Err(refusal) => Err(Problem::Refused(refusal)),
        }
    }

    async fn many(&self, head: &Parts, body: Incoming) -> Result<Answer, Problem> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Batch {
            clients: Vec<String>,
            #[serde(default)]
            min_ttl: Option<String>,
            #[serde(default)]
            max_wait: Option<String>,
        }
        let allowed = self.allowed(&head.headers)?;
        let hint = "send {\"clients\": [\"...\"]} and, if need be, min_ttl and max_wait, as in \"60s\"";
        let batch: Batch = self.json(body, hint).await?;
        if batch.clients.len() > BATCH {
            return Err(Problem::Malformed(format!(
                "{} clients: ask for {BATCH} at most",
                batch.clients.len()
            )));
        }
        if batch.clients.iter().collect::<HashSet<_>>().len() < batch.clients.len() {
            return Err(Problem::Malformed("a client stands twice in the batch".into()));
        }
        let query = Query::of(batch.min_ttl.as_deref(), batch.max_wait.as_deref(), self.settings.max_wait)?;
        let _waits = self.waiting.try_acquire().map_err(|_| Problem::Busy)?;
        let reads = batch.clients.iter().map(|id| self.item(id, &allowed, query));
        let items = futures_util::future::join_all(reads).await;
        Ok(answer::batch(items))
    }

    async fn item<'a>(&self, id: &'a str, allowed: &Allowed, query: Query) -> (&'a str, answer::Item) {
        let read = async {
            let client = query::id(id)?;
            allowed.read(&client)?;
            let served =
                self.reader.token(&client, query.want, query.max_wait).await.map_err(Problem::Refused)?;
            Ok((client, served))
        };
        (id, read.await.inspect_err(|problem| audit(problem, id)))
    }

    async fn rejected(&self, head: &Parts, id: &str, body: Incoming) -> Result<Answer, Problem> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Rejected {
            generation: i64,
        }
        let allowed = self.allowed(&head.headers)?;
        let id = query::client(id)?;
        allowed.read(&id)?;
        let rejections =
            self.rejections.as_ref().filter(|_| allowed.may_reject()).ok_or(Problem::NotAllowed)?;
        let hint = "send {\"generation\": N}, the generation of the token that was refused";
        let Rejected { generation } = self.json(body, hint).await?;
        let _waits = self.waiting.try_acquire().map_err(|_| Problem::Busy)?;
        // A newer one may be stored already: then there is nothing to ask for.
        self.reader.confirm(&id, self.clock.moment().minus(CONFIRMED)).await;
        let served =
            self.reader.token(&id, Want::default(), Duration::ZERO).await.map_err(Problem::Refused)?;
        let token = served.token();
        if token.generation != Gen(generation) {
            return Ok(answer::superseded(token.generation));
        }
        match rejections.judge(&id, token, self.reader.now()) {
            Verdict::TooSoon(wait) => Err(Problem::TooSoon(wait)),
            Verdict::Asked => Ok(answer::refreshing(token.generation)),
            Verdict::Refresh => {
                info!(client = %id, reader = allowed.name(), generation, "a reader's token was refused: asking for another");
                self.ask_for_another(&id, token.generation).await.inspect_err(|_| rejections.forget(&id))?;
                Ok(answer::refreshing(token.generation))
            }
        }
    }

    /// By the way that an operator's request takes: the fleet sees it with its next look.
    async fn ask_for_another(&self, id: &ClientId, generation: Gen) -> Result<(), Problem> {
        for _ in 0..TRIES {
            let Some(change) = self.plan_another(id, generation).await? else { break };
            match self.store.apply(&change).await.map_err(|error| told(id, &error))? {
                Applied::Committed => break,
                // An operator changed the client meanwhile.
                Applied::Lost(_) => {}
            }
        }
        metrics::REJECTED_TOKENS.add(&[], 1);
        self.reader.expect_newer(id);
        Ok(())
    }

    /// On what stands there; no secret is read.
    async fn plan_another(&self, id: &ClientId, generation: Gen) -> Result<Option<Change>, Problem> {
        let keys = [Key::Config(id.clone()), Key::Lease(id.clone()), Key::Token(id.clone())];
        let found = self.store.load(&keys, View::Standing).await.map_err(|error| told(id, &error))?;
        let read = found
            .into_iter()
            .collect::<Partition>()
            .decode(id)
            .map_err(|error| Problem::Conflict(error.to_string()))?;
        let client = read.client().ok_or(Problem::Refused(Refusal::Absent))?;
        if read.tok_gen() != generation {
            return Ok(None);
        }
        let change = registry::replacement(client, read.lease.as_ref(), generation, self.clock.now());
        change.map_err(|refusal| Problem::Conflict(refusal.to_string()))
    }

    async fn json<T: DeserializeOwned>(&self, body: Incoming, hint: &str) -> Result<T, Problem> {
        let collected = Limited::new(body, BODY_BYTES).collect();
        let body = tokio::select! {
            read = Box::pin(collected) => read.map_err(|_| Problem::TooLarge)?.to_bytes(),
            () = self.clock.sleep(BODY_TIME) => return Err(Problem::Malformed("the body did not come".into())),
        };
        // The parser's own words could quote a key that was sent by mistake.
        serde_json::from_slice(&body).map_err(|_| Problem::Malformed(hint.to_owned()))
    }

    /// The client whose token is asked for, if whoever asks may read it. Who that is has no other use then, and is not shared
    /// with other processors by the count of its users.
    fn readable(&self, headers: &HeaderMap, id: &str) -> Result<ClientId, Problem> {
        let keys = self.keys.as_ref().map(|keys| keys.load());
        let reader =
            keys.as_ref().map(|keys| keys.whose(key(headers)?).ok_or(Problem::UnknownKey)).transpose()?;
        let id = query::client(id)?;
        may_read(reader, &id).map(|()| id)
    }

    /// What whoever asks may do.
    fn allowed(&self, headers: &HeaderMap) -> Result<Allowed, Problem> {
        match &self.keys {
            None => Ok(Allowed(None)),
            Some(_) => self.whose(key(headers)?),
        }
    }

    /// What the owner of this key may do.
    fn whose(&self, key: &[u8]) -> Result<Allowed, Problem> {
        let Some(keys) = &self.keys else { return Ok(Allowed(None)) };
        let keys = keys.load();
        let reader = keys.whose(key).ok_or(Problem::UnknownKey)?;
        Ok(Allowed(Some(Arc::clone(reader))))
    }

    fn metrics(&self) -> String {
        self.measure();
        self.exporter.as_ref().map_or_else(String::new, |exporter| exporter.render())
    }

    /// Brings the numbers up to date.
    pub fn measure(&self) {
        let counts = self.reader.counts();
        let told = |metric: &metrics::Metric, label: &str, count: &AtomicU64| {
            metric.reached(&[label], count.load(Ordering::Relaxed));
        };
        told(&metrics::AGENT_READS, "hit", &counts.hits);
        told(&metrics::AGENT_READS, "miss", &counts.misses);
        told(&metrics::AGENT_QUESTIONS, "yes", &counts.answers);
        told(&metrics::AGENT_QUESTIONS, "no", &counts.failures);
        metrics::LEAST_LIFETIME_SERVED.set(&[], counts.least_lifetime().as_secs_f64());
        metrics::AGENT_CONNECTIONS.set_count(&[], self.connections.len());
        metrics::AGENT_WAITING.set_count(&[], self.settings.waiting - self.waiting.available_permits());
        metrics::AGENT_CLIENTS.set_count(&[], self.reader.len());
    }
}

fn told(id: &ClientId, error: &StoreError) -> Problem {
    warn!(client = %id, %error, "a refresh could not be asked for");
    let again = Refusal::Unavailable(Duration::from_secs(1));
    Problem::Refused(if error.is_transient() { again } else { Refusal::Forbidden })
}

/// What whoever asks may do: what this reader may, or, where no key is asked for, everything.
struct Allowed(Option<Arc<keys::Reader>>);

impl Allowed {
    fn read(&self, id: &ClientId) -> Result<(), Problem> {
        may_read(self.0.as_ref(), id)
    }

    fn may_reject(&self) -> bool {
        self.0.as_ref().is_none_or(|reader| reader.may_reject)
    }

    fn name(&self) -> &str {
        self.0.as_ref().map_or("-", |reader| &reader.name)
    }
}

/// The agent, as one of its sockets sees it.
struct Visitors<S> {
    agent: Arc<Agent<S>>,
    is_local: bool,
    manner: Manner,
}

impl<S: Store> server::Service for Visitors<S> {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        match (self.manner, &self.agent.settings.drop_in) {
            (Manner::DropIn, Some(settings)) => {
                Box::pin(self.agent.answer_as_aws(&request.into_parts().0, settings)).await
            }
            _ => self.agent.answer(request, self.is_local).await,
        }
    }
}

fn may_read(reader: Option<&Arc<keys::Reader>>, id: &ClientId) -> Result<(), Problem> {
    let allowed = reader.is_none_or(|reader| reader.may_read(id));
    if allowed { Ok(()) } else { Err(Problem::NotAllowed) }
}

fn key(headers: &HeaderMap) -> Result<&[u8], Problem> {
    headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes())).ok_or(Problem::NoKey)
}

/// RFC 6750 section 2.1; the scheme's name in any case.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    (scheme.eq_ignore_ascii_case(b"bearer ")).then(|| key.trim_ascii())
}

fn form(headers: &HeaderMap) -> Form {
    let text = headers.get(ACCEPT).is_some_and(|accept| accept.as_bytes().starts_with(b"text/plain"));
    if text { Form::Text } else { Form::Json }
}

/// One line for each request that is refused for what it is, or for who asks.
fn audit(problem: &Problem, asked: &str) {
    let told = problem.told();
    let refused = matches!(
        problem,
        Problem::ForwardedRequest(_)
            | Problem::AnotherHost
            | Problem::NoKey
            | Problem::UnknownKey
            | Problem::NotAllowed
    );
    if refused {
        metrics::AGENT_REFUSALS.add(&[told.code], 1);
        warn!(code = told.code, path = %printable(asked), "a request was refused");
    }
}

/// A path is somebody else's text, and what follows the beginning of a key in it is not shown.
fn printable(path: &str) -> String {
    let path = keys::place_in(path).map_or(path, |place| &path[..place]);
    path.chars().take(160).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect()
}
