//! `perennial healthcheck`, which containers ask: against a real daemon, a suspended one, and none at all.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Output;

use super::super::SOON;
use crate::support::{Deployment, free_port, health_url};

/// Asks with an environment in which neither AWS nor a proxy would answer: neither is to be asked.
fn ask(deployment: &Deployment, address: &str, arguments: &[&str]) -> Output {
    let nobody = "http://127.0.0.1:9";
    let variables = [
        ("PERENNIAL__HEALTH__ENABLED", "true"),
        ("PERENNIAL__HEALTH__ADDRESS", address),
        ("HTTP_PROXY", nobody),
        ("http_proxy", nobody),
        ("SSL_CERT_FILE", "/nowhere"),
        ("SSL_CERT_DIR", "/nowhere"),
    ];
    deployment.run_with(&[&["healthcheck"], arguments].concat(), &variables)
}

fn told(output: &Output) -> (Option<i32>, String) {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    (output.status.code(), String::from_utf8(text).expect("output is UTF-8"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_listens_everywhere_is_found_on_loopback() {
    let deployment = Deployment::embedded("");
    let address = format!("0.0.0.0:{}", free_port());
    let mut daemon = deployment
        .daemon_with(&[
            ("PERENNIAL__HEALTH__ENABLED", "true"),
            ("PERENNIAL__HEALTH__ADDRESS", address.as_str()),
        ])
        .await;
    health_url(&daemon).await;
    assert_eq!(told(&ask(&deployment, &address, &[])), (Some(0), "ok\n".to_owned()));

    // Its connections are accepted by the kernel, and never answered.
    daemon.signal("STOP");
    let (code, text) = told(&ask(&deployment, &address, &["--timeout", "500ms"]));
    assert!(code == Some(1) && text.contains("no answer from http://127.0.0.1:"), "{code:?} {text}");
    daemon.signal("CONT");

    daemon.signal("TERM");
    assert_eq!(daemon.exit_code(SOON).await, 0);
    assert_eq!(ask(&deployment, &address, &[]).status.code(), Some(1), "it has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_listens_the_answer_is_no_and_why() {
    // A table that cannot be reached: it is not looked at.
    let deployment = Deployment::embedded("");
    deployment.configure("[store]\ntable = \"nowhere\"\nendpoint = \"http://127.0.0.1:9\"\n");
    let address = format!("127.0.0.1:{}", free_port());
    let (code, text) = told(&ask(&deployment, &address, &[]));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(&format!("http://{address}/healthz")) && text.contains("does not run"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_complaint_is_passed_on() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound").to_string();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("it is asked");
        let read = stream.read(&mut [0; 4096]).expect("a request");
        let body = "the scheduler loop has not turned for over a minute\n";
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        )
        .expect("it listens");
        read
    });
    let output = ask(&Deployment::embedded(""), &address, &[]);
    let complaint = "the scheduler loop has not turned for over a minute\n".to_owned();
    assert_eq!(told(&output), (Some(1), complaint));
    assert!(answering.join().expect("it answered") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_asked_is_said() {
    let deployment = Deployment::embedded("");
    let (code, text) = told(&ask(&deployment, "127.0.0.1:0", &[]));
    assert!(code == Some(1) && text.contains("port 0"), "{code:?} {text}");
    let (code, text) = told(&deployment.run(&["healthcheck"]));
    assert!(code == Some(1) && text.contains("health.enabled = false"), "{code:?} {text}");
}
