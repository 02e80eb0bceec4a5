//! A strict OAuth2 provider with rotating refresh tokens, as a process of its own.
//!
//! The demo, the benchmarks and the tests refresh against it. Every refresh token is redeemable exactly once; a
//! second redemption is answered with `invalid_grant` and revokes the whole grant, as RFC 9700 section 4.14 asks.
//! So a mistake in a client shows as a dead grant and as a count in `/control/stats`, not as luck.
//!
//! Everything is in memory. Grants live in `authority`, misbehaviour on request in `faults`, both without HTTP.
//! It speaks hyper directly, because some faults have to close the connection instead of answering.
//!
//! ```text
//! cargo run --example strict-provider -- --listen 127.0.0.1:8090 --lifetime-secs 30
//! curl -d '{"client_id":"app","client_secret":"s","auth":"post"}' localhost:8090/control/clients
//! curl -X POST 'localhost:8090/control/grants?client_id=app'
//! curl -d grant_type=refresh_token -d client_id=app -d client_secret=s -d refresh_token=... localhost:8090/token
//! curl localhost:8090/control/stats
//! ```

#![allow(clippy::disallowed_methods, reason = "a provider answers in real time")]

use std::io::{self, Write};
use std::net::SocketAddr;
use std::num::ParseIntError;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgAction, Parser};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

#[path = "strict-provider/authority.rs"]
mod authority;
#[path = "strict-provider/faults.rs"]
mod faults;
#[path = "strict-provider/http.rs"]
mod http;
#[path = "strict-provider/request.rs"]
mod request;
#[path = "strict-provider/sample.rs"]
mod sample;

use authority::Policy;
use http::Provider;

/// A strict OAuth2 provider with rotating refresh tokens, for tests and demonstrations.
#[derive(Parser)]
struct Options {
    /// Address to listen on; port 0 takes a free one. The address in use is printed as `READY http://...`.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Life of an access token in seconds.
    #[arg(long = "lifetime-secs", default_value = "3600", value_parser = seconds)]
    lifetime: Duration,
    /// Whether a refresh replaces the refresh token. `false` keeps it and sends none, as many providers do.
    #[arg(long, default_value = "true", action = ArgAction::Set)]
    rotate: bool,
    /// For how many seconds after a rotation the previous refresh token may be redeemed again.
    #[arg(long = "grace-secs", default_value = "0", value_parser = seconds)]
    grace: Duration,
    /// Milliseconds between doing the work of a token request and answering it.
    #[arg(long = "latency-ms", default_value = "0", value_parser = milliseconds)]
    latency: Duration,
    /// File to append one JSON line per token request to. It holds no token and no secret.
    #[arg(long)]
    event_log: Option<PathBuf>,
    /// How many clients are granted tokens at the start, for a trial...
    #[arg(long, default_value_t = 0, requires = "sample_folder")]
    sample_clients: u32,
    /// ... and the folder for `clients.toml`, which `perennial clients apply` takes, and for its secrets.
    #[arg(long)]
    sample_folder: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<Duration, ParseIntError> {
    text.parse().map(Duration::from_secs)
}

fn milliseconds(text: &str) -> Result<Duration, ParseIntError> {
    text.parse().map(Duration::from_millis)
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let options = Options::parse();
    let policy = Policy { lifetime: options.lifetime, rotate: options.rotate, grace: options.grace };
    let provider = Arc::new(Provider::new(policy, options.latency, options.event_log.as_deref())?);
    if let Some(folder) = &options.sample_folder {
        sample::grant(&provider, options.sample_clients, folder)?;
    }
    let listener = TcpListener::bind(options.listen).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    announce(listener.local_addr()?)?;
    tokio::select! {
        () = serve(listener, provider) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn announce(address: SocketAddr) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "READY http://{address}")?;
    stdout.flush()
}

async fn serve(listener: TcpListener, provider: Arc<Provider>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(converse(stream, Arc::clone(&provider)))),
            // Out of file descriptors, or the peer went away: neither is a reason to stop, or to spin.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn converse(stream: TcpStream, provider: Arc<Provider>) {
    // Without it every answer in two writes waits for the peer's delayed acknowledgement.
    stream.set_nodelay(true).ok();
    let service = service_fn(move |request| {
        let provider = Arc::clone(&provider);
        async move { provider.answer(request).await }
    });
    // An error is either a peer that left or a hang-up that a fault ordered: both end the connection.
    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
}
