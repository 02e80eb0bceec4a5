//! Who may read which tokens: keys from a file, of which only digests are written down.
//!
//! A key is 256 random bits, so that its plain SHA-256 cannot be turned back; it is compared with every known digest, in
//! constant time. The file is read again when it changes; one that cannot be understood changes nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::client::ClientId;
use crate::secret::Secret;

/// What keys begin with, so that scanners for leaked secrets know them.
const PREFIX: &str = "prn_";
/// How long they are: 32 bytes in base64url.
const LEN: usize = PREFIX.len() + 43;

/// Where a key may begin in a text that is to be shown: a reader may have put it in the wrong place.
pub(super) fn place_in(text: &str) -> Option<usize> {
    text.find(PREFIX)
}

/// Whether a text looks like a key.
pub(super) fn is_one(text: &str) -> bool {
    text.starts_with(PREFIX) && text.len() == LEN
}

/// The readers that there are.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    readers: Vec<Arc<Reader>>,
}

/// Somebody who may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reader {
    /// Its name, for the log.
    pub name: String,
    digests: Vec<[u8; 32]>,
    clients: Vec<Pattern>,
    /// Whether it may say that a token was refused.
    pub may_reject: bool,
}

/// A file of keys that cannot be one.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidKeys {
    /// It is no TOML, or has keys that there are not. The text quotes no value.
    #[error("line {line}: {problem}")]
    Syntax {
        /// Which line, from 1.
        line: usize,
        /// What is wrong there.
        problem: String,
    },
    /// A reader without keys: nobody could be it.
    #[error("readers.{0}: key_sha256 is empty: give it the digest that `perennial agent key {0}` prints")]
    NoKey(String),
    /// A digest that is none.
    #[error(
        "readers.{0}: a value of key_sha256 is not 64 hexadecimal digits: it is the SHA-256 of a key, as `perennial agent \
         key {0}` prints it"
    )]
    Digest(String),
    /// A pattern that fits no client id.
    #[error("readers.{0}: {1:?} fits no client: use A-Z a-z 0-9 . _ : @ - and * for any of them")]
    Pattern(String, String),
    /// Two readers with one key.
    #[error("readers.{0} and readers.{1} have the same key: give each its own")]
    Shared(String, String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    readers: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    key_sha256: Vec<String>,
    clients: Vec<String>,
    #[serde(default = "yes")]
    may_reject: bool,
}

fn yes() -> bool {
    true
}

impl Keys {
    /// Reads a file's text.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place; never a value that may be a key.
    pub fn parse(text: &str) -> Result<Self, InvalidKeys> {
        let file: File = toml::from_str(text).map_err(|error| syntax(text, &error))?;
        let readers = file.readers.into_iter().map(reader).collect::<Result<Vec<_>, _>>()?;
        for (place, one) in readers.iter().enumerate() {
            let twin =
                readers[..place].iter().find(|other| other.digests.iter().any(|d| one.digests.contains(d)));
            if let Some(twin) = twin {
                return Err(InvalidKeys::Shared(twin.name.clone(), one.name.clone()));
            }
        }
        Ok(Self { readers: readers.into_iter().map(Arc::new).collect() })
    }

    /// One reader, with a key that was made elsewhere.
    pub fn of_one(name: &str, key: &Secret, clients: Vec<Pattern>) -> Self {
        let mut presented = [0; 32];
        presented.copy_from_slice(digest(&SHA256, key.expose().as_bytes()).as_ref());
        let reader = Reader { name: name.to_owned(), digests: vec![presented], clients, may_reject: true };
        Self { readers: vec![Arc::new(reader)] }
    }

    /// Whose key this is. Takes as long for a key that is nobody's.
    pub fn whose(&self, key: &[u8]) -> Option<&Arc<Reader>> {
        let presented = digest(&SHA256, key);
        let fits = |reader: &Reader| {
            let same = |known: &[u8; 32]| verify_slices_are_equal(known, presented.as_ref()).is_ok();
            reader.digests.iter().fold(false, |found, known| same(known) | found)
        };
        self.readers.iter().fold(None, |found, reader| if fits(reader) { Some(reader) } else { found })
    }

    /// How many readers there are.
    pub fn len(&self) -> usize {
        self.readers.len()
    }

    /// Whether nobody may read.
    pub fn is_empty(&self) -> bool {
        self.readers.is_empty()
    }
}

impl Reader {
    /// Whether it may read this client's token.
    pub fn may_read(&self, client: &ClientId) -> bool {
        self.clients.iter().any(|pattern| pattern.fits(client.as_str()))
    }
}

fn reader((name, entry): (String, Entry)) -> Result<Reader, InvalidKeys> {
    if entry.key_sha256.is_empty() {
        return Err(InvalidKeys::NoKey(name));
    }
    let digests = entry.key_sha256.iter().map(|text| parse_digest(text)).collect::<Option<Vec<_>>>();
    let digests = digests.ok_or_else(|| InvalidKeys::Digest(name.clone()))?;
    let pattern = |text: String| {
        Pattern::new(&text)
            .ok_or_else(|| InvalidKeys::Pattern(name.clone(), text.chars().take(140).collect()))
    };
    let clients = entry.clients.into_iter().map(pattern).collect::<Result<_, _>>()?;
    Ok(Reader { name, digests, clients, may_reject: entry.may_reject })
}

/// The parser's own message may quote what stands there.
fn syntax(text: &str, error: &toml::de::Error) -> InvalidKeys {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
    let missing = ["key_sha256", "clients"].into_iter().find(|key| {
        let message = error.message();
        message.contains("missing field") && message.contains(key)
    });
    let problem = match missing {
        Some(key) => format!("this reader has no `{key}`"),
        None => "write [readers.NAME] with key_sha256 = [\"...\"], clients = [\"...\"] and, if need be, \
                 may_reject = false; nothing else"
            .to_owned(),
    };
    InvalidKeys::Syntax { line, problem }
}

fn parse_digest(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

/// A new key: 256 bits of the operating system's randomness.
///
/// # Panics
/// Where the operating system has none.
pub fn new_key() -> Secret {
    let mut bytes = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(bytes.as_mut()).expect("the operating system has random numbers");
    Secret::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes.as_ref())))
}

/// The digest of a key, as the file has it.
pub fn digest_of(key: &str) -> String {
    hex::encode(digest(&SHA256, key.as_bytes()))
}

/// Client ids, with `*` for any characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// `None` where it can fit no client id.
    pub fn new(text: &str) -> Option<Self> {
        let possible = |byte: u8| byte.is_ascii_alphanumeric() || b"._:@-*".contains(&byte);
        ((1..=ClientId::MAX_LEN).contains(&text.len()) && text.bytes().all(possible))
            .then(|| Self(text.to_owned()))
    }

    /// Whether a client id fits.
    pub fn fits(&self, id: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else { return self.0 == id };
        let Some(mut left) = id.strip_prefix(first) else { return false };
        let mut parts: Vec<&str> = rest.split('*').collect();
        let last = parts.pop().unwrap_or_default();
        for part in parts {
            let Some(place) = left.find(part) else { return false };
            left = &left[place + part.len()..];
        }
        left.ends_with(last)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Keys {
        Keys::parse(text).expect("well-formed")
    }

    fn file() -> String {
        format!(
            "[readers.billing]\nkey_sha256 = [\"{}\", \"{}\"]\nclients = [\"acme-*\"]\n\
             [readers.all]\nkey_sha256 = [\"{}\"]\nclients = [\"*\"]\nmay_reject = false\n",
            digest_of("k1"),
            digest_of("k2").to_uppercase(),
            digest_of("k3")
        )
    }

    #[test]
    fn a_key_is_known_by_its_digest_and_reads_what_its_patterns_fit() {
        let keys = keys(&file());
        let acme = ClientId::new("acme-crm").expect("an id");
        let other = ClientId::new("other").expect("an id");
        for key in ["k1", "k2"] {
            let reader = keys.whose(key.as_bytes()).expect("a reader");
            assert_eq!((reader.name.as_str(), reader.may_reject), ("billing", true));
            assert!(reader.may_read(&acme) && !reader.may_read(&other));
        }
        let all = keys.whose(b"k3").expect("a reader");
        assert!(all.may_read(&other) && !all.may_reject);
        for unknown in ["", "k4", "k1 ", &digest_of("k1")] {
            assert_eq!(keys.whose(unknown.as_bytes()), None, "{unknown}");
        }
    }

    #[test]
    fn patterns_fit_as_a_shell_would_have_them() {
        let fits = |pattern: &str, id: &str| Pattern::new(pattern).expect("a pattern").fits(id);
        for (pattern, id) in [
            ("a", "a"),
            ("*", "x"),
            ("a*", "a"),
            ("a*c", "abc"),
            ("a*b*c", "a-b-c"),
            ("*b", "ab"),
            ("a**c", "ac"),
            ("*a*", "bab"),
        ] {
            assert!(fits(pattern, id), "{pattern} {id}");
        }
        for (pattern, id) in
            [("a", "ab"), ("a*c", "ab"), ("a*b*c", "acb"), ("ab*bc", "abc"), ("*b", "ba"), ("A", "a")]
        {
            assert!(!fits(pattern, id), "{pattern} {id}");
        }
        for none in ["", "a b", "a/b", "ä"] {
            assert_eq!(Pattern::new(none), None, "{none}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_without_a_value() {
        let wrong = [
            ("[readers.a]\nkey_sha256 = [\"canary-key\"]\nclients = []", "64 hexadecimal"),
            ("[readers.a]\nkey_sha256 = []\nclients = [\"*\"]", "key_sha256 is empty"),
            ("[readers.a]\nclients = [\"*\"]", "no `key_sha256`"),
            ("[readers.a]\nkey = \"canary-key\"", "line 2"),
            ("canary-key", "line 1"),
            ("[readers.a]\nkey_sha256 = \"canary-key\"\nclients = [\"*\"]", "line 2"),
        ];
        for (text, told) in wrong {
            let error = Keys::parse(text).expect_err(text).to_string();
            assert!(error.contains(told) && !error.contains("canary"), "{text}: {error}");
        }
        let twice = format!("{}[readers.c]\nkey_sha256 = [\"{}\"]\nclients = []\n", file(), digest_of("k2"));
        assert_eq!(Keys::parse(&twice).map(|_| ()), Err(InvalidKeys::Shared("billing".into(), "c".into())));
    }
}
