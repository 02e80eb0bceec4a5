//! The main job in a minute, with no account and no configuration.
//!
//! Starts a strict OAuth2 provider with short-lived tokens as a process of its own, registers a few dozen clients of
//! both grants in the embedded store, runs the real daemon, and shows what it does: a live table on a terminal, lines
//! in a pipe. It ends with Ctrl-C or after `--for`, and then prints one line for programs:
//!
//! ```text
//! summary refreshes=.. failures=.. expired_token_seconds=0 double_redemptions=0
//! ```
//!
//! Double redemptions are counted by the provider, not by us; expired seconds from the commits that stand in the
//! table. The exit code is not zero where the summary is not clean.

#![allow(clippy::print_stdout, reason = "a demonstration prints")]
#![allow(clippy::disallowed_methods, reason = "a demonstration runs in real time")]

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;

#[path = "demo/observe.rs"]
mod observe;
#[path = "demo/stage.rs"]
mod stage;
#[path = "demo/view.rs"]
mod view;

use observe::Ledger;
use stage::Stage;
use view::View;

/// How often the table is read.
const TICK: Duration = Duration::from_millis(250);

/// Keeps a few dozen OAuth2 clients fresh, and shows it.
#[derive(Parser)]
struct Options {
    /// How long to run, as in 60s or 5m; until Ctrl-C where it is left out.
    #[arg(long = "for", value_parser = humantime::parse_duration)]
    length: Option<Duration>,
    /// How many clients: two thirds with rotating refresh tokens, one third with client credentials.
    #[arg(long, default_value_t = 36, value_parser = clap::value_parser!(u32).range(3..=1000))]
    clients: u32,
    /// Life of an access token in seconds.
    #[arg(long = "lifetime-secs", default_value_t = 20, value_parser = clap::value_parser!(u32).range(8..=3600))]
    lifetime_secs: u32,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Options::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("the demo could not run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> anyhow::Result<bool> {
    println!(
        "A strict OAuth2 provider, {} clients, tokens that live {} s.",
        options.clients, options.lifetime_secs
    );
    println!("Every refresh token works once; redeeming one twice would kill its grant. Ctrl-C ends it.\n");
    let mut stage = Stage::set(options.clients, options.lifetime_secs).await?;
    let table = stage.open_table().await?;
    let mut ledger = Ledger::default();
    let mut view = View::new(std::io::stdout().is_terminal());
    let end = async {
        match options.length {
            Some(length) => tokio::time::timeout(length, tokio::signal::ctrl_c()).await.is_ok(),
            None => tokio::signal::ctrl_c().await.is_ok(),
        }
    };
    tokio::pin!(end);
    loop {
        tokio::select! {
            biased;
            _ = &mut end => break,
            () = tokio::time::sleep(TICK) => {}
        }
        anyhow::ensure!(stage.daemon_runs(), "the daemon ended by itself: {}", stage.daemon_output());
        let news = ledger.read(&table).await.context("reading the table")?;
        view.show(&ledger, &news);
    }
    view.close();
    let drained = stage.stop_daemon().await?;
    ledger.read(&table).await.context("reading the table")?;
    let verdict = ledger.verdict(stage.double_redemptions().await?);
    println!("{verdict}");
    stage.clear().await;
    Ok(verdict.is_clean() && drained)
}
