//! Token requests as RFC 6749 has them on the wire: form parameters, client authentication, refusals.

use std::collections::HashSet;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use url::form_urlencoded;

/// Why a token request is refused: an error of RFC 6749 section 5.2 with a sentence for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) error: &'static str,
    pub(crate) description: &'static str,
    /// The refusal punished the second redemption of a refresh token.
    pub(crate) double_redemption: bool,
}

impl Refusal {
    pub(crate) const fn new(error: &'static str, description: &'static str) -> Self {
        Self { error, description, double_redemption: false }
    }

    pub(crate) const fn invalid_request(description: &'static str) -> Self {
        Self::new("invalid_request", description)
    }

    pub(crate) const fn invalid_client(description: &'static str) -> Self {
        Self::new("invalid_client", description)
    }

    pub(crate) const fn invalid_grant(description: &'static str) -> Self {
        Self::new("invalid_grant", description)
    }

    /// The HTTP status: 401 for a client that failed to authenticate, 400 for the rest.
    pub(crate) fn status(&self) -> u16 {
        if self.error == "invalid_client" { 401 } else { 400 }
    }
}

/// How a client showed who it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Credentials {
    Basic { id: String, secret: String },
    Post { id: String, secret: String },
    Public { id: String },
}

impl Credentials {
    pub(crate) fn client_id(&self) -> &str {
        match self {
            Self::Basic { id, .. } | Self::Post { id, .. } | Self::Public { id } => id,
        }
    }
}

/// A token request that is well-formed. Whether it is allowed, the authority says.
#[derive(Debug)]
pub(crate) struct TokenRequest {
    pub(crate) credentials: Credentials,
    pub(crate) params: Params,
}

impl TokenRequest {
    /// Reads a request from its `Content-Type`, its `Authorization` and its body.
    pub(crate) fn parse(
        content_type: Option<&str>,
        authorization: Option<&str>,
        body: &[u8],
    ) -> Result<Self, Refusal> {
        if !content_type.is_some_and(is_form) {
            return Err(Refusal::invalid_request("the body must be application/x-www-form-urlencoded"));
        }
        let params = Params::parse(body)?;
        let credentials = credentials(authorization, &params)?;
        Ok(Self { credentials, params })
    }
}

fn is_form(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// Form parameters: each at most once, and an empty value counts as absent (RFC 6749 section 3.2).
#[derive(Debug)]
pub(crate) struct Params(Vec<(String, String)>);

impl Params {
    /// Parameters that may be repeated (RFC 8707 section 2, RFC 8693 section 2.1).
    const REPEATABLE: [&str; 2] = ["resource", "audience"];

    fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let params = Self::lenient(body);
        let mut seen = HashSet::new();
        for (name, _) in &params.0 {
            if !seen.insert(name.as_str()) && !Self::REPEATABLE.contains(&name.as_str()) {
                return Err(Refusal::invalid_request("a parameter is given twice"));
            }
        }
        Ok(params)
    }

    /// Parameters as they come, for the control surface.
    pub(crate) fn lenient(text: &[u8]) -> Self {
        Self(form_urlencoded::parse(text).into_owned().filter(|(_, value)| !value.is_empty()).collect())
    }

    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

fn credentials(authorization: Option<&str>, params: &Params) -> Result<Credentials, Refusal> {
    match (authorization, params.value("client_id"), params.value("client_secret")) {
        (Some(_), _, Some(_)) => Err(Refusal::invalid_request("two ways of client authentication at once")),
        (Some(header), named, None) => {
            let (id, secret) = basic(header)?;
            if named.is_some_and(|named| named != id) {
                return Err(Refusal::invalid_request("client_id differs from the Authorization header"));
            }
            Ok(Credentials::Basic { id, secret })
        }
        (None, Some(id), Some(secret)) => {
            Ok(Credentials::Post { id: id.to_owned(), secret: secret.to_owned() })
        }
        (None, Some(id), None) => Ok(Credentials::Public { id: id.to_owned() }),
        (None, None, _) => Err(Refusal::invalid_client("no client authentication")),
    }
}

fn basic(header: &str) -> Result<(String, String), Refusal> {
    let malformed = Refusal::invalid_client("the Authorization header is not HTTP Basic");
    let (scheme, encoded) = header.split_once(' ').ok_or(malformed)?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(malformed);
    }
    let decoded = BASE64_STANDARD.decode(encoded.trim()).map_err(|_| malformed)?;
    let text = String::from_utf8(decoded).map_err(|_| malformed)?;
    let (id, secret) = text.split_once(':').ok_or(malformed)?;
    Ok((form_decode(id)?, form_decode(secret)?))
}

/// Undoes the form encoding that RFC 6749 section 2.3.1 asks for in front of Basic. Raw special characters are
/// refused, so that a client that forgets the encoding learns it here and not from its first odd secret.
fn form_decode(component: &str) -> Result<String, Refusal> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"*-._+%~!'()".contains(&byte);
    let complete = |escape: &str| {
        escape.as_bytes().get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    if !component.bytes().all(allowed) || !component.split('%').skip(1).all(complete) {
        return Err(Refusal::invalid_request("client id and secret must be form-encoded before Basic"));
    }
    Ok(form_urlencoded::parse(component.as_bytes())
        .next()
        .map(|(text, _)| text.into_owned())
        .unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: Option<&str> = Some("application/x-www-form-urlencoded; charset=utf-8");

    fn basic_header(text: &str) -> String {
        format!("Basic {}", BASE64_STANDARD.encode(text))
    }

    #[test]
    fn basic_credentials_are_form_decoded() {
        let header = basic_header("my+app:s%2B%2F%3D%26%3A%25");
        let request = TokenRequest::parse(FORM, Some(&header), b"grant_type=client_credentials").unwrap();
        let expected = Credentials::Basic { id: "my app".to_owned(), secret: "s+/=&:%".to_owned() };
        assert_eq!(request.credentials, expected);
    }

    #[test]
    fn basic_credentials_without_form_encoding_are_refused() {
        for raw in ["app:a/b", "app:a=b", "app:a&b", "app:100%", "app:%zz", "app:a b", "app:a:b"] {
            let refusal = TokenRequest::parse(FORM, Some(&basic_header(raw)), b"").unwrap_err();
            assert_eq!(refusal.error, "invalid_request", "{raw}");
        }
    }

    #[test]
    fn malformed_requests_are_refused_with_the_right_code() {
        let header = basic_header("app:s");
        let refused = |authorization, body: &str| {
            TokenRequest::parse(FORM, authorization, body.as_bytes()).unwrap_err().error
        };
        assert_eq!(refused(None, "grant_type=refresh_token"), "invalid_client");
        assert_eq!(refused(Some("Bearer x"), ""), "invalid_client");
        assert_eq!(refused(Some(&header), "client_secret=s"), "invalid_request");
        assert_eq!(refused(Some(&header), "client_id=other"), "invalid_request");
        assert_eq!(refused(None, "client_id=app&scope=a&scope=b"), "invalid_request");
        let json = TokenRequest::parse(Some("application/json"), None, b"{}").unwrap_err();
        assert_eq!(json.error, "invalid_request");
    }

    #[test]
    fn resource_may_be_repeated_and_empty_values_are_absent() {
        let body = b"client_id=app&client_secret=&resource=urn:a&resource=urn:b";
        let request = TokenRequest::parse(FORM, None, body).unwrap();
        assert_eq!(request.credentials, Credentials::Public { id: "app".to_owned() });
    }
}
