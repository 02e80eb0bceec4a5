//! A token as JSON: what of it never changes is written once, however many ask.

use std::fmt;
use std::sync::OnceLock;

use http::HeaderValue;
use serde::{Serialize, Serializer};
use zeroize::Zeroizing;

use super::freshness::AccessToken;
use crate::client::ClientId;
use crate::secret;

/// Of a token, in the words that everybody gets: made when somebody asks for the first time. Where the token is in it, it is
/// zeroized with the last who has it.
#[derive(Clone, Default)]
pub struct Written {
    json: OnceLock<Around>,
    tag: OnceLock<HeaderValue>,
}

impl Written {
    /// What [`json`] writes, as it is sent.
    pub fn json(&self, client: &ClientId, token: &AccessToken) -> &Around {
        self.json.get_or_init(|| around(client, token))
    }

    /// The same, if somebody has asked for it.
    pub fn known_json(&self) -> Option<&Around> {
        self.json.get()
    }

    /// The entity tag of HTTP (RFC 9110 section 8.8.3).
    pub fn tag(&self, write: impl FnOnce() -> HeaderValue) -> &HeaderValue {
        self.tag.get_or_init(write)
    }
}

/// An object as [`json`] writes it, after its opening brace and without the token, which stands in it twice: it is sent from
/// where it lies.
#[derive(Clone)]
pub struct Around {
    text: Zeroizing<String>,
    /// Where the token belongs; none where it had to be escaped, and is in the text.
    places: Option<[usize; 2]>,
}

impl Around {
    /// What stands before the token, if it is not in the text.
    pub fn begins(&self) -> Option<&str> {
        self.places.map(|[first, _]| &self.text[..first])
    }

    /// What follows on [`Self::begins`], or all of it where there is none.
    pub fn goes_on<'a>(&'a self, token: &'a str) -> [&'a str; 4] {
        match self.places {
            Some([first, second]) => [token, &self.text[first..second], token, &self.text[second..]],
            None => [&self.text, "", "", ""],
        }
    }
}

/// It follows from the rest of the token.
impl PartialEq for Written {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Written {}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Written(redacted)")
    }
}

/// An object with all that is known of a token and does not age.
pub fn json(client: &ClientId, token: &AccessToken) -> Zeroizing<String> {
    json_of(client, token, token.secret.expose())
}

fn around(client: &ClientId, token: &AccessToken) -> Around {
    const PLACE: &str = "\u{0}";
    const ESCAPED: &str = "\\u0000";
    let is_plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\';
    if token.secret.expose().bytes().all(is_plain) {
        let members = members(json_of(client, token, PLACE));
        let parts: Vec<_> = members.split(ESCAPED).collect();
        // Unless the provider uses such a character itself.
        if let [begins, between, _] = parts[..] {
            let places = Some([begins.len(), begins.len() + between.len()]);
            return Around { text: Zeroizing::new(parts.concat()), places };
        }
    }
    Around { text: members(json(client, token)), places: None }
}

/// Without the brace.
fn members(mut object: Zeroizing<String>) -> Zeroizing<String> {
    object.remove(0);
    object
}

fn json_of(client: &ClientId, token: &AccessToken, secret: &str) -> Zeroizing<String> {
    #[derive(Serialize)]
    struct Members<'a> {
        client: &'a str,
        access_token: &'a str,
        token_type: &'a str,
        authorization: Authorization<'a>,
        scope: Option<&'a str>,
        expires_at: i64,
        refresh_after: i64,
        generation: i64,
    }
    secret::json(&Members {
        client: client.as_str(),
        access_token: secret,
        token_type: token.scheme(),
        authorization: Authorization(token.scheme(), secret),
        scope: token.scope.as_deref(),
        expires_at: token.expires_at.as_secs(),
        refresh_after: token.refresh_at.unwrap_or(token.expires_at).as_secs(),
        generation: token.generation.0,
    })
}

/// A header's value, without a copy of the token on its way.
struct Authorization<'a>(&'a str, &'a str);

impl Serialize for Authorization<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{} {}", self.0, self.1))
    }
}
