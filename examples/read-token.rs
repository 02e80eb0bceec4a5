//! Reads clients' access tokens from Perennial's table, sealed or plain, with this crate's `reader`: what a service in Rust does.
//!
//! `cargo run --example read-token -- [CLIENT_ID] [--table NAME] [--key-table NAME] [--key-file FILE]`
//!
//! Prints {"access_token":...,"expires_at":...}, or says on standard error why not and ends with 1. Without a client's id it
//! reads ids from standard input and answers each with a line. Region, credentials and endpoints are found as AWS's SDK finds
//! them: AWS_REGION, AWS_ENDPOINT_URL_DYNAMODB, AWS_ENDPOINT_URL_KMS.
#![allow(clippy::print_stdout, reason = "that is what it is for")]

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use perennial::client::ClientId;
use perennial::reader::{Reader, Want};
use perennial::seal::LocalKeys;
use perennial::store::{DynamoVault, Reading};
use serde_json::{Value, json};

/// A token that lives for less is waited for, if its successor is due.
const MIN_TTL: Duration = Duration::from_secs(1);
/// ... and for so long at most.
const PATIENCE: Duration = Duration::from_secs(2);

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
struct Options {
    /// The client's id; without, ids are read from standard input.
    client: Option<String>,
    #[arg(long, default_value = "client-credentials")]
    table: String,
    /// The table of wrapped keys; the table's name and -keys without.
    #[arg(long)]
    key_table: Option<String>,
    /// For tokens that were sealed with sealing.mode = "local".
    #[arg(long)]
    key_file: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let reader = reader(&options).await?;
    // Tokens that are in use are kept fresh: from now on, most reads are answered from memory.
    let keeping = reader.clone();
    tokio::spawn(async move { keeping.keep().await });
    if let Some(client) = &options.client {
        println!("{}", read(&reader, client).await?);
        return Ok(());
    }
    let (lines, mut clients) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        std::io::stdin().lines().map_while(Result::ok).try_for_each(|id| lines.send(id))
    });
    let mut answers = tokio::task::JoinSet::new();
    while let Some(client) = clients.recv().await {
        let reader = reader.clone();
        answers.spawn(async move {
            let mut found =
                read(&reader, &client).await.unwrap_or_else(|why| json!({ "error": why.to_string() }));
            found["client"] = json!(client);
            println!("{found}");
        });
    }
    answers.join_all().await;
    Ok(())
}

async fn reader(options: &Options) -> Result<Reader<DynamoVault>, Failure> {
    let local = match &options.key_file {
        Some(file) => Some(LocalKeys::parse(&std::fs::read_to_string(file)?)?),
        None => None,
    };
    let table = Reading { local, key_table: options.key_table.clone(), ..Reading::of(&options.table) };
    let table = table.open().await?;
    Ok(Reader::over(table.clone(), table.vitals()))
}

async fn read(reader: &Reader<DynamoVault>, client: &str) -> Result<Value, Failure> {
    let want = Want { min_ttl: MIN_TTL, ..Want::default() };
    let served = reader.token(&ClientId::new(client)?, want, PATIENCE).await?;
    let token = served.token();
    Ok(json!({ "access_token": token.secret.expose(), "expires_at": token.expires_at.as_secs() }))
}
