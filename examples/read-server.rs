//! The other side of `make bench-read`, as processes of their own that are built as the program is:
//!
//! ```text
//! read-server floor --bytes 512              a bare hyper 1 server with a constant body
//! read-server agent --clients 1000000        the agent, with so many clients known, over a table that makes up its items
//! read-server hot --clients 1000             how long a read through the Rust module takes
//! ```
//!
//! The servers print `READY http://...`, and end with their standard input; `hot` prints one object in JSON.

#![allow(clippy::print_stdout, reason = "it tells its address, or its result, to whoever started it")]
#![allow(clippy::unwrap_used, reason = "a helper that cannot run may stop there")]
#![allow(clippy::cast_precision_loss, reason = "counts are small")]
#![allow(clippy::disallowed_methods, reason = "it measures real time")]

use std::convert::Infallible;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use clap::Parser;
use futures_util::StreamExt as _;
use http::header::{CONTENT_TYPE, HeaderValue};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use perennial::agent::{self, Agent, Keys, Manner, Socket, keys};
use perennial::client::ClientId;
use perennial::item::{Change, Item, Key, Value, attr};
use perennial::reader::{Reader, Settings, Want};
use perennial::record::Partition;
use perennial::secret::Secret;
use perennial::store::{Applied, Page, ShardQuery, Store, StoreError, View, Vitals};
use perennial::time::{Clock as _, SystemClock};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// As the program has it.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// As long as a JWT of a few claims is.
const TOKEN_BYTES: usize = 800;

/// What is compared.
#[derive(Parser)]
enum Options {
    /// A bare hyper 1 server.
    Floor {
        /// The body's length.
        #[arg(long)]
        bytes: usize,
    },
    /// The agent with this key in force.
    Agent {
        #[arg(long)]
        clients: usize,
        #[arg(long)]
        key: String,
    },
    /// The Rust module alone.
    Hot {
        #[arg(long)]
        clients: usize,
    },
}

#[tokio::main]
async fn main() {
    match Options::parse() {
        Options::Floor { bytes } => floor(bytes).await,
        Options::Agent { clients, key } => agent(clients, &key).await,
        Options::Hot { clients } => hot(clients).await,
    }
}

/// What no server over hyper can do without.
async fn floor(bytes: usize) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    println!("READY http://{}", listener.local_addr().unwrap());
    let body = Bytes::from("x".repeat(bytes));
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let body = body.clone();
        tokio::spawn(async move {
            let service = service_fn(|_| {
                let mut answer = http::Response::new(Full::new(body.clone()));
                answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                async { Ok::<_, Infallible>(answer) }
            });
            // What went wrong is the other side's affair.
            drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

async fn agent(clients: usize, key: &str) {
    let reader = filled(clients).await;
    let digest = keys::digest_of(key);
    let entry = format!("[readers.bench]\nkey_sha256 = [\"{digest}\"]\nclients = [\"client-*\"]\n");
    let keys = Arc::new(ArcSwap::from_pointee(Keys::parse(&entry).unwrap()));
    let settings = agent::Settings {
        max_wait: Duration::from_secs(10),
        connections: 1024,
        waiting: 1024,
        rejection_interval: None,
        drop_in: None,
    };
    let socket = Socket::tcp((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    println!("READY http://{}", socket.place());
    let agent = Agent::new(reader, MadeUp, Arc::new(SystemClock), Some(keys), None, settings);
    Arc::new(agent).serve(vec![(socket, Manner::Own)], CancellationToken::new()).await;
}

/// Reads of clients in an order that no cache foresees: the median of batches that are shorter than a turn of the
/// processor, so that other programs' turns are not counted.
async fn hot(clients: usize) {
    const BATCHES: usize = 501;
    const READS: usize = 10_000;
    let reader = filled(clients).await;
    let ids: Vec<_> = (0..clients).map(client).collect();
    let mut nanos = Vec::with_capacity(BATCHES);
    let mut place = 0;
    for _ in 0..BATCHES {
        let begun = Instant::now();
        for _ in 0..READS {
            place = (place + 7919) % clients;
            black_box(reader.at_hand(black_box(&ids[place]), Want::default()).unwrap());
        }
        nanos.push(begun.elapsed().as_nanos() as f64 / READS as f64);
    }
    nanos.sort_by(f64::total_cmp);
    println!("{}", serde_json::json!({ "clients": clients, "ns": nanos[BATCHES / 2] }));
}

/// Read by the threads that read for the agent: whose memory it is makes a difference to an allocator.
async fn filled(clients: usize) -> Reader<MadeUp> {
    tokio::spawn(fill(clients)).await.unwrap()
}

async fn fill(clients: usize) -> Reader<MadeUp> {
    // Room for all: the cache is in parts, and they do not fill alike.
    let settings = Settings { clients: 2 * clients, ..Settings::default() };
    let clock = Arc::new(SystemClock);
    let reader = Reader::new(MadeUp, Arc::new(Vitals::default()), clock, Box::new(|_| None), settings);
    let reads =
        futures_util::stream::iter(0..clients).map(|number| {
            let reader = reader.clone();
            async move {
                reader.token(&client(number), Want::default(), Duration::ZERO).await.map(|_| ()).unwrap()
            }
        });
    reads.buffer_unordered(64).collect::<Vec<()>>().await;
    reader
}

fn client(number: usize) -> ClientId {
    ClientId::new(format!("client-{number}")).unwrap()
}

/// A table in which every client has a token for an hour, and that takes no memory.
struct MadeUp;

impl Store for MadeUp {
    async fn read(&self, _: &ClientId) -> Result<Partition, StoreError> {
        Ok(Partition::default())
    }

    async fn apply(&self, _: &Change) -> Result<Applied, StoreError> {
        Err(StoreError::Unavailable("nothing is written here".into()))
    }

    async fn query(&self, _: &ShardQuery) -> Result<Page, StoreError> {
        Err(StoreError::Unavailable("nothing is listed here".into()))
    }

    async fn load(&self, keys: &[Key], _: View) -> Result<Vec<(Key, Item)>, StoreError> {
        let token = |key: &Key| matches!(key, Key::Token(_)).then(|| (key.clone(), made_up()));
        Ok(keys.iter().filter_map(token).collect())
    }
}

fn made_up() -> Item {
    let expiry = SystemClock.now().plus(Duration::from_secs(3600));
    Item::default()
        .with(attr::ACCESS_TOKEN, Value::Secret(Secret::new("t".repeat(TOKEN_BYTES))))
        .with(attr::EXPIRES_AT, Value::N(expiry.as_secs()))
        .with(attr::REFRESH_AT, Value::N(expiry.minus(Duration::from_secs(360)).as_millis()))
        .with(attr::TOK_GEN, Value::N(1))
}
