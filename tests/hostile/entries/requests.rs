//! Connections to the health endpoints: the first byte says how they come, the rest is what is sent.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use perennial::health::{Health, Limits};
use perennial::metrics::{Exporter, install};
use perennial::record::Phase;
use perennial::scheduler::Pulse;
use perennial::store::Vitals;
use perennial::time::Moment;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, split};
use tokio::sync::watch;

use super::bytes::Bytes;
use super::{Still, TURNS, run, turns};

/// An answer is small, all the metrics included.
const LARGEST: usize = 256 * 1024;

/// Any bytes on one connection: one answer at most, well formed, and then the end.
pub(crate) fn http_request(data: &[u8]) {
    let mut bytes = Bytes(data);
    let manner = bytes.byte();
    let answer = run(connection(bytes.0, manner));
    assert!(answer.len() < LARGEST, "{} bytes of answer", answer.len());
    if !answer.is_empty() {
        is_one_answer(&answer, bytes.0);
    }
}

async fn connection(sent: &[u8], manner: u8) -> Vec<u8> {
    let (is_local, stays_open, in_pieces) = (manner & 1 == 0, manner & 2 != 0, manner & 4 != 0);
    // A small one makes the server wait for us in the middle of a long answer.
    let (ours, theirs) = tokio::io::duplex(if manner & 8 == 0 { 64 * 1024 } else { 512 });
    let server = tokio::spawn(perennial::entry::http_connection(theirs, is_local, health()));
    let answer = in_time(exchange(ours, sent, stays_open, in_pieces)).await;
    in_time(server).await.expect("without a panic");
    answer
}

/// Longer than a connection may last.
async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::select! {
        biased;
        done = work => done,
        () = turns(2 * TURNS) => panic!("a connection ends in time, whatever comes"),
    }
}

async fn exchange(stream: DuplexStream, sent: &[u8], stays_open: bool, in_pieces: bool) -> Vec<u8> {
    let (mut reader, mut writer) = split(stream);
    let mut answer = Vec::new();
    let writing = async {
        let size = if in_pieces { 3 } else { sent.len().max(1) };
        for piece in sent.chunks(size) {
            // The other side may have heard enough.
            if writer.write_all(piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        if !stays_open {
            drop(writer.shutdown().await);
        }
    };
    let (_, read) = tokio::join!(writing, reader.read_to_end(&mut answer));
    drop(read);
    answer
}

fn is_one_answer(answer: &[u8], sent: &[u8]) {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("headers end");
    let head = std::str::from_utf8(&answer[..end]).expect("headers are text");
    let body = &answer[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines.next().expect("a status line");
    let status = status.strip_prefix("HTTP/1.1 ").or_else(|| status.strip_prefix("HTTP/1.0 "));
    let status: u16 = status.and_then(|rest| rest.get(..3)?.parse().ok()).expect("a status line");
    assert!([200, 400, 404, 405, 413, 414, 421, 431, 503].contains(&status), "{status}");
    let headers: Vec<_> = lines.map(|line| line.split_once(": ").expect("a header")).collect();
    let length = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = length.map(|(_, length)| length.parse::<usize>().expect("a number"));
    // Empty lines before a request are passed over (RFC 9112 section 2.2).
    let is_head = sent.trim_ascii_start().starts_with(b"HEAD ");
    assert!(
        length == Some(body.len()) || is_head && body.is_empty(),
        "one answer and nothing after it: {head}"
    );
    let known = ["content-length", "content-type", "date", "connection", "allow"];
    assert!(headers.iter().all(|(name, _)| known.contains(&name.to_ascii_lowercase().as_str())), "{head}");
}

fn health() -> Arc<Health> {
    static EXPORTER: OnceLock<Arc<Exporter>> = OnceLock::new();
    let exporter = EXPORTER.get_or_init(|| Arc::new(install(None).expect("the first in this process")));
    let limits = Limits { max_lag: Duration::from_secs(60), max_skew: Duration::from_secs(60) };
    Arc::new(Health {
        incarnation: "a1".to_owned(),
        clock: Arc::new(Still),
        scheduler: Arc::new(Pulse::default()),
        discovery: Arc::new(Pulse::default()),
        vitals: Arc::new(Vitals::default()),
        limits: watch::channel(limits).1,
        store_silence: Duration::from_secs(60),
        phase: watch::channel(Phase::Active).1,
        permit: watch::channel(Moment::MAX).1,
        ecs: None,
        exporter: Arc::clone(exporter),
    })
}
