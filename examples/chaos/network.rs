//! Our proxies: one between each task and the table, and one before the token endpoint, which all tasks must name
//! alike since a token is bound to it (it tells them apart by a header of their configuration).
//!
//! Each request is read whole, understood, noted, and then meets the weather of its hop and the traps that are set. What
//! has gone on to a server is always answered to us, whatever becomes of the sender: so the journal knows what landed.

#![allow(clippy::disallowed_methods, reason = "a network takes real time")]

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::journal::{Journal, Task};
use crate::meaning::{self, Call};
use crate::trap::{Release, Row, Side, Traps};
use crate::wire::{Message, Stream, exchange};

/// The header by which a task names itself to the provider's proxy.
pub(crate) const TASK: &str = "x-chaos-task";
/// The header by which the provider's log names the request.
const REQUEST: &str = "X-Request-Id";

/// From whom to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Hop {
    Store,
    Provider,
}

/// How it is on a hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Connections end, and so does every new one; nothing goes on.
    Cut,
    /// Requests and answers take longer.
    Slow(Duration, Duration),
    /// The request goes on, and the proxy closes its half of the connection instead of answering.
    HalfClose,
    /// The request goes on, and only the answer is lost.
    LoseReply,
    /// The request goes on, and the answer never comes.
    Silence,
    /// Nothing goes on: too many requests.
    Throttle,
    /// Nothing goes on: the server has a bad day, and says so.
    Unavailable,
}

/// How an exchange ends for the connection that it came over.
enum End {
    Keep,
    Close,
}

/// The hops between the tasks and the servers.
pub(crate) struct Network {
    pub(crate) journal: Arc<Journal>,
    pub(crate) traps: Traps,
    weather: Mutex<HashMap<(Task, Hop), Weather>>,
    store: String,
    provider: String,
    /// What a task gives an exchange with the provider: an answer later than three quarters of it is not delivered, so
    /// that nobody has to guess who heard what.
    patience: Duration,
}

/// A proxy's listening end. It ends with this.
pub(crate) struct Door {
    url: String,
    accepting: JoinHandle<()>,
}

impl Door {
    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Network {
    /// Before a table and a provider, such as `http://127.0.0.1:8000`.
    pub(crate) fn new(journal: Arc<Journal>, store: &str, provider: &str, patience: Duration) -> Self {
        let address = |url: &str| url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let (store, provider) = (address(store), address(provider));
        Self { journal, traps: Traps::default(), weather: Mutex::default(), store, provider, patience }
    }

    /// A task's own way to the table.
    pub(crate) async fn store_door(self: &Arc<Self>, task: Task) -> Door {
        let network = Arc::clone(self);
        open(move |near| {
            let network = Arc::clone(&network);
            async move { network.serve_store(task, near).await }
        })
        .await
    }

    /// Everybody's way to the provider.
    pub(crate) async fn provider_door(self: &Arc<Self>) -> Door {
        let network = Arc::clone(self);
        open(move |near| {
            let network = Arc::clone(&network);
            async move { network.serve_provider(near).await }
        })
        .await
    }

    pub(crate) fn set(&self, task: Task, hop: Hop, weather: Weather) {
        self.all_weather().insert((task, hop), weather);
    }

    /// Fair again.
    pub(crate) fn clear(&self, task: Task, hop: Hop) {
        self.all_weather().remove(&(task, hop));
    }

    pub(crate) fn clear_all(&self) {
        self.all_weather().clear();
    }

    fn weather(&self, task: Task, hop: Hop) -> Option<Weather> {
        self.all_weather().get(&(task, hop)).copied()
    }

    fn all_weather(&self) -> std::sync::MutexGuard<'_, HashMap<(Task, Hop), Weather>> {
        self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve_store(&self, task: Task, mut near: Stream) -> io::Result<()> {
        while let Some(request) = Message::read(&mut near).await? {
            match self.store(task, &request, &mut near).await? {
                End::Keep => {}
                End::Close => break,
            }
        }
        Ok(())
    }

    async fn store(&self, task: Task, request: &Message, near: &mut Stream) -> io::Result<End> {
        let call = meaning::call(request);
        let place = self.place(task, &call);
        if let Some((row, client)) = &place
            && self.traps.pass(task, (*row, Side::Before), client).await == Release::Drop
        {
            return Ok(End::Close);
        }
        match self.weather(task, Hop::Store) {
            Some(Weather::Cut) => return Ok(End::Close),
            Some(Weather::Throttle) => return answer(near, &throttled()).await,
            Some(Weather::Unavailable) => return answer(near, &unavailable()).await,
            Some(Weather::Slow(before, _)) => tokio::time::sleep(before).await,
            _ => {}
        }
        if let Call::Acquire { client, owner, .. } = &call {
            self.journal.acquiring(task, client, owner);
        }
        let response = exchange(&self.store, request).await?;
        self.note(task, call, &response);
        if let Some((row, client)) = &place
            && self.traps.pass(task, (*row, Side::After), client).await == Release::Drop
        {
            return Ok(End::Close);
        }
        match self.weather(task, Hop::Store) {
            Some(weather) => end_in(weather, near, &response).await,
            None => answer(near, &response).await,
        }
    }

    /// Which step of a refresh a call to the table is.
    fn place(&self, task: Task, call: &Call) -> Option<(Row, String)> {
        match call {
            Call::Acquire { client, .. } => Some((Row::Acquire, client.clone())),
            // Others read partitions too.
            Call::Read { client } if self.journal.is_before_send(task, client) => {
                Some((Row::Read, client.clone()))
            }
            Call::Commit { client, .. } => Some((Row::Commit, client.clone())),
            _ => None,
        }
    }

    fn note(&self, task: Task, call: Call, response: &Message) {
        match call {
            Call::Read { .. } | Call::Other => {}
            written => self.journal.wrote(task, written, meaning::fate(response)),
        }
    }

    async fn serve_provider(&self, mut near: Stream) -> io::Result<()> {
        while let Some(request) = Message::read(&mut near).await? {
            match self.provider(request, &mut near).await? {
                End::Keep => {}
                End::Close => break,
            }
        }
        Ok(())
    }

    async fn provider(&self, request: Message, near: &mut Stream) -> io::Result<End> {
        let task = request.header(TASK).and_then(|task| task.parse().ok()).unwrap_or_default();
        let Some(presented) = meaning::presented(&request) else { return Ok(End::Close) };
        let number = self.journal.arrived(task, presented, self.log_len(task).await);
        let client = self.journal.client_of(number);
        if self.traps.pass(task, (Row::Send, Side::Before), &client).await == Release::Drop {
            return Ok(End::Close);
        }
        match self.weather(task, Hop::Provider) {
            Some(Weather::Cut) => return Ok(End::Close),
            Some(Weather::Throttle) => return answer(near, &too_many()).await,
            Some(Weather::Unavailable) => return answer(near, &unavailable()).await,
            Some(Weather::Slow(before, _)) => tokio::time::sleep(before).await,
            _ => {}
        }
        self.journal.forwarded(number);
        let response = exchange(&self.provider, &request.with_header(REQUEST, &number.to_string())).await?;
        self.journal.answered(number, response.status() == 200, meaning::granted(&response));
        if self.traps.pass(task, (Row::Send, Side::After), &client).await == Release::Drop {
            return Ok(End::Close);
        }
        self.reply(task, number, near, &response).await
    }

    async fn reply(&self, task: Task, number: u64, near: &mut Stream, response: &Message) -> io::Result<End> {
        let weather = self.weather(task, Hop::Provider);
        if let Some(Weather::Slow(_, after)) = weather {
            tokio::time::sleep(after).await;
        }
        if self.journal.age(number) > self.patience.mul_f64(0.75) {
            self.journal.withheld(number, "late");
            return Ok(End::Close);
        }
        match weather {
            None | Some(Weather::Slow(..)) => answer(near, response).await,
            Some(weather) => {
                // Noted first: what the task does about it comes later than this.
                if let Some(fault) = swallows(weather) {
                    self.journal.withheld(number, fault);
                }
                end_in(weather, near, response).await
            }
        }
    }

    /// A task that was just started has its log named in a moment.
    async fn log_len(&self, task: Task) -> u64 {
        for _ in 0..200 {
            match self.journal.log_len(task) {
                Some(length) => return length,
                None => tokio::time::sleep(Duration::from_millis(25)).await,
            }
        }
        0
    }
}

/// What kind of weather does to an answer that is there.
fn swallows(weather: Weather) -> Option<&'static str> {
    match weather {
        Weather::Cut => Some("cut"),
        Weather::HalfClose => Some("half-closed"),
        Weather::LoseReply => Some("lost"),
        Weather::Silence => Some("silenced"),
        Weather::Slow(..) | Weather::Throttle | Weather::Unavailable => None,
    }
}

/// Delivers an answer, or does not.
async fn end_in(weather: Weather, near: &mut Stream, response: &Message) -> io::Result<End> {
    Ok(match weather {
        Weather::Cut | Weather::LoseReply => End::Close,
        Weather::HalfClose => {
            near.get_mut().shutdown().await?;
            wait_for_end(near).await;
            End::Close
        }
        Weather::Silence => {
            wait_for_end(near).await;
            End::Close
        }
        Weather::Slow(_, after) => {
            tokio::time::sleep(after).await;
            answer(near, response).await?
        }
        Weather::Throttle | Weather::Unavailable => answer(near, response).await?,
    })
}

/// The other end gives up at some time; a program that was killed does so at once.
async fn wait_for_end(near: &mut Stream) {
    let patience = Duration::from_secs(60);
    drop(tokio::time::timeout(patience, Message::read(near)).await);
}

async fn answer(near: &mut Stream, response: &Message) -> io::Result<End> {
    response.write(near).await?;
    Ok(End::Keep)
}

fn throttled() -> Message {
    let kind = "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException";
    Message::answer("400 Bad Request", "", &format!("{{\"__type\":\"{kind}\",\"message\":\"slow down\"}}"))
}

fn too_many() -> Message {
    Message::answer("429 Too Many Requests", "Retry-After: 1\r\n", "{}")
}

fn unavailable() -> Message {
    Message::answer("503 Service Unavailable", "", "{}")
}

async fn open<F>(serve: impl Fn(Stream) -> F + Send + 'static) -> Door
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    let accepting = tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((near, _)) => drop(tokio::spawn(serve(settled(near)))),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    });
    Door { url, accepting }
}

fn settled(near: TcpStream) -> Stream {
    near.set_nodelay(true).ok();
    BufReader::new(near)
}
