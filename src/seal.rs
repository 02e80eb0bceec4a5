//! Sealing: secrets as JWE compact strings (RFC 7516), for places that are no table.
//!
//! `alg` is A256KW and `enc` A256GCM, so that readers in other languages open them with the libraries they have. The
//! protected header says what is sealed, of whom, and where it belongs; all of it is authenticated, and compared when
//! it is opened: what was moved to another client, attribute or table is refused. `alg` and `enc` are pinned, never
//! taken from the header. Errors carry no content.

mod jwe;
mod keys;
mod kms;
mod ring;

use std::fmt;

pub use self::keys::{Keys, Mode, Place};
pub use self::kms::{KeyAddress, KmsKeys};
pub use self::ring::{Family, Keeping, KeyName, KeyRecord, KeySource, KeyState, Ring, Series};

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::shown;
use crate::time::Timestamp;

/// What the encryption context of every request to KMS calls its purpose.
pub const PURPOSE: &str = "perennial";

/// What is sealed: what it may be opened as, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label<'a> {
    /// The table that it belongs to.
    pub table: &'a str,
    /// The client's id.
    pub client: &'a str,
    /// What it is.
    pub attribute: &'a str,
    /// The generation that wrote it.
    pub version: i64,
}

/// What was sealed, and when.
pub struct Opened {
    /// The content; zeroized when it is dropped.
    pub content: Zeroizing<Vec<u8>>,
    /// When it was sealed, by its writer's wall clock, to the second.
    pub sealed_at: Timestamp,
}

/// Why something could not be sealed or opened. Never says more than that.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SealError {
    /// Not a JWE compact string of ours.
    #[error("not a sealed value: {0}")]
    Malformed(&'static str),
    /// Sealed with a key that this process does not have.
    #[error("sealed with the key `{0}`, which is not configured here")]
    UnknownKey(String),
    /// It belongs elsewhere.
    #[error("belongs to something else: `{0}` of its header differs")]
    Misplaced(&'static str),
    /// It was changed, or the key is another one of the same name.
    #[error("does not open: it was changed, or its key was")]
    Tampered,
    /// The crypto library failed.
    #[error("could not be sealed")]
    Unsealed,
    /// Whoever keeps or unwraps keys gives no answer. Try again.
    #[error("no answer about the keys: {0}")]
    NoAnswer(String),
    /// A key is refused: a missing right, a disabled or deleted key, a key that does not exist.
    #[error("a key is refused: {0}")]
    Refused(String),
}

impl SealError {
    /// Whether the same may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::NoAnswer(_))
    }
}

/// Why a text is no key.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("a key is 32 bytes in hexadecimal or base64, such as `openssl rand -hex 32` prints")]
pub struct BadKey;

/// A key-encryption key of this machine.
#[derive(Clone)]
struct Key {
    id: String,
    bytes: Zeroizing<[u8; 32]>,
}

/// Keys given by the operator: the first seals, all of them open.
#[derive(Clone)]
pub struct LocalKeys(Vec<Key>);

impl LocalKeys {
    /// Reads keys, one a line or separated by commas: 32 bytes each, in hexadecimal or base64.
    ///
    /// # Errors
    /// Where one of them is none, or there is none.
    pub fn parse(text: &str) -> Result<Self, BadKey> {
        let words = text.split([',', '\n']).map(str::trim).filter(|word| !word.is_empty());
        let keys = words.map(Key::parse).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() { Err(BadKey) } else { Ok(Self(keys)) }
    }

    /// Seals under the first key.
    ///
    /// # Errors
    /// Where the crypto library fails.
    pub fn seal(&self, content: &[u8], label: &Label<'_>, now: Timestamp) -> Result<String, SealError> {
        let key = self.0.first().ok_or(SealError::Unsealed)?;
        jwe::seal(content, key, label, now)
    }

    /// Opens what was sealed for this label.
    ///
    /// # Errors
    /// See [`SealError`].
    pub fn open(&self, sealed: &str, label: &Label<'_>) -> Result<Opened, SealError> {
        let envelope = jwe::Envelope::parse(sealed)?;
        envelope.open(&self.find(envelope.kid()?)?, label)
    }

    fn find(&self, kid: &str) -> Result<Key, SealError> {
        let key = self.0.iter().find(|key| key.id == kid);
        key.cloned().ok_or_else(|| SealError::UnknownKey(shown::clipped(kid, 64)))
    }
}

impl fmt::Debug for LocalKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| &key.id)).finish()
    }
}

impl Key {
    fn parse(text: &str) -> Result<Self, BadKey> {
        let bytes = Zeroizing::new(decode(text).ok_or(BadKey)?);
        let bytes = Zeroizing::new(<[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| BadKey)?);
        // Names the key without telling anything about it: two keys never share a name by mistake.
        let digest = Sha256::digest(bytes.as_slice());
        Ok(Self { id: format!("local/{}", hex::encode(&digest[..8])), bytes })
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
    if text.len() == 64 {
        return hex::decode(text).ok();
    }
    [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD].iter().find_map(|engine| engine.decode(text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const OTHER: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";
    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn keys(text: &str) -> LocalKeys {
        LocalKeys::parse(text).expect("a key")
    }

    fn label() -> Label<'static> {
        Label { table: "t", client: "c", attribute: "spill", version: 7 }
    }

    #[test]
    fn what_is_sealed_opens_again_and_under_its_own_label_alone() {
        let sealed = keys(ONE).seal(b"canary", &label(), NOW).expect("sealed");
        let opened = keys(ONE).open(&sealed, &label()).expect("opened");
        assert_eq!((opened.content.as_slice(), opened.sealed_at), (&b"canary"[..], NOW));
        assert_eq!(sealed.split('.').count(), 5);
        let elsewhere = [
            (Label { table: "u", ..label() }, "tbl"),
            (Label { client: "d", ..label() }, "cid"),
            (Label { attribute: "refresh_token", ..label() }, "att"),
            (Label { version: 8, ..label() }, "ver"),
        ];
        for (label, part) in elsewhere {
            assert_eq!(keys(ONE).open(&sealed, &label).err(), Some(SealError::Misplaced(part)));
        }
    }

    #[test]
    fn every_message_has_a_key_and_a_nonce_of_its_own() {
        let seal = || keys(ONE).seal(b"canary", &label(), NOW).expect("sealed");
        let (one, other) = (seal(), seal());
        let parts = |sealed: &str| sealed.split('.').map(str::to_owned).collect::<Vec<_>>();
        let same = parts(&one).iter().zip(&parts(&other)).filter(|(one, other)| one == other).count();
        assert_eq!(same, 1, "the header alone");
    }

    #[test]
    fn a_change_of_any_character_is_noticed() {
        let sealed = keys(ONE).seal(b"canary", &label(), NOW).expect("sealed");
        for at in 0..sealed.len() {
            let mut changed = sealed.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).expect("ascii");
            assert!(keys(ONE).open(&changed, &label()).is_err(), "at {at}");
        }
    }

    #[test]
    fn an_older_key_still_opens_and_an_unknown_one_is_named() {
        let sealed = keys(ONE).seal(b"x", &label(), NOW).expect("sealed");
        assert!(keys(&format!("{OTHER},{ONE}")).open(&sealed, &label()).is_ok());
        let Err(SealError::UnknownKey(name)) = keys(OTHER).open(&sealed, &label()) else {
            panic!("another key opens it");
        };
        assert!(name.starts_with("local/") && name.len() == 22, "{name}");
    }

    #[test]
    fn keys_are_read_in_either_alphabet_and_nothing_else_is() {
        use base64::Engine as _;
        let base64 = base64::engine::general_purpose::STANDARD.encode([9_u8; 32]);
        assert!(LocalKeys::parse(&base64).is_ok());
        for bad in ["", "abc", &ONE[1..], &"é".repeat(32)] {
            assert_eq!(LocalKeys::parse(bad).err(), Some(BadKey), "{bad}");
        }
        assert!(!format!("{:?}", keys(ONE)).contains("0001"));
    }
}
