//! Several processes on one embedded file: nothing that was acknowledged is lost, not even to `kill -9`.
//!
//! The writers are `examples/store-writer.rs`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use perennial::client::ClientId;
use perennial::item::{Key, Value};
use perennial::store::{Embedded, Store, View};
use perennial::time::SystemClock;

use crate::support::example;

fn key() -> Key {
    Key::Lease(ClientId::new("shared").expect("a valid id"))
}

async fn open(path: &Path) -> Embedded {
    Embedded::open(path, "clients", 16, Arc::new(SystemClock)).await.expect("opens")
}

async fn count(embedded: &Embedded) -> i64 {
    let found = embedded.store().load(&[key()], View::Whole).await.expect("loads");
    match found.first().and_then(|(_, item)| item.get("gen")) {
        Some(Value::N(number)) => *number,
        _ => 0,
    }
}

async fn start_writer(path: &Path) -> Child {
    Command::new(example("store-writer").await)
        .arg(path)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("starts")
}

fn acknowledged(line: &str) -> Option<i64> {
    line.strip_prefix("wrote ")?.parse().ok()
}

#[tokio::test]
async fn two_processes_lose_no_update_of_one_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.db");
    let embedded = open(&path).await;
    // A running daemon holds its lock meanwhile; others may write all the same.
    let _daemon = Embedded::lock_for_daemon(&path).expect("free");
    for writer in [start_writer(&path).await, start_writer(&path).await] {
        let output = writer.wait_with_output().expect("ends");
        assert!(output.status.success());
    }
    assert_eq!(count(&embedded).await, 400);
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.db");
    let mut last = 0;
    for limit in [40, 75, 110] {
        let mut writer = start_writer(&path).await;
        let mut lines = BufReader::new(writer.stdout.take().expect("piped")).lines();
        let reached = lines
            .by_ref()
            .map_while(Result::ok)
            .filter_map(|line| acknowledged(&line))
            .find(|at| *at >= limit);
        last = reached.expect("it gets there");
        writer.kill().expect("killed");
        writer.wait().expect("ended");
        // What it acknowledged between our reading and its death.
        last = lines.map_while(Result::ok).filter_map(|line| acknowledged(&line)).last().unwrap_or(last);
        let stored = count(&open(&path).await).await;
        assert!(stored == last || stored == last + 1, "{stored} stored, {last} acknowledged");
    }
    assert!(last >= 110);
}
