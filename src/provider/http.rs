//! Token requests over HTTP: the `oauth2` crate builds them and reads the answers, over a transport of ours.
//!
//! The transport sends once and only once: no redirects (they would carry secrets elsewhere), no retries, and for
//! providers that rotate no pooled connections, since a request on one that had died is silently sent again. It
//! keeps status, headers and body for our own classification, and tells the crate only that tokens came, since it would
//! reject many real answers, lose the error code on the way, and keep tokens in memory that nobody zeroizes.

use std::borrow::Cow;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use hyper::body::Bytes;
use oauth2::basic::BasicClient;
use oauth2::{
    AsyncHttpClient, AuthType, ClientId, ClientSecret, EndpointNotSet, EndpointSet, HttpRequest,
    HttpResponse, RefreshToken, RequestTokenError, Scope, TokenUrl,
};
use url::Url;
use zeroize::Zeroizing;

use super::clients::{Clients, unsent_or_unknown};
use super::tls::{self, Authorities};
use super::wire::{Answer, classify, retry_after};
use super::{TokenEndpoint, TokenRequest};
use crate::client::{ClientAuth, Grant, Provider, is_loopback};
use crate::reply::{Reply, Tokens};
use crate::time::{Clock, Sleep};
use crate::tls::TlsError;

type OAuthClient = BasicClient<EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet>;

/// How long an answer is looked for when its time is over. Part of the exchange's time, not on top of it.
const LAST_LOOK: Duration = Duration::from_millis(100);

/// What a response without a length is made room for, in bytes: more than most of them have.
const USUAL_RESPONSE: usize = 16 * 1024;

/// What all providers have in common.
#[derive(Clone, Copy, Debug)]
pub struct HttpSettings {
    /// TCP and TLS handshake, at most.
    pub connect_timeout: Duration,
}

/// Sends token requests over HTTP.
pub struct HttpEndpoint {
    clients: Clients,
    clock: Arc<dyn Clock>,
}

impl HttpEndpoint {
    /// Connects to nobody yet.
    pub fn new(settings: HttpSettings, clock: Arc<dyn Clock>) -> Self {
        Self { clients: Clients::new(settings.connect_timeout), clock }
    }

    /// Whether connections to this provider can be secured, before anything is to be sent there.
    ///
    /// # Errors
    /// Where neither the provider's own authorities nor the platform's can be had.
    pub fn check(provider: &Provider) -> Result<(), TlsError> {
        tls::configuration(&provider.outbound, &Authorities::default()).map(drop)
    }

    async fn exchange(&self, request: HttpRequest, token: &TokenRequest) -> Reply {
        let client = match self.clients.client(&token.url, &token.outbound, !token.rotates) {
            Ok(client) => client,
            Err(reply) => return reply,
        };
        let (parts, body) = request.into_parts();
        let mut headers = parts.headers;
        add_headers(&mut headers, token);
        // Zeroized when the last of those who send it has dropped it.
        let body = Bytes::from_owner(Zeroizing::new(body));
        let mut time = Time::of(token.timeout, self.clock.as_ref());
        let sending = client.request(parts.method, token.url.clone()).headers(headers).body(body).send();
        match time.bound(sending).await {
            Some(Ok(response)) => self.receive(response, token, &mut time).await,
            Some(Err(error)) => unsent_or_unknown(&error),
            None => Reply::Unknown { code: "timeout".into(), server_fault: false, after: None },
        }
    }

    /// Reads an answer that has come, and classifies it.
    pub(crate) async fn answer(&self, response: reqwest::Response, token: &TokenRequest) -> Reply {
        self.receive(response, token, &mut Time::of(token.timeout, self.clock.as_ref())).await
    }

    async fn receive(
        &self,
        mut response: reqwest::Response,
        token: &TokenRequest,
        time: &mut Time<'_>,
    ) -> Reply {
        let status = response.status();
        let header = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after(header, self.clock.now());
        let lost = |code: &str| Reply::Unknown { code: code.into(), server_fault: false, after: retry_after };
        // Room for all of it: what grows leaves its beginning behind.
        let announced = response.content_length().and_then(|length| usize::try_from(length).ok());
        let room = announced.unwrap_or(USUAL_RESPONSE).min(token.max_response);
        let mut body = Zeroizing::new(Vec::with_capacity(room));
        loop {
            let Some(read) = time.bound(response.chunk()).await else {
                // A status that says enough by itself.
                if !status.is_success() {
                    body.clear();
                    break;
                }
                return lost("timeout");
            };
            match read {
                Ok(Some(chunk)) if body.len() + chunk.len() > token.max_response => {
                    if status.is_success() {
                        return lost("response_too_large");
                    }
                    // An error page of any size is judged by its status.
                    body.clear();
                    break;
                }
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break,
                Err(_) if !status.is_success() => {
                    body.clear();
                    break;
                }
                Err(_) => return lost("body_cut_short"),
            }
        }
        let unavailable_is_unprocessed = token.unavailable_is_unprocessed;
        classify(&Answer { status, retry_after, body: &body, unavailable_is_unprocessed })
    }
}

/// The time of one exchange. When it is over there is a last look: after a suspension the answer may have been lying in
/// the socket for long, and be the only copy of a grant. The HTTP client's own timeout would look at its clock first,
/// and throw the answer away.
struct Time<'a> {
    clock: &'a dyn Clock,
    left: Sleep,
    is_last_look: bool,
}

impl<'a> Time<'a> {
    fn of(timeout: Duration, clock: &'a dyn Clock) -> Self {
        Self { clock, left: clock.sleep(timeout.saturating_sub(LAST_LOOK)), is_last_look: false }
    }

    /// What comes in time.
    async fn bound<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = &mut self.left => {}
            }
            if self.is_last_look {
                return None;
            }
            // Not only polled once more: the connection's own task has to be woken first.
            self.is_last_look = true;
            self.left = self.clock.sleep(LAST_LOOK);
        }
    }
}

impl fmt::Debug for HttpEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpEndpoint").finish_non_exhaustive()
    }
}

impl TokenEndpoint for HttpEndpoint {
    async fn send(&self, request: &TokenRequest) -> Reply {
        if !may_be_sent_to(&request.url, request.allow_http) {
            return Reply::NotSent("plain_http_refused".into());
        }
        let client = match oauth_client(request) {
            Ok(client) => client,
            Err(url) => return Reply::NotSent(url),
        };
        let http = Transport { endpoint: self, request, granted: Mutex::new(None) };
        let scopes = request.scopes.iter().cloned().map(Scope::new);
        let extra = extra_parameters(request);
        let answered = match (request.grant, &request.refresh_token) {
            (Grant::ClientCredentials, _) => {
                let exchange = client.exchange_client_credentials().add_scopes(scopes);
                let exchange =
                    extra.into_iter().fold(exchange, |it, (name, value)| it.add_extra_param(name, value));
                exchange.request_async(&http).await
            }
            (Grant::RefreshToken, Some(refresh_token)) => {
                let refresh_token = RefreshToken::new(refresh_token.expose().to_owned());
                let exchange = client.exchange_refresh_token(&refresh_token).add_scopes(scopes);
                let exchange =
                    extra.into_iter().fold(exchange, |it, (name, value)| it.add_extra_param(name, value));
                exchange.request_async(&http).await
            }
            (Grant::RefreshToken, None) => return Reply::NotSent("no_refresh_token".into()),
        };
        let tokens = http.granted.into_inner().unwrap_or_else(PoisonError::into_inner);
        match (answered, tokens) {
            // Whatever the crate thinks of it: these are tokens, and they may exist nowhere else.
            (_, Some(tokens)) => Reply::Granted(Box::new(tokens)),
            (Err(RequestTokenError::Request(outcome)), None) => outcome.0,
            (_, None) => Reply::NotSent("request_not_built".into()),
        }
    }
}

/// The crate's HTTP-client trait: an answer that it accepts, or everything else as an error of ours. The tokens themselves
/// are kept here as they were read.
struct Transport<'a> {
    endpoint: &'a HttpEndpoint,
    request: &'a TokenRequest,
    granted: Mutex<Option<Tokens>>,
}

impl<'c> AsyncHttpClient<'c> for Transport<'_> {
    type Error = Outcome;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, Outcome>> + Send + 'c>>;

    fn call(&'c self, wire: HttpRequest) -> Self::Future {
        Box::pin(async move {
            let reply = self.endpoint.exchange(wire, self.request).await;
            let Reply::Granted(tokens) = reply else { return Err(Outcome(reply)) };
            *self.granted.lock().unwrap_or_else(PoisonError::into_inner) = Some(*tokens);
            Ok(accepted())
        })
    }
}

/// A reply that is not tokens, on its way through the crate.
#[derive(Debug)]
struct Outcome(Reply);

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.code())
    }
}

impl std::error::Error for Outcome {}

/// Plain http goes to loopback only, unless the provider profile allows it by name.
fn may_be_sent_to(url: &Url, allow_http: bool) -> bool {
    match url.scheme() {
        "https" => true,
        "http" => allow_http || is_loopback(url),
        _ => false,
    }
}

fn oauth_client(request: &TokenRequest) -> Result<OAuthClient, String> {
    let url = TokenUrl::new(request.url.to_string()).map_err(|_| "token_url_unusable".to_owned())?;
    let auth = match request.auth {
        ClientAuth::ClientSecretBasic => AuthType::BasicAuth,
        ClientAuth::ClientSecretPost | ClientAuth::None => AuthType::RequestBody,
    };
    let client =
        BasicClient::new(ClientId::new(request.client_id.clone())).set_auth_type(auth).set_token_uri(url);
    Ok(match (&request.client_secret, request.auth) {
        (Some(secret), ClientAuth::ClientSecretBasic | ClientAuth::ClientSecretPost) => {
            client.set_client_secret(ClientSecret::new(secret.expose().to_owned()))
        }
        _ => client,
    })
}

fn extra_parameters(request: &TokenRequest) -> Vec<(Cow<'_, str>, Cow<'_, str>)> {
    let own = request.params.iter().map(|(name, value)| (Cow::from(name), Cow::from(value.expose())));
    let audience = request.audience.iter().map(|value| (Cow::from("audience"), Cow::from(value)));
    let resource = request.resource.iter().map(|value| (Cow::from("resource"), Cow::from(value)));
    own.chain(audience).chain(resource).collect()
}

fn add_headers(headers: &mut HeaderMap, token: &TokenRequest) {
    for (name, value) in &token.headers {
        // The configuration has checked both.
        let name = HeaderName::try_from(name.as_str());
        if let (Ok(name), Ok(mut value)) = (name, HeaderValue::try_from(value.expose())) {
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
}

/// The least that RFC 6749 section 5.1 has in a successful answer. What stands for the token is none.
fn accepted() -> HttpResponse {
    let mut response = HttpResponse::new(br#"{"access_token":"-","token_type":"bearer"}"#.to_vec());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc;

    use super::*;
    use crate::client::outbound::Outbound;
    use crate::secret::Secret;
    use crate::time::SystemClock;

    /// Answers every request with these bytes, and hands out what it was asked.
    fn server(answer: &'static str) -> (Url, mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/token", listener.local_addr().expect("bound"));
        let (sender, requests) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                sender.send(asked(&mut stream)).expect("the test waits");
                stream.write_all(answer.as_bytes()).expect("writable");
            }
        });
        (Url::parse(&url).expect("a url"), requests)
    }

    /// Sends this, and then nothing any more.
    fn silent_after(answer: &'static str) -> Url {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/token", listener.local_addr().expect("bound"));
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            asked(&mut stream);
            stream.write_all(answer.as_bytes()).expect("writable");
            // Stays open, even if the other side has said all that it had to say.
            std::mem::forget(stream);
        });
        Url::parse(&url).expect("a url")
    }

    /// A whole request.
    fn asked(stream: &mut TcpStream) -> String {
        let mut request = Vec::new();
        let mut buffer = [0; 4096];
        while !is_whole(&request) {
            let read = stream.read(&mut buffer).expect("readable");
            request.extend_from_slice(&buffer[..read]);
        }
        String::from_utf8_lossy(&request).into_owned()
    }

    fn is_whole(request: &[u8]) -> bool {
        let text = String::from_utf8_lossy(request).to_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        length.is_some_and(|length| body.len() >= length.parse().unwrap_or(0))
    }

    fn request(url: Url, auth: ClientAuth) -> TokenRequest {
        TokenRequest {
            provider: "acme".into(),
            url,
            grant: Grant::RefreshToken,
            auth,
            client_id: "app:1".into(),
            client_secret: Some(Secret::new("a/b+c")),
            refresh_token: Some(Secret::new("r1")),
            scopes: vec!["read".into(), "write".into()],
            audience: Some("api".into()),
            resource: vec!["https://a.test".into(), "https://b.test".into()],
            params: BTreeMap::from([("tenant".into(), Secret::new("t 1"))]),
            headers: BTreeMap::from([("x-api-key".into(), Secret::new("k"))]),
            timeout: Duration::from_secs(10),
            max_response: 262_144,
            unavailable_is_unprocessed: false,
            allow_http: false,
            outbound: Arc::new(Outbound { loopback: true, ..Outbound::default() }),
            rotates: true,
        }
    }

    async fn send(request: &TokenRequest) -> Reply {
        let settings = HttpSettings { connect_timeout: Duration::from_secs(5) };
        HttpEndpoint::new(settings, Arc::new(SystemClock)).send(request).await
    }

    #[tokio::test]
    async fn a_request_says_everything_that_was_configured_and_who_sends_it() {
        let (url, requests) = server("HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{\"access_token\":\"a\"}");
        assert!(matches!(send(&request(url, ClientAuth::ClientSecretBasic)).await, Reply::Granted(_)));
        let asked = requests.try_recv().expect("one request");
        let (head, body) = asked.split_once("\r\n\r\n").expect("head and body");
        // RFC 6749 section 2.3.1: form-encoded first, so app%3A1:a%2Fb%2Bc.
        assert!(head.contains("authorization: Basic YXBwJTNBMTphJTJGYiUyQmM="), "{head}");
        assert!(head.contains("user-agent: perennial/") && head.contains("x-api-key: k"), "{head}");
        let mut pairs: Vec<_> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
        pairs.sort();
        let expected = [
            ("audience", "api"),
            ("grant_type", "refresh_token"),
            ("refresh_token", "r1"),
            ("resource", "https://a.test"),
            ("resource", "https://b.test"),
            ("scope", "read write"),
            ("tenant", "t 1"),
        ];
        assert_eq!(pairs, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[tokio::test]
    async fn a_refused_client_is_not_tried_again_in_another_style() {
        let refusal = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 26\r\n\r\n{\"error\":\"invalid_client\"}";
        let (url, requests) = server(refusal);
        let reply = send(&request(url, ClientAuth::ClientSecretPost)).await;
        assert_eq!(reply, Reply::Rejected("invalid_client".into()));
        let asked = requests.try_recv().expect("one request");
        assert!(asked.contains("client_secret=a%2Fb%2Bc") && !asked.contains("authorization:"), "{asked}");
        assert!(requests.try_recv().is_err(), "a rotating refresh token would have been sent twice");
    }

    /// As after SIGCONT: the time of the exchange is long over, and its answer lies in the socket.
    #[tokio::test]
    async fn an_answer_that_came_while_the_process_was_suspended_is_heard() {
        for answer in [
            "HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{\"access_token\":\"a\"}",
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"access_token\":\"a\"}",
        ] {
            let (url, requests) = server(answer);
            let timeout = Duration::from_millis(500);
            let request = TokenRequest { timeout, ..request(url, ClientAuth::None) };
            let suspend = async {
                while requests.try_recv().is_err() {
                    tokio::task::yield_now().await;
                }
                #[expect(clippy::disallowed_methods, reason = "the whole process stands still")]
                std::thread::sleep(timeout * 2);
            };
            let (reply, ()) = tokio::join!(send(&request), suspend);
            assert!(matches!(reply, Reply::Granted(_)), "{reply:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_that_does_not_come_in_time_is_not_waited_for() {
        let never = ["HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{\"access_", ""];
        for answer in never {
            let url = silent_after(answer);
            let request =
                TokenRequest { timeout: Duration::from_millis(300), ..request(url, ClientAuth::None) };
            let lost = Reply::Unknown { code: "timeout".into(), server_fault: false, after: None };
            assert_eq!(send(&request).await, lost);
        }
    }

    #[tokio::test]
    async fn a_public_client_sends_its_id_alone() {
        let (url, requests) = server("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(send(&request(url, ClientAuth::None)).await, Reply::Blocked("http_400".into()));
        let asked = requests.try_recv().expect("one request");
        assert!(asked.contains("client_id=app%3A1") && !asked.contains("client_secret"), "{asked}");
    }

    #[test]
    fn plain_http_goes_to_loopback_only_unless_allowed_by_name() {
        let may = |url, allow| may_be_sent_to(&Url::parse(url).expect("a url"), allow);
        for url in ["http://127.0.0.1:1/t", "http://[::1]/t", "http://localhost/t", "https://acme.test/t"] {
            assert!(may(url, false), "{url}");
        }
        for url in
            ["http://acme.test/t", "http://10.0.0.1/t", "http://localhost.acme.test/t", "ftp://127.0.0.1/t"]
        {
            assert!(!may(url, false), "{url}");
        }
        assert!(may("http://acme.test/t", true));
        assert!(!may("ftp://acme.test/t", true));
    }
}
