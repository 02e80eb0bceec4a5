//! Token endpoints' answers: the first byte is the status, the rest of the line `Retry-After`, and then comes the body.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use perennial::client::credentials::Credentials;
use perennial::client::{Client, ClientId, Grant, Provider};
use perennial::plan::in_doubt::Risk;
use perennial::plan::lease::{Commit, commit};
use perennial::plan::outcome::{Attempt, Judge, Tally, Verdict, after_send};
use perennial::plan::schedule::{lifetime, refresh_at};
use perennial::plan::{Backoff, Lifetimes, Timing};
use perennial::provider::TokenRequest;
use perennial::record::{Gen, Lease, Token};
use perennial::reply::{Lifetime, Reply, Tokens, ends_grants, is_verdict};
use perennial::secret::Secret;
use perennial::time::{Moment, Timestamp};
use serde_json::Value;
use url::Url;

use super::bytes::Bytes;
use super::{Still, run};

/// The largest body that is read here, in bytes.
const LARGEST: usize = 4096;
const SUCCESS: [u16; 6] = [200, 201, 202, 203, 206, 299];
const FAILURE: [u16; 26] = [
    400, 401, 403, 404, 408, 413, 418, 425, 429, 451, 499, 500, 501, 502, 503, 504, 529, 599, 300, 301, 302,
    303, 307, 308, 100, 999,
];
const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

/// Any answer whose status says that all is well.
pub(crate) fn token_response(data: &[u8]) {
    Answer::of(data, &SUCCESS).judge();
}

/// Any other answer.
pub(crate) fn error_body(data: &[u8]) {
    let answer = Answer::of(data, &FAILURE);
    let reply = answer.judge();
    assert!(!matches!(reply, Reply::Granted(_)), "tokens out of a {}", answer.status);
}

struct Answer<'a> {
    status: u16,
    retry_after: &'a [u8],
    body: &'a [u8],
}

impl<'a> Answer<'a> {
    fn of(data: &'a [u8], statuses: &[u16]) -> Self {
        let mut bytes = Bytes(data);
        let status = bytes.pick(statuses);
        let retry_after = bytes.until(b'\n');
        Self { status, retry_after, body: bytes.0 }
    }

    fn judge(&self) -> Reply {
        let provider = provider();
        let reply = self.read(&provider);
        self.is_closed(&reply, &provider);
        match &reply {
            Reply::Granted(tokens) => self.is_as_it_was_sent(tokens),
            other => nothing_of_the_body_is_in(other),
        }
        plan(&reply, &provider);
        reply
    }

    fn read(&self, provider: &Provider) -> Reply {
        let mut answer = http::Response::builder().status(self.status);
        if let Ok(value) = http::HeaderValue::from_bytes(self.retry_after)
            && !value.is_empty()
        {
            answer = answer.header(http::header::RETRY_AFTER, value);
        }
        let answer = answer.body(self.body.to_vec()).expect("a status and a header");
        let request = TokenRequest::new(&client(), provider, Some("s".into()), Some("r".into()));
        run(perennial::entry::token_response(answer, &request, Arc::new(Still)))
    }

    /// Each kind of reply has its own statuses, and only an OAuth error code is a verdict.
    fn is_closed(&self, reply: &Reply, provider: &Provider) {
        let status = self.status;
        let (success, server) = ((200..300).contains(&status), (500..600).contains(&status));
        let too_large = self.body.len() > LARGEST;
        match reply {
            Reply::Granted(_) => assert!(success && !too_large, "granted by {status}"),
            Reply::Rejected(code) => {
                assert!(is_verdict(code) && !server && !(300..400).contains(&status), "{code} of {status}");
                assert!(!too_large && self.says(code), "{code} stands nowhere in the body");
            }
            Reply::Throttled { .. } => assert!(!(300..400).contains(&status)),
            Reply::Blocked(_) => assert!(!success && !server, "{status} is blocked"),
            Reply::Unknown { server_fault, .. } => assert!(!too_large || success || *server_fault),
            Reply::NotSent(code) => panic!("an answer came, and it is said that nothing was sent: {code}"),
        }
        let fit = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte);
        assert!(
            (1..=64).contains(&reply.code().len()) && reply.code().bytes().all(fit),
            "{:?}",
            reply.code()
        );
        assert!(reply.retry_after().is_none_or(|after| after <= Duration::from_secs(3600)));
        assert!(provider.max_response == LARGEST);
    }

    fn says(&self, code: &str) -> bool {
        let body: Value = serde_json::from_slice(self.body).expect("a verdict is read from JSON");
        ["error", "status"].iter().any(|name| body[name] == code)
    }

    /// Tokens are what the body says, to the letter; and they are not shown.
    fn is_as_it_was_sent(&self, tokens: &Tokens) {
        let body: Value = serde_json::from_slice(self.body).expect("tokens are read from JSON");
        assert_eq!(body["access_token"], tokens.access_token.expose());
        assert!(!tokens.access_token.is_empty());
        match &tokens.refresh_token {
            Some(refresh_token) => assert_eq!(body["refresh_token"], refresh_token.expose()),
            None => {
                assert!(body["refresh_token"].as_str().unwrap_or_default().is_empty(), "a token was dropped")
            }
        }
        if let Lifetime::Stated(lifetime) = tokens.lifetime {
            assert!(
                !lifetime.is_zero() || body["expires_in"].to_string().contains(['e', '.']),
                "{lifetime:?}"
            );
        }
        let Tokens { token_type, scope, lifetime, .. } = tokens;
        let refresh_token = tokens.refresh_token.as_ref().map(|_| Secret::new("another"));
        let redacted = Tokens {
            access_token: Secret::new("another"),
            refresh_token,
            token_type: token_type.clone(),
            scope: scope.clone(),
            lifetime: *lifetime,
        };
        assert_eq!(format!("{tokens:?}"), format!("{redacted:?}"), "a token is shown");
    }
}

/// A code and a number or two: no room for anything else.
fn nothing_of_the_body_is_in(reply: &Reply) {
    let mut shown = format!("{reply:?}");
    shown = shown.replacen(reply.code(), "", 1);
    assert!(shown.len() < 100, "{shown}");
}

/// The planner takes whatever the reply says: it commits tokens and nothing else, at believable times.
fn plan(reply: &Reply, provider: &Provider) {
    let (timing, backoff) = (timing(), Backoff::default());
    let attempt = attempt(provider);
    let tally = Tally::default().with(reply);
    let judge = Judge { timing: &timing, backoff: &backoff, moment: Moment::default(), now: NOW, unit: 0.5 };
    match (after_send(reply.clone(), &attempt, &tally, &judge), reply) {
        (Verdict::Commit(tokens), Reply::Granted(_)) => commits_soundly(*tokens, provider),
        (Verdict::RecheckGrant(code), Reply::Rejected(_)) => assert!(ends_grants(&code)),
        (Verdict::Commit(_) | Verdict::RecheckGrant(_), _) => panic!("{reply:?} decides about the grant"),
        _ => {}
    }
}

fn commits_soundly(tokens: Tokens, provider: &Provider) {
    let bounds = Lifetimes::default();
    let lives = lifetime(tokens.lifetime, provider.default_lifetime, &bounds);
    let (expires_at, refresh_at) = (NOW.plus(lives), refresh_at(NOW, lives, &bounds, false, 0.5));
    assert!(expires_at <= NOW.plus(bounds.max) && refresh_at > NOW, "{expires_at} {refresh_at}");
    assert!(refresh_at <= NOW.plus(bounds.max));
    let secret = tokens.access_token.clone();
    let beside = format!("{:?}{:?}", tokens.token_type, tokens.scope);
    let commit_of = Commit {
        generation: Gen(5),
        tokens,
        expires_at,
        refresh_at,
        now: NOW,
        binding: client().binding(provider),
        grant: Grant::RefreshToken,
        item_exists: true,
    };
    let change = format!("{:?}", commit(&client().id, &commit_of));
    let telling = secret.len() > 24 && !beside.contains(secret.expose());
    assert!(!telling || !change.contains(secret.expose()), "a token is shown");
}

pub(super) fn timing() -> Timing {
    let secs = Duration::from_secs;
    Timing::try_new(secs(90), secs(5), secs(20), secs(15), secs(60)).expect("the defaults")
}

pub(super) fn provider() -> Provider {
    let url = Url::parse("https://acme.test/token").expect("a URL");
    Provider { max_response: LARGEST, ..Provider::new("acme", url) }
}

pub(super) fn client() -> Client {
    Client {
        id: ClientId::new("c1").expect("a valid id"),
        provider: "acme".to_owned(),
        grant: Grant::RefreshToken,
        client_id: "app".to_owned(),
        credentials: Credentials::stored("s"),
        scopes: Vec::new(),
        audience: None,
        resource: Vec::new(),
        params: BTreeMap::new(),
        token_url: None,
        paused: false,
        refresh_now: None,
        joined: NOW,
    }
}

fn attempt(provider: &Provider) -> Attempt {
    let token = Token { refresh_token: Some("r".into()), ..Token::stub(Gen(4)) };
    Attempt {
        client: client(),
        secret: Some("s".into()),
        token: Some(token),
        lease: Lease::idle(Gen(5)),
        risk: Risk::of(provider, Grant::RefreshToken),
        begun: Moment::default(),
    }
}
