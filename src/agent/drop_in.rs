//! AWS's way of asking for a secret and of answering, so that readers of its Secrets Manager Agent and of its Parameters and
//! Secrets Lambda Extension get access tokens unchanged: pure.
//!
//! Sources: AWS Secrets Manager User Guide, "Using the AWS Secrets Manager Agent"; API Reference, "GetSecretValue"; and what
//! version 2 of that agent answers. A secret's name leads to a client by templates; each generation of its token is a version.
//! Only the current one can be had.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::answer::{Answer, token_json};
use super::body::Body;
use super::problem::{Problem, seconds};
use super::query;
use crate::client::ClientId;
use crate::reader::{Refusal, Served};
use crate::record::Gen;
use crate::secret;

/// What the agent of AWS looks for its token in, by default.
const KEY_HEADERS: [HeaderName; 2] =
    [HeaderName::from_static("x-aws-parameters-secrets-token"), HeaderName::from_static("x-vault-token")];
/// Where a request of the path style begins, by default.
const PATH_STYLE: &str = "/v1/";
const CURRENT: &str = "AWSCURRENT";
/// The account in ARNs that are made up here.
const NO_ACCOUNT: &str = "000000000000";
const PLACE: &str = "{client}";

/// How tokens are told as secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What secrets are called, as in `prod/oauth/{client}`: the first that fits holds.
    pub names: Vec<String>,
    /// What a secret's string is.
    pub form: Form,
    /// The region in ARNs that are made up here.
    pub region: String,
}

/// What a secret's string is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The token's JSON, as `/v1/token/{client}` answers it.
    Json,
    /// The access token alone.
    Plain,
}

/// What somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) client: ClientId,
    name: String,
    /// The other reading of an ARN, if a client's id may end as an ARN does: this client, by this name.
    pub(super) whole: Option<(ClientId, String)>,
    /// As it was asked by.
    arn: Option<String>,
    version: Option<String>,
    stage: Option<String>,
    /// The table has to say so now.
    pub(super) refresh: bool,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// As at any other door.
    Problem(Problem),
    /// Another version than the current.
    NoSuchVersion(String),
}

impl From<Problem> for Trouble {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

/// The reader's key, in one of AWS's headers.
pub(super) fn key(headers: &HeaderMap) -> Option<&[u8]> {
    KEY_HEADERS.iter().find_map(|name| headers.get(name)).map(HeaderValue::as_bytes)
}

/// What a request asks for.
pub(super) fn asked(path: &str, query: &str, settings: &Settings) -> Result<Ask, Problem> {
    let mut asked = Parameters::default();
    let (takes_id, in_path) = (path == "/secretsmanager/get", path.strip_prefix(PATH_STYLE));
    if !takes_id && in_path.is_none() {
        return Err(Problem::NoSuchPath);
    }
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        asked.take(&name, &value, takes_id)?;
    }
    let id = match in_path {
        Some("") => return Err(malformed("missing secret ID")),
        Some(id) => query::decode(id)?,
        None => asked.id.ok_or_else(|| malformed("missing parameter secretId"))?,
    };
    let (arn, name, whole) = named(&id);
    let meant = |name: &str| {
        let client = settings.names.iter().find_map(|template| client(template, name))?;
        Some((client, name.to_owned()))
    };
    // A name that is nobody's is a secret that is not there.
    let readings = (meant(name), whole.and_then(meant));
    let ((client, name), whole) = match readings {
        (Some(one), other) => (one, other),
        (None, Some(one)) => (one, None),
        (None, None) => return Err(Problem::Refused(Refusal::Absent)),
    };
    let (version, stage, refresh) = (asked.version, asked.stage, asked.refresh);
    Ok(Ask { client, name, whole, arn, version, stage, refresh })
}

impl Ask {
    /// The same for the other reading of its ARN.
    pub(super) fn of_whole(self, whole: (ClientId, String)) -> Self {
        Self { client: whole.0, name: whole.1, whole: None, ..self }
    }
}

#[derive(Default)]
struct Parameters {
    id: Option<String>,
    version: Option<String>,
    stage: Option<String>,
    refresh: bool,
}

impl Parameters {
    fn take(&mut self, name: &str, value: &str, takes_id: bool) -> Result<(), Problem> {
        match name {
            // An empty one is none.
            "secretId" if takes_id => self.id = Some(value.to_owned()).filter(|id| !id.is_empty()),
            "versionId" => self.version = Some(value.to_owned()),
            "versionStage" => self.stage = Some(value.to_owned()),
            "refreshNow" => self.refresh = flag(value)?,
            other => {
                let shown: String = other.chars().filter(char::is_ascii_graphic).take(40).collect();
                return Err(Problem::Malformed(format!("unknown parameter: {shown}")));
            }
        }
        Ok(())
    }
}

fn flag(value: &str) -> Result<bool, Problem> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(malformed("invalid refreshNow value")),
    }
}

fn malformed(why: &str) -> Problem {
    Problem::Malformed(why.to_owned())
}

/// An ARN, if it is one, and the name. An ARN ends in a hyphen and six characters that are not the name's: AWS says not to
/// give secrets names that end so ("Name" in "CreateSecret"). Where it has such an end, also the name that it is without one:
/// clients' ids may end so.
fn named(id: &str) -> (Option<String>, &str, Option<&str>) {
    let parts: Vec<&str> = id.splitn(7, ':').collect();
    let ["arn", _, "secretsmanager", _, _, "secret", resource] = parts[..] else {
        return (None, id, None);
    };
    let suffixed = resource.rsplit_once('-').filter(|(name, suffix)| {
        !name.is_empty() && suffix.len() == 6 && suffix.bytes().all(|byte| byte.is_ascii_alphanumeric())
    });
    match suffixed {
        Some((name, _)) => (Some(id.to_owned()), name, Some(resource)),
        None => (Some(id.to_owned()), resource, None),
    }
}

/// Whose token it is, where the name fits.
fn client(template: &str, name: &str) -> Option<ClientId> {
    let (before, after) = template.split_once(PLACE)?;
    query::id(name.strip_prefix(before)?.strip_suffix(after)?).ok()
}

/// `GetSecretValue`'s answer. A version that is not the current is not there any more: an old token is of no use.
pub(super) fn value(ask: &Ask, served: &Served, settings: &Settings) -> Result<Answer, Trouble> {
    let token = served.token();
    let version = version(&ask.client, token.generation);
    if let Some(stage) = ask.stage.as_deref().filter(|stage| *stage != CURRENT) {
        return Err(Trouble::NoSuchVersion(format!("staging label: {}", printable(stage))));
    }
    if let Some(other) = ask.version.as_deref().filter(|asked| *asked != version) {
        return Err(Trouble::NoSuchVersion(format!("VersionId: {}", printable(other))));
    }
    let text = match settings.form {
        Form::Json => token_json(&ask.client, served),
        Form::Plain => token.secret.expose().to_owned().into(),
    };
    let created = token.stored_at.unwrap_or(served.sighting.seen_at).as_millis();
    let value = Value {
        arn: ask.arn.clone().unwrap_or_else(|| arn(&ask.name, &settings.region)),
        name: &ask.name,
        version_id: version,
        secret_string: &text,
        version_stages: [CURRENT],
        created_date: format!("{}.{:03}", created.div_euclid(1000), created.rem_euclid(1000)),
    };
    // Zeroized once it has been sent.
    let body = Bytes::from_owner(secret::json(&value));
    Ok(answer(StatusCode::OK, "application/json", body))
}

/// `GetSecretValue`'s answer, as the agent of AWS tells it: the time is a string, in seconds.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Value<'a> {
    #[serde(rename = "ARN")]
    arn: String,
    name: &'a str,
    version_id: String,
    secret_string: &'a str,
    version_stages: [&'static str; 1],
    created_date: String,
}

fn printable(text: &str) -> String {
    text.chars().filter(char::is_ascii_graphic).take(64).collect()
}

/// A UUID of version 8 (RFC 9562 section 5.8), the same wherever it is asked for, and another for each generation.
fn version(client: &ClientId, generation: Gen) -> String {
    let digest = digest(&[client.as_str(), &generation.to_string()]);
    let mut bytes: [u8; 16] = std::array::from_fn(|at| digest[at]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex::encode(bytes);
    format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
}

/// One that nobody at AWS has given.
fn arn(name: &str, region: &str) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyzABCDEFGH";
    let digest = digest(&[name]);
    let suffix: String = digest[..6].iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect();
    format!("arn:aws:secretsmanager:{region}:{NO_ACCOUNT}:secret:{name}-{suffix}")
}

fn digest(parts: &[&str]) -> [u8; 32] {
    let mut digest = Sha256::new_with_prefix(b"perennial");
    for part in parts {
        digest.update([0]);
        digest.update(part.as_bytes());
    }
    digest.finalize().into()
}

/// `GET /ping`.
pub(super) fn healthy() -> Answer {
    plain(StatusCode::OK, "healthy")
}

/// What went wrong, as AWS's agent tells it: its own words in plain text, and the service's errors as JSON.
pub(super) fn trouble(trouble: &Trouble) -> Answer {
    let problem = match trouble {
        Trouble::Problem(problem) => problem,
        Trouble::NoSuchVersion(what) => return absent(&format!("the specified secret value for {what}")),
    };
    let told = problem.told();
    match problem {
        Problem::ForwardedRequest(_) => plain(StatusCode::BAD_REQUEST, "Forwarded"),
        Problem::NoKey | Problem::UnknownKey => plain(StatusCode::FORBIDDEN, "Bad Token"),
        Problem::NoSuchPath => plain(StatusCode::NOT_FOUND, "Not found"),
        Problem::Method(_) => plain(StatusCode::METHOD_NOT_ALLOWED, "Not allowed"),
        Problem::Busy => {
            later(plain(StatusCode::TOO_MANY_REQUESTS, "Connection limit exceeded"), told.retry_after)
        }
        Problem::Refused(Refusal::Absent) => absent("the specified secret."),
        Problem::NotAllowed | Problem::Refused(Refusal::Forbidden) => {
            exception(StatusCode::BAD_REQUEST, "AccessDeniedException", &told.detail)
        }
        Problem::Refused(_) if told.retry_after.is_some() => later(
            exception(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", &told.detail),
            told.retry_after,
        ),
        Problem::Refused(_) => exception(StatusCode::BAD_REQUEST, "InvalidRequestException", &told.detail),
        _ => plain(told.status, &told.detail),
    }
}

fn absent(what: &str) -> Answer {
    let message = format!("Secrets Manager can't find {what}");
    exception(StatusCode::BAD_REQUEST, "ResourceNotFoundException", &message)
}

fn exception(status: StatusCode, kind: &str, message: &str) -> Answer {
    let body = json!({ "__type": kind, "message": message }).to_string();
    answer(status, "application/json", body.into())
}

fn plain(status: StatusCode, words: &str) -> Answer {
    answer(status, "text/plain; charset=utf-8", words.to_owned().into())
}

fn later(mut answer: Answer, wait: Option<Duration>) -> Answer {
    if let Some(wait) = wait {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds(wait)));
    }
    answer
}

fn answer(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::keys;

    fn settings() -> Settings {
        let names = ["prod/oauth/{client}", "{client}/token"].map(str::to_owned).to_vec();
        Settings { names, form: Form::Json, region: "eu-central-1".into() }
    }

    fn by_query(query: &str) -> Result<Ask, Problem> {
        asked("/secretsmanager/get", query, &settings())
    }

    #[test]
    fn names_and_arns_lead_to_clients() {
        let arn = "arn:aws:secretsmanager:us-west-2:123456789012:secret:prod/oauth/acme-crm";
        for id in [
            "prod/oauth/acme-crm".to_owned(),
            "prod%2Foauth%2Facme-crm".to_owned(),
            "acme-crm/token".to_owned(),
            arn.to_owned() + "-NhBWsc",
            arn.to_owned(),
        ] {
            let ask = by_query(&format!("secretId={id}&versionStage=AWSCURRENT")).expect(&id);
            assert_eq!((ask.client.as_str(), ask.refresh), ("acme-crm", false), "{id}");
            assert_eq!(ask.arn.is_some(), id.starts_with("arn"), "{id}");
            assert_eq!(asked(&format!("/v1/{id}"), "", &settings()).expect(&id).client, ask.client, "{id}");
        }
        for nobody in
            ["acme-crm", "prod/oauth/", "prod/oauth/a/b", "/token", "arn:aws:s3:::b", "prod/oauth/ü"]
        {
            let absent = Err(Problem::Refused(Refusal::Absent));
            assert_eq!(by_query(&format!("secretId={nobody}")), absent, "{nobody}");
        }
        // A key in a name's place does not go on to the table, and into logs.
        let key = keys::new_key();
        let swapped = by_query(&format!("secretId={}/token", key.expose()));
        assert_eq!(swapped, Err(Problem::Refused(Refusal::Absent)));
    }

    #[test]
    fn the_end_of_an_arn_may_be_the_name_s() {
        let arn = "arn:aws:secretsmanager:us-west-2:123456789012:secret:";
        let read = |name: &str| by_query(&format!("secretId={arn}{name}")).expect(name);
        let ask = read("prod/oauth/acme-europe");
        assert_eq!((ask.client.as_str(), ask.name.as_str()), ("acme", "prod/oauth/acme"));
        let whole = ask.whole.clone().expect("another reading");
        let whole = ask.of_whole(whole);
        assert_eq!((whole.client.as_str(), whole.name.as_str()), ("acme-europe", "prod/oauth/acme-europe"));
        assert_eq!(whole.whole, None);
        // Only one reading fits a name here.
        assert_eq!(read("acme/token-NhBWsc").whole, None);
        assert_eq!(read("prod/oauth/acme-crm").whole, None);
        assert_eq!(
            by_query("secretId=prod/oauth/acme-europe").expect("a name").client.as_str(),
            "acme-europe"
        );
    }

    #[test]
    fn what_cannot_be_understood_is_told_in_the_words_of_aws() {
        let told = |ask: Result<Ask, Problem>| match ask {
            Err(Problem::Malformed(why)) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(told(by_query("versionStage=AWSCURRENT")), "missing parameter secretId");
        assert_eq!(told(by_query("secretId=")), "missing parameter secretId");
        assert_eq!(told(by_query("secretId=a&abc=1")), "unknown parameter: abc");
        assert_eq!(told(by_query("secretId=a&refreshNow=123")), "invalid refreshNow value");
        assert_eq!(told(asked("/v1/", "", &settings())), "missing secret ID");
        assert_eq!(told(asked("/v1/a", "secretId=b", &settings())), "unknown parameter: secretId");
        let parameter = asked("/systemsmanager/parameters/get", "name=a", &settings());
        assert_eq!(parameter, Err(Problem::NoSuchPath));
        for (yes, refresh) in [("true", true), ("TRUE", true), ("1", true), ("False", false), ("0", false)] {
            let ask = by_query(&format!("secretId=a/token&refreshNow={yes}")).expect(yes);
            assert_eq!(ask.refresh, refresh);
        }
    }

    #[test]
    fn a_version_is_a_uuid_of_its_generation() {
        let id = ClientId::new("acme").expect("an id");
        let first = version(&id, Gen(1));
        assert_eq!(first, version(&id, Gen(1)));
        assert_ne!(first, version(&id, Gen(2)));
        assert_ne!(first, version(&ClientId::new("other").expect("an id"), Gen(1)));
        let parts: Vec<_> = first.split('-').map(str::len).collect();
        assert_eq!((parts, &first[14..15]), (vec![8, 4, 4, 4, 12], "8"));
        assert!(["8", "9", "a", "b"].contains(&&first[19..20]), "{first}");
    }

    #[test]
    fn errors_have_the_shape_that_readers_of_aws_know() {
        let status = |problem: Problem| trouble(&problem.into()).status().as_u16();
        let wait = Duration::from_secs(2);
        for (problem, expected) in [
            (Problem::NoKey, 403),
            (Problem::UnknownKey, 403),
            (Problem::ForwardedRequest("Via"), 400),
            (Problem::Method("GET"), 405),
            (Problem::NoSuchPath, 404),
            (Problem::AnotherHost, 421),
            (Problem::Malformed("x".into()), 400),
            (Problem::NotAllowed, 400),
            (Problem::Busy, 429),
            (Problem::Refused(Refusal::Absent), 400),
            (Problem::Refused(Refusal::Forbidden), 400),
            (Problem::Refused(Refusal::Dead("invalid_grant".into())), 400),
            (Problem::Refused(Refusal::Expired(wait)), 503),
            (Problem::Refused(Refusal::Unavailable(wait)), 503),
        ] {
            assert_eq!(status(problem.clone()), expected, "{problem:?}");
        }
        let late = trouble(&Problem::Refused(Refusal::Pending(wait)).into());
        assert_eq!(late.headers()[RETRY_AFTER], "2");
    }
}
