//! An agent at its finest log level: tokens are in the answers that are to carry them, and readers' keys nowhere.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::Value;

use super::world::{CACHE_ANSWERS, FILTERS, HEADER, Mood, QUERY, SOON, World};
use crate::support::{Process, agent_url, wait_until};

/// Nobody's.
const WRONG: &str = "prn_wrong-canary-14";

/// An answer, and whether it is to carry tokens.
struct Told {
    what: String,
    answer: String,
    carries: bool,
}

struct Asked {
    address: String,
    key: String,
    answers: Vec<Told>,
}

impl Asked {
    /// Asks with the right key.
    #[track_caller]
    fn ask(&mut self, status: u16, request: &str, body: &str) {
        let bearer = format!("Bearer {}", self.key);
        self.ask_as(status, request, &bearer, body);
    }

    #[track_caller]
    fn ask_as(&mut self, status: u16, request: &str, authorization: &str, body: &str) {
        let text = format!(
            "{request} HTTP/1.1\r\nhost: {}\r\nauthorization: {authorization}\r\nx-api-key: {HEADER}\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            self.address,
            body.len()
        );
        let answer = raw(&self.address, &text);
        let expected = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&expected), "{request} was to be answered with {status}");
        let is_read = request.starts_with("GET /v1/token/") || request.starts_with("POST /v1/tokens");
        let carries = status == 200 && is_read;
        self.answers.push(Told { what: request.to_owned(), answer, carries });
    }
}

fn raw(address: &str, bytes: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    stream.write_all(bytes.as_bytes()).expect("it reads");
    let mut answer = Vec::new();
    // It may close with a reset, where it has not read all of the question.
    drop(stream.read_to_end(&mut answer));
    String::from_utf8_lossy(&answer).into_owned()
}

/// Makes a key, and writes its entry: the only command that is to show one.
fn new_key(world: &World) -> String {
    let made = world.deployment.ok(&["agent", "key", "billing", "--json"]);
    let made: Value = serde_json::from_str(&made).expect("JSON");
    let entry =
        format!("[readers.billing]\nkey_sha256 = [{}]\nclients = {}\n", made["key_sha256"], made["clients"]);
    world.deployment.secret_file("keys.toml", &entry);
    made["key"].as_str().expect("a key").to_owned()
}

async fn start(world: &World, filter: &str) -> (Process, String) {
    let more = [
        ("PERENNIAL__LOG__FILTER", filter),
        ("PERENNIAL__AGENT__ADDRESS", "127.0.0.1:0"),
        ("PERENNIAL__AGENT__KEYS_FILE", "keys.toml"),
        ("PERENNIAL__AGENT__REJECTION_INTERVAL", "10s"),
    ];
    let agent = world.deployment.start(&["agent"], &world.with(&more)).await;
    let url = agent_url(&agent).await;
    (agent, url.trim_start_matches("http://").to_owned())
}

/// All that a reader may do, and much that it may not.
fn ask_everything(asked: &mut Asked) {
    asked.ask(200, "GET /v1/token/good", "");
    asked.ask(200, "GET /v1/token/at-ssm?min_ttl=1s", "");
    asked.ask(200, "POST /v1/tokens", "{\"clients\": [\"good\", \"posted\", \"absent\", \"?\"]}");
    asked.ask(200, "GET /metrics", "");
    asked.ask(200, "GET /healthz", "");
    asked.ask(404, "GET /v1/token/absent", "");
    asked.ask(404, &format!("GET /{QUERY}"), "");
    asked.ask(405, "POST /v1/token/good", "");
    asked.ask_as(401, "GET /v1/token/good", &format!("Bearer {WRONG}"), "");
    asked.ask_as(401, "POST /v1/tokens", &format!("Bearer {WRONG}"), "{\"clients\": [\"good\"]}");
    asked.ask_as(401, "POST /v1/token/good/rejected", &format!("Bearer {WRONG}"), "{\"generation\": 1}");
    malformed(asked);
}

/// Keys, and other secrets, where they do not belong.
fn malformed(asked: &mut Asked) {
    let key = asked.key.clone();
    asked.ask(400, &format!("GET /v1/token/good?{QUERY}={QUERY}"), "");
    asked.ask(400, &format!("GET /v1/token/good?min_ttl={key}"), "");
    asked.ask(400, &format!("GET /v1/token/{key}"), "");
    asked.ask(400, "GET /v1/token/%zz", "");
    asked.ask(400, "POST /v1/tokens", &format!("{{\"clients\": [\"good\"], \"{key}\": 1}}"));
    asked.ask(400, "POST /v1/tokens", &format!("{{\"clients\": \"{QUERY}\"}}"));
    asked.ask(400, "POST /v1/token/good/rejected", &format!("{{\"generation\": \"{key}\"}}"));
    asked.ask(400, "POST /v1/token/good/rejected", &key);
    for authorization in [key.clone(), format!("Basic {key}"), "Bearer".to_owned()] {
        asked.ask_as(401, "GET /v1/token/good", &authorization, "");
        asked.ask_as(401, &format!("GET /v1/token/{key}"), &authorization, "");
        asked.ask_as(401, &format!("GET /v1/token/good?key={key}"), &authorization, "");
    }
    let forwarded = format!("Bearer {key}\r\nx-forwarded-for: {key}");
    asked.ask_as(403, &format!("GET /v1/token/{key}"), &forwarded, "");
    let url = format!("GET http://{}/v1/token/{key}", asked.address);
    asked.ask(403, &url, "");
}

/// The token that was served is refused; until it is old enough the agent says so.
async fn reject(asked: &mut Asked) {
    let served = asked.answers[0].answer.clone();
    let (_, body) = served.split_once("\r\n\r\n").expect("a body");
    let served: Value = serde_json::from_str(body).expect("JSON");
    let (request, body) =
        ("POST /v1/token/good/rejected", format!("{{\"generation\": {}}}", served["generation"]));
    let (address, key) = (asked.address.clone(), asked.key.clone());
    wait_until(SOON, "the token is old enough to be replaced", async || {
        let text = format!(
            "{request} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n{body}",
            body.len()
        );
        let answer = raw(&address, &text);
        let accepted = answer.starts_with("HTTP/1.1 202 ");
        assert!(accepted || answer.starts_with("HTTP/1.1 429 "), "a rejection is taken, or is too soon");
        asked.answers.push(Told { what: request.to_owned(), answer, carries: false });
        accepted
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_gives_tokens_to_whoever_may_have_them_and_shows_no_key() {
    let mut world = World::new().await;
    world.run(&["run", "--once"]);
    for filter in FILTERS {
        let key = new_key(&world);
        [key.as_str(), WRONG].into_iter().for_each(|key| world.canaries.add(key));
        let (mut agent, address) = start(&world, filter).await;
        let mut asked = Asked { address, key, answers: Vec::new() };
        ask_everything(&mut asked);
        reject(&mut asked).await;
        for mood in [Mood::Denies, Mood::Expires] {
            world.be(mood);
            asked.ask(503, "GET /v1/token/posted?min_ttl=1d&max_wait=1s", "");
            asked.ask(200, "GET /metrics", "");
        }
        world.be(Mood::Serves);
        agent.signal("TERM");
        assert_eq!(agent.exit_code(SOON).await, 0, "{}", agent.errors());

        // No refresh token, no client secret, and no key, in any of them.
        world.plant_stored(false).await;
        for told in asked.answers.iter().filter(|told| told.carries) {
            assert!(told.answer.contains("at-"), "{}: no token is in it", told.what);
            world.canaries.assert_absent_but_access_tokens(&told.what, &told.answer);
        }
        for told in asked.answers.iter().filter(|told| !told.carries) {
            world.canaries.assert_absent(&told.what, &told.answer);
        }
        let log = agent.errors();
        assert!(log.contains("\"level\":\"TRACE\"") || log.contains("\"level\":\"DEBUG\""), "{log}");
        assert!(log.contains("a request was refused") && log.contains(CACHE_ANSWERS), "{log}");
        world.canaries.assert_absent("the agent's log", &log);
    }
    world.run(&["run", "--once"]);
}
