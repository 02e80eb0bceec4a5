//! What the health endpoints answer to those who put secrets into their questions.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use super::world::{HEADER, QUERY};

/// Asks all that is served, and much that is not; returns every answer.
pub(crate) fn ask_everything(url: &str) -> String {
    let address = url.strip_prefix("http://").expect("a plain URL").to_owned();
    let host = format!("host: {address}\r\n");
    let served = ["/healthz", "/readyz", "/status", "/metrics"];
    let plain = served
        .map(|path| format!("GET {path}?api_key={QUERY} HTTP/1.1\r\n{host}x-api-key: {HEADER}\r\n\r\n"));
    let long = QUERY.repeat(2000);
    let odd = [
        format!("GET /{QUERY} HTTP/1.1\r\n{host}\r\n"),
        format!("GET http://{QUERY}.test/healthz HTTP/1.1\r\n{host}\r\n"),
        format!("GET http://u:{QUERY}@{address}/healthz HTTP/1.1\r\n\r\n"),
        format!("GET /healthz HTTP/1.1\r\nhost: {QUERY}.test\r\n\r\n"),
        format!("POST /status HTTP/1.1\r\n{host}content-length: {}\r\n\r\n{QUERY}", QUERY.len()),
        format!("GET /status HTTP/1.1\r\n{host}content-length: {}\r\n\r\n{QUERY}", QUERY.len()),
        format!("{QUERY} /status HTTP/1.1\r\n{host}\r\n"),
        format!("GET /status HTTP/1.1\r\n{host}authorization Bearer {QUERY}\r\n\r\n"),
        format!("GET /status HTTP/9.{QUERY}\r\n{host}\r\n"),
        format!("GET /status HTTP/1.1\r\n{host}{}\r\n", format!("x-key: {QUERY}\r\n").repeat(100)),
        format!("GET /{long} HTTP/1.1\r\n{host}\r\n"),
        format!("{QUERY}\r\n\r\n"),
    ];
    let answers = plain.iter().chain(&odd).map(|request| answer(&address, request));
    let answers: Vec<_> = answers.collect();
    assert!(answers.iter().filter(|answer| answer.starts_with("HTTP/1.1 ")).count() > 8, "{answers:#?}");
    answers.concat()
}

/// All that comes, to the end of the connection.
fn answer(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
    stream.write_all(request.as_bytes()).expect("writable");
    let mut answer = Vec::new();
    // It may close with a reset, where it has not read all of the question.
    drop(stream.read_to_end(&mut answer));
    String::from_utf8_lossy(&answer).into_owned()
}
