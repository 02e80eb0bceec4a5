//! Every key that this process may ask for, and which of them seal.

use zeroize::Zeroizing;

use super::jwe::{Envelope, ours, seal};
use super::kms::KmsKeys;
use super::ring::{Family, KeyName, Ring};
use super::{Key, Label, LocalKeys, SealError};
use crate::secret::Secret;
use crate::shown;
use crate::time::Timestamp;

/// What seals new secrets. Whatever it is, everything opens for which there is a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: secrets stand in the table as they are, under its own encryption.
    Off,
    /// A key of this machine's: for development.
    Local,
    /// Keys that AWS KMS wraps.
    Kms,
}

/// The keys.
pub struct Keys {
    /// What seals.
    pub mode: Mode,
    /// Keys of this machine's.
    pub local: Option<LocalKeys>,
    /// Keys that KMS wraps.
    pub kms: Option<Ring<KmsKeys>>,
}

/// Where a sealed secret stands.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The table.
    pub table: &'a str,
    /// The client's id.
    pub client: &'a str,
    /// The attribute.
    pub attribute: &'a str,
    /// The generation of its item. What was sealed is never of a later one.
    pub version: i64,
}

impl Keys {
    /// Whether a text was sealed by this program. A provider's own tokens may be JWE, too: their headers lack our members.
    ///
    /// That it opens is another matter. What is ours and does not open, of a later version's form say, must be an error:
    /// taken for plain it would be sent to a provider.
    pub fn is_sealed(text: &str) -> bool {
        ours(text).is_some()
    }

    /// The name of the key that sealed this; none where it is not sealed.
    pub fn name_of(text: &str) -> Option<String> {
        let header = ours(text)?;
        let kid = header.get("kid").and_then(serde_json::Value::as_str);
        Some(kid.unwrap_or_default().to_owned())
    }

    /// The attribute that this was sealed for; none where it is not sealed.
    pub fn attribute_of(text: &str) -> Option<String> {
        Some(ours(text)?.get("att")?.as_str()?.to_owned())
    }

    /// The name of the key that seals this client's attribute; none where nothing is sealed.
    ///
    /// # Errors
    /// Where there is no key, or no answer about one.
    pub async fn sealing_name(
        &self,
        table: &str,
        client: &str,
        attribute: &str,
    ) -> Result<Option<String>, SealError> {
        Ok(self.sealing(table, client, Family::of(attribute)).await?.map(|key| key.id))
    }

    /// Has both of a client's keys at hand: what seals an answer must be there before the request is sent.
    ///
    /// # Errors
    /// Where there is no key, or no answer about one.
    pub async fn prepare(&self, table: &str, client: &str) -> Result<(), SealError> {
        for family in Family::ALL {
            self.sealing(table, client, family).await?;
        }
        Ok(())
    }

    /// Seals a secret for its place; none where nothing is sealed.
    ///
    /// # Errors
    /// Where there is no key, or no answer about one.
    pub async fn seal(
        &self,
        secret: &Secret,
        place: &Place<'_>,
        now: Timestamp,
    ) -> Result<Option<String>, SealError> {
        let family = Family::of(place.attribute);
        // What was prepared, first: an answer waits for nobody.
        let prepared = match (self.mode, &self.kms) {
            (Mode::Kms, Some(ring)) => ring.at_hand(place.table, family, place.client),
            _ => None,
        };
        let key = match prepared {
            Some(key) => Some(key),
            None => self.sealing(place.table, place.client, family).await?,
        };
        let Some(key) = key else { return Ok(None) };
        seal(secret.expose().as_bytes(), &key, &place.label(place.version), now).map(Some)
    }

    /// Opens what is sealed.
    ///
    /// # Errors
    /// See [`SealError`].
    pub async fn open(&self, sealed: &str, place: &Place<'_>) -> Result<Opened, SealError> {
        let envelope = of_this_place(sealed, place)?;
        let key = self.opening(envelope.kid()?, place).await?;
        opened(&envelope, &key, place)
    }

    /// The same with keys that are at hand, asking nobody.
    ///
    /// # Errors
    /// See [`SealError`].
    pub fn open_at_hand(&self, sealed: &str, place: &Place<'_>) -> Result<Opened, SealError> {
        let envelope = of_this_place(sealed, place)?;
        let kid = envelope.kid()?;
        let key = match (KeyName::parse(kid), &self.kms, &self.local) {
            (Some(name), Some(ring), _) if name.series.family == Family::of(place.attribute) => {
                ring.opening_at_hand(&name)
            }
            (None, _, Some(local)) => local.find(kid).ok(),
            _ => None,
        };
        let key = key.ok_or_else(|| SealError::NoAnswer(format!("the key `{kid}` is not at hand")))?;
        opened(&envelope, &key, place)
    }

    async fn sealing(&self, table: &str, client: &str, family: Family) -> Result<Option<Key>, SealError> {
        let missing =
            |what: &str| SealError::Refused(format!("sealing.mode asks for {what}, and there is none"));
        match self.mode {
            Mode::Off => Ok(None),
            Mode::Local => {
                let key = self.local.as_ref().and_then(|keys| keys.0.first());
                key.cloned().map(Some).ok_or_else(|| missing("a key of this machine's"))
            }
            Mode::Kms => {
                let ring = self.kms.as_ref().ok_or_else(|| missing("keys of KMS"))?;
                ring.sealing(table, family, client).await.map(Some)
            }
        }
    }

    async fn opening(&self, kid: &str, place: &Place<'_>) -> Result<Key, SealError> {
        let unknown = || SealError::UnknownKey(shown::clipped(kid, 64));
        if kid.starts_with("local/") {
            return self.local.as_ref().ok_or_else(unknown)?.find(kid);
        }
        let (name, ring) = (KeyName::parse(kid).ok_or_else(unknown)?, self.kms.as_ref().ok_or_else(unknown)?);
        if name.series.table != place.table || name.series.family != Family::of(place.attribute) {
            return Err(SealError::Misplaced("kid"));
        }
        ring.opening(&name).await
    }
}

/// A sealed value that says that it belongs there.
fn of_this_place<'a>(sealed: &'a str, place: &Place<'_>) -> Result<Envelope<'a>, SealError> {
    let envelope = Envelope::parse(sealed)?;
    let version = envelope.version()?;
    envelope.belongs(&place.label(version))?;
    // Access tokens are written with each generation; the rest may be older than its item.
    if version > place.version || (place.attribute == "access_token" && version < place.version) {
        return Err(SealError::Misplaced("ver"));
    }
    Ok(envelope)
}

fn opened(envelope: &Envelope<'_>, key: &Key, place: &Place<'_>) -> Result<Opened, SealError> {
    let version = envelope.version()?;
    let mut opened = envelope.open(key, &place.label(version))?;
    let text = Zeroizing::new(std::mem::take(&mut *opened.content));
    let text = std::str::from_utf8(&text).map_err(|_| SealError::Tampered)?;
    Ok(Opened { secret: Secret::new(text), version })
}

/// An opened secret.
pub struct Opened {
    /// The secret.
    pub secret: Secret,
    /// The generation that sealed it.
    pub version: i64,
}

impl<'a> Place<'a> {
    fn label(&self, version: i64) -> Label<'a> {
        let Self { table, client, attribute, .. } = *self;
        Label { table, client, attribute, version }
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({:?})", self.mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn keys(mode: Mode) -> Keys {
        Keys { mode, local: Some(LocalKeys::parse(&"07".repeat(32)).expect("a key")), kms: None }
    }

    fn place(attribute: &'static str, version: i64) -> Place<'static> {
        Place { table: "t", client: "c", attribute, version }
    }

    #[tokio::test]
    async fn what_was_sealed_opens_in_its_place_whatever_seals_now() {
        let sealed = keys(Mode::Local).seal(&"canary".into(), &place("refresh_token", 3), NOW).await;
        let sealed = sealed.expect("sealed").expect("something seals");
        assert!(Keys::is_sealed(&sealed) && !sealed.contains("canary"));
        let opened = keys(Mode::Off).open(&sealed, &place("refresh_token", 5)).await.expect("opened");
        assert_eq!((opened.secret.expose(), opened.version), ("canary", 3));
        for (elsewhere, part) in [
            (Place { client: "d", ..place("refresh_token", 5) }, "cid"),
            (place("client_secret", 5), "att"),
            (place("refresh_token", 2), "ver"),
        ] {
            let refused = keys(Mode::Local).open(&sealed, &elsewhere).await.err();
            assert_eq!(refused, Some(SealError::Misplaced(part)));
        }
    }

    #[tokio::test]
    async fn an_access_token_is_of_its_items_generation() {
        let sealed = keys(Mode::Local).seal(&"a".into(), &place("access_token", 3), NOW).await;
        let sealed = sealed.expect("sealed").expect("something seals");
        let older = keys(Mode::Local).open(&sealed, &place("access_token", 4)).await.err();
        assert_eq!(older, Some(SealError::Misplaced("ver")), "one that was put back");
    }

    #[tokio::test]
    async fn what_a_later_version_sealed_is_refused_and_not_taken_for_plain() {
        use base64::Engine as _;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let sealed = keys(Mode::Local).seal(&"canary".into(), &place("refresh_token", 3), NOW).await;
        let sealed = sealed.expect("sealed").expect("something seals");
        let (header, rest) = sealed.split_once('.').expect("parts");
        let header = String::from_utf8(URL_SAFE_NO_PAD.decode(header).expect("base64url")).expect("text");
        let later = header.replace("\"iat\"", "\"novel\":1,\"iat\"");
        let later = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(later));
        assert!(Keys::is_sealed(&later), "it would be sent to a provider");
        assert_eq!(Keys::name_of(&later), Keys::name_of(&sealed));
        let refused = keys(Mode::Local).open(&later, &place("refresh_token", 3)).await.err();
        assert!(matches!(refused, Some(SealError::Malformed(_))), "{refused:?}");
    }

    #[test]
    fn tokens_of_providers_are_not_taken_for_sealed_ones() {
        for token in [
            "opaque",
            "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
            "eyJhbGciOiJSU0EtT0FFUCJ9.a.b.c.d",
            "eyJ....",
            "",
        ] {
            assert!(!Keys::is_sealed(token), "{token}");
        }
    }
}
