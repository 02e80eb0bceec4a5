//! A plain OAuth2 client of the tests' own, independent of the code under test.

use std::sync::LazyLock;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap};
use reqwest::redirect;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::form_urlencoded;

/// How a request authenticates: client id and secret.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Auth<'a> {
    Basic(&'a str, &'a str),
    Post(&'a str, &'a str),
    Public(&'a str),
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Reply {
    /// The body as JSON; `Null` where it is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    /// A string field of the JSON body.
    ///
    /// # Panics
    /// When there is no such field.
    pub(crate) fn text(&self, field: &str) -> String {
        let json = self.json();
        json[field].as_str().unwrap_or_else(|| panic!("no {field} in {} {json}", self.status)).to_owned()
    }

    /// A header's value; empty where it is absent.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as a value of its type.
    ///
    /// # Panics
    /// When the answer is not a 200 with such a body.
    pub(crate) fn parsed<T: DeserializeOwned>(&self) -> T {
        assert_eq!(self.status, 200, "{}", self.body);
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.body))
    }
}

/// A client that takes no proxy from the environment, keeps no connection, follows no redirect and waits 30 seconds.
///
/// It keeps no connection because each test has its own runtime, and because a stale one fails in its own way.
pub(crate) fn http_client() -> reqwest::Client {
    // Reading the system's certificates takes longer than most tests: once is enough.
    static CLIENT: LazyLock<reqwest::Client> = LazyLock::new(|| {
        reqwest::Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(0)
            .redirect(redirect::Policy::none())
            .timeout(Duration::from_secs(30))
            .build()
            .expect("the TLS backend can be set up")
    });
    CLIENT.clone()
}

/// Sends a token request. Fails as reqwest does, also where the body is cut.
pub(crate) async fn token_request(
    token_url: &str,
    auth: Auth<'_>,
    params: &[(&str, &str)],
) -> reqwest::Result<Reply> {
    let mut form = params.to_vec();
    match auth {
        Auth::Basic(..) => {}
        Auth::Post(id, secret) => form.extend([("client_id", id), ("client_secret", secret)]),
        Auth::Public(id) => form.push(("client_id", id)),
    }
    let mut request = http_client().post(token_url).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    if let Auth::Basic(id, secret) = auth {
        request = request.basic_auth(form_encode(id), Some(form_encode(secret)));
    }
    reply(request.body(encode(&form))).await
}

/// Posts a form.
pub(crate) async fn post_form(url: &str, params: &[(&str, &str)]) -> reqwest::Result<Reply> {
    let request = http_client().post(url).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    reply(request.body(encode(params))).await
}

/// Posts JSON.
pub(crate) async fn post_json(url: &str, body: &Value) -> reqwest::Result<Reply> {
    reply(http_client().post(url).header(CONTENT_TYPE, "application/json").body(body.to_string())).await
}

/// Gets a resource.
pub(crate) async fn fetch(url: &str) -> reqwest::Result<Reply> {
    reply(http_client().get(url)).await
}

/// `url` with query parameters.
pub(crate) fn with_query(url: &str, params: &[(&str, &str)]) -> String {
    format!("{url}?{}", encode(params))
}

async fn reply(request: reqwest::RequestBuilder) -> reqwest::Result<Reply> {
    let response = request.send().await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Ok(Reply { status, headers, body: response.text().await? })
}

fn encode(params: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(params).finish()
}

/// The form encoding that RFC 6749 section 2.3.1 asks for in front of Basic.
fn form_encode(component: &str) -> String {
    form_urlencoded::byte_serialize(component.as_bytes()).collect()
}
