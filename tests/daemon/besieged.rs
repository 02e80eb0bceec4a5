//! The health endpoints among strangers: connections that say nothing, too much, or speak to somebody else.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use perennial::time::{Clock as _, Moment, SystemClock};

use crate::support::{Deployment, Process, fetch, health_url};

const SERVED: [(&str, &str); 2] =
    [("PERENNIAL__HEALTH__ENABLED", "true"), ("PERENNIAL__HEALTH__ADDRESS", "127.0.0.1:0")];
/// Beyond what a connection may take, and what this machine may take to notice.
const BOUND: Duration = Duration::from_secs(20);

/// A daemon, and where it listens.
async fn daemon(deployment: &Deployment) -> (Process, String) {
    let daemon = deployment.daemon_with(&SERVED).await;
    let url = health_url(&daemon).await;
    (daemon, url.trim_start_matches("http://").to_owned())
}

fn elapsed(begun: Moment) -> Duration {
    SystemClock.moment().since(begun)
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(BOUND)).expect("a timeout");
    stream
}

/// Sends these bytes, and returns what comes until the other side closes.
fn say(address: &str, request: &[u8]) -> String {
    let mut stream = connect(address);
    // Who has been refused may find the connection closed.
    drop(stream.write_all(request));
    rest(&mut stream)
}

/// What comes until the other side closes.
fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("it was not closed: {error}"),
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> Option<u16> {
    answer.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

async fn is_well(address: &str) {
    let reply = tokio::time::timeout(BOUND, fetch(&format!("http://{address}/healthz"))).await;
    assert_eq!(reply.expect("in time").expect("an answer").status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_small_questions_for_this_machine_are_answered() {
    let deployment = Deployment::embedded("");
    let (_daemon, address) = daemon(&deployment).await;
    let long = "x".repeat(20_000);
    let many: String = (0..100).map(|number| format!("x-{number}: 1\r\n")).collect();
    let cases = [
        (format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\n\r\n"), 200),
        (format!("HEAD /healthz HTTP/1.1\r\nHost: {address}\r\n\r\n"), 200),
        ("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(), 200),
        ("GET /status HTTP/1.1\r\nHost: attacker.example:9464\r\n\r\n".to_owned(), 421),
        ("GET http://attacker.example/status HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(), 421),
        (format!("POST /healthz HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n"), 405),
        (format!("DELETE /nowhere HTTP/1.1\r\nHost: {address}\r\n\r\n"), 405),
        (format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nContent-Length: 5\r\n\r\nhello"), 413),
        (
            format!(
                "GET /healthz HTTP/1.1\r\nHost: {address}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            413,
        ),
        (format!("GET /nowhere HTTP/1.1\r\nHost: {address}\r\n\r\n"), 404),
        (format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nx: {long}\r\n\r\n"), 431),
        (format!("GET /{long} HTTP/1.1\r\nHost: {address}\r\n\r\n"), 431),
        (format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\n{many}\r\n"), 431),
        ("\0\0\0\0\r\n\r\n".to_owned(), 400),
    ];
    for (request, expected) in cases {
        let answer = say(&address, request.as_bytes());
        let start: String = request.chars().take(60).collect();
        assert_eq!(status(&answer), Some(expected), "{start:?}: {answer:?}");
        assert!(expected == 200 || !answer.contains("member"), "{answer}");
    }
    // One question a connection, whatever it asks for.
    let twice =
        format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: keep-alive\r\n\r\n").repeat(2);
    assert_eq!(say(&address, twice.as_bytes()).matches("HTTP/1.1 200").count(), 1);
    is_well(&address).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_keep_no_health_check_out() {
    let deployment = Deployment::embedded("");
    let (mut daemon, address) = daemon(&deployment).await;
    let mut idle: Vec<_> = (0..200).map(|_| connect(&address)).collect();
    let begun = SystemClock.moment();
    is_well(&address).await;
    let variables = [SERVED[0], ("PERENNIAL__HEALTH__ADDRESS", address.as_str())];
    let check = deployment.run_with(&["healthcheck"], &variables);
    assert_eq!(check.status.code(), Some(0), "{check:?}");
    // The oldest had to go, long before its time; all the others go when it has come.
    assert_eq!(rest(&mut idle[0]), "");
    assert!(elapsed(begun) < Duration::from_secs(4), "{:?}: it waited for them", elapsed(begun));
    for stream in &mut idle {
        assert_eq!(rest(stream), "");
    }
    is_well(&address).await;
    daemon.signal("TERM");
    assert_eq!(daemon.exit_code(BOUND).await, 0, "and none of them keeps it from ending");
}

/// A byte now and then (Slowloris): it is the whole that must be there in time.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_trickles_in_is_cut() {
    let deployment = Deployment::embedded("");
    let (_daemon, address) = daemon(&deployment).await;
    let begun = SystemClock.moment();
    let mut stream = connect(&address);
    stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n").expect("it listens");
    loop {
        assert!(elapsed(begun) < BOUND, "it goes on listening");
        let mut byte = [0];
        let closed = match stream.read(&mut byte) {
            Ok(read) => read == 0,
            Err(error) => {
                error.kind() != io::ErrorKind::WouldBlock && error.kind() != io::ErrorKind::TimedOut
            }
        };
        if closed || stream.write_all(b"x: 1\r\n").is_err() {
            break;
        }
    }
    assert!(elapsed(begun) > Duration::from_secs(3), "not before its time: {:?}", elapsed(begun));
    is_well(&address).await;
}
