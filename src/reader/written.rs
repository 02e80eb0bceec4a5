//! A token as JSON: what of it never changes is written once, however many ask.

use std::fmt;
use std::sync::OnceLock;

use bytes::Bytes;
use serde::{Serialize, Serializer};
use zeroize::Zeroizing;

use super::freshness::AccessToken;
use crate::client::ClientId;
use crate::secret;

/// Of a token, in the words that everybody gets: made when somebody asks for the first time. Where the token is in it, it is
/// zeroized with the last who has it.
#[derive(Clone, Default)]
pub struct Written {
    json: OnceLock<Vec<Bytes>>,
    tag: OnceLock<Bytes>,
}

impl Written {
    /// See [`pieces`].
    pub fn json(&self, write: impl FnOnce() -> Vec<Bytes>) -> &[Bytes] {
        self.json.get_or_init(write)
    }

    /// The entity tag of HTTP (RFC 9110 section 8.8.3).
    pub fn tag(&self, write: impl FnOnce() -> Bytes) -> &Bytes {
        self.tag.get_or_init(write)
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

/// The same in pieces, the token from where it lies: it need not be there once more, unless it has to be escaped. The first,
/// which has the brace, holds no secret.
pub fn pieces(client: &ClientId, token: &AccessToken) -> Vec<Bytes> {
    const PLACE: &str = "\u{0}";
    const ESCAPED: &str = "\\u0000";
    let is_plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\';
    if token.secret.expose().bytes().all(is_plain) {
        let around = json_of(client, token, PLACE);
        let around: Vec<_> = around.split(ESCAPED).collect();
        // Unless the provider uses such a character itself.
        if let [begins, between, ends] = around[..] {
            let piece = |text: &str| Bytes::copy_from_slice(text.as_bytes());
            let secret = || token.secret.expose_bytes();
            return vec![piece(begins), secret(), piece(between), secret(), piece(ends)];
        }
    }
    let whole = Bytes::from_owner(json(client, token));
    vec![whole.slice(..1), whole.slice(1..)]
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
