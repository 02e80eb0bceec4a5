//! The means of a siege. Each returns how many were brought on, and how many came to the end that they should have.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::camp::{Camp, SOON, exchange, parsed, status};
use crate::support::wait_until;

/// How long a connection is watched that should go on, or a byte comes after the last one.
const MOMENT: Duration = Duration::from_millis(200);

/// Connections that say nothing: how many there are, and how many answer when asked in the end.
pub(crate) async fn idle(camp: &Camp, number: usize) -> (usize, usize) {
    let mut open = Vec::new();
    for _ in 0..number {
        open.push(TcpStream::connect(&camp.address).await.expect("it listens"));
    }
    let text = camp.request("/healthz");
    wait_until(SOON, "all are taken in", async || camp.number("perennial_agent_connections").await >= number)
        .await;
    let mut held = 0;
    for mut stream in open {
        let mut answer = [0; 12];
        let asked = stream.write_all(text.as_bytes()).await.is_ok();
        held +=
            usize::from(asked && stream.read_exact(&mut answer).await.is_ok() && &answer == b"HTTP/1.1 200");
    }
    (number, held)
}

/// Half a header, a byte at a time, and answers that nobody takes: how many are given up on.
pub(crate) async fn slow(camp: &Camp, number: usize) -> (usize, usize) {
    let ends = join_all((0..number).map(|each| async move {
        let mut stream = TcpStream::connect(&camp.address).await.expect("it listens");
        match each % 3 {
            0 => half(&mut stream).await,
            1 => drip(&mut stream).await,
            _ => deaf(&mut stream, &camp.request("/metrics").replace("close", "keep-alive")).await,
        }
    }));
    (number, ends.await.into_iter().filter(|ended| *ended).count())
}

async fn half(stream: &mut TcpStream) -> bool {
    stream.write_all(b"GET /v1/token/x HTTP/1.1\r\nHost: local").await.expect("it reads");
    let ended = timeout(SOON, stream.read_to_end(&mut Vec::new())).await;
    ended.is_ok()
}

async fn drip(stream: &mut TcpStream) -> bool {
    let endless = async {
        stream.write_all(b"GET / HTTP/1.1\r\nX: ").await.ok();
        while stream.write_all(b"x").await.is_ok() {
            moment().await;
        }
    };
    timeout(SOON, endless).await.is_ok()
}

/// Asks again and again, and reads nothing.
async fn deaf(stream: &mut TcpStream, request: &str) -> bool {
    let endless = async { while stream.write_all(request.as_bytes()).await.is_ok() {} };
    timeout(SOON, endless).await.is_ok()
}

/// Requests that are none, or of strangers: how many, and how many were refused.
pub(crate) async fn hostile(camp: &Camp, rounds: usize) -> (usize, usize) {
    let host = format!("Host: {}\r\n", camp.address);
    let key = format!("Authorization: Bearer {}\r\n", camp.key);
    let line =
        |target: &str, headers: &str| format!("GET {target} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
    let own = format!("{host}{key}");
    let mut requests: Vec<Vec<u8>> = [
        line("/v1/token/lasting-0", &format!("{own}X-Huge: {}\r\n", "x".repeat(1 << 20))),
        line("/v1/token/lasting-0", &format!("{own}{}", "X-Many: y\r\n".repeat(5000))),
        line(&format!("/v1/token/{}", "x".repeat(100_000)), &own),
        line("/v1/token/%", &own),
        line("/v1/token/%zz", &own),
        line("/v1/token/%00", &own),
        line("/v1/token/%c3%28", &own),
        line("/v1/token/..%2f..%2fetc", &own),
        line("/v1/token/lasting-0?min_ttl=%ff", &own),
        line("/v1/token/lasting-0?min_ttl=1s&min_ttl=2s", &own),
        line("/v1/token/lasting-0", &host),
        line("/v1/token/lasting-0", &format!("{host}Authorization: Bearer prn_{}\r\n", "A".repeat(43))),
        line("/v1/token/lasting-0", &format!("Host: evil.example\r\n{key}")),
        line("/v1/token/lasting-0", &format!("{own}X-Forwarded-For: 10.0.0.1\r\n")),
        line("http://127.0.0.1/v1/token/lasting-0", &own),
        format!(
            "POST /v1/tokens HTTP/1.1\r\n{own}Content-Length: 70000\r\nConnection: close\r\n\r\n{}",
            "[".repeat(70_000)
        ),
        format!("POST /v1/tokens HTTP/1.1\r\n{own}Content-Length: 9999999999\r\nConnection: close\r\n\r\n{{"),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
    ]
    .map(String::into_bytes)
    .to_vec();
    requests.extend([
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"GET / HTTP/1.1\r\nX:\x00\xff\r\n\r\n".to_vec(),
        vec![0xff; 4096],
    ]);
    let mut refused = 0;
    for _ in 0..rounds {
        let answers = join_all(requests.iter().map(|request| exchange(&camp.address, request))).await;
        // Nothing at all is a refusal too: the connection was closed.
        let is_refusal =
            |answer: &&String| matches!(status(answer), 0 | 400..=499) && !answer.contains("access_token");
        refused += answers.iter().filter(is_refusal).count();
    }
    (rounds * requests.len(), refused)
}

/// All want one token that nobody has asked for, while the table takes its time: how many, and how many have it.
pub(crate) async fn crowd(camp: &Camp, unseen: &str, number: usize) -> (usize, usize) {
    camp.table.process().signal("STOP");
    let request = camp.request(&format!("/v1/token/{unseen}"));
    let asking = join_all((0..number).map(|_| exchange(&camp.address, request.as_bytes())));
    let all_wait = async {
        wait_until(SOON, "all of them wait", async || camp.number("perennial_agent_waiting").await >= number)
            .await;
        camp.table.process().signal("CONT");
    };
    let (answers, ()) = tokio::join!(asking, all_wait);
    let good = answers
        .iter()
        .map(|answer| parsed(answer))
        .filter(|(status, told)| *status == 200 && told["client"] == unseen);
    (number, good.count())
}

#[expect(clippy::disallowed_methods, reason = "a siege lives in real time")]
async fn moment() {
    tokio::time::sleep(MOMENT).await;
}
