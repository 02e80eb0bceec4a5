//! JWE compact serialization (RFC 7516 section 7.1) with A256KW (RFC 7518 section 4.4) and A256GCM (section 5.3).

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap as _};
use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Key, Label, Opened, SealError};
use crate::time::Timestamp;

const ALG: &str = "A256KW";
const ENC: &str = "A256GCM";
/// A wrapped key of 32 bytes (RFC 3394).
const WRAPPED: usize = 40;
const IV: usize = 12;
const TAG: usize = 16;

/// The protected header. A member that is not named here is refused: `zip` and `crit` among them.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header<'a> {
    alg: &'a str,
    enc: &'a str,
    kid: &'a str,
    tbl: &'a str,
    cid: &'a str,
    att: &'a str,
    ver: i64,
    iat: i64,
}

pub(super) fn seal(
    content: &[u8],
    key: &Key,
    label: &Label<'_>,
    now: Timestamp,
) -> Result<String, SealError> {
    let Label { table, client, attribute, version } = *label;
    let header = Header {
        alg: ALG,
        enc: ENC,
        kid: &key.id,
        tbl: table,
        cid: client,
        att: attribute,
        ver: version,
        iat: now.as_secs(),
    };
    let header = serde_json::to_vec(&header).map_err(|_| SealError::Unsealed)?;
    let header = URL_SAFE_NO_PAD.encode(header);
    let failed = |_| SealError::Unsealed;
    let (mut cek, mut iv, mut wrapped) = (Zeroizing::new([0_u8; 32]), [0_u8; IV], [0_u8; WRAPPED]);
    rand::fill(cek.as_mut_slice()).map_err(failed)?;
    rand::fill(&mut iv).map_err(failed)?;
    let kek = AesKek::new(&AES_256, key.bytes.as_slice()).map_err(failed)?;
    kek.wrap(cek.as_slice(), &mut wrapped).map_err(failed)?;
    let mut text = Zeroizing::new(content.to_vec());
    let tag = cipher(&cek)
        .map_err(failed)?
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(iv),
            Aad::from(header.as_bytes()),
            text.as_mut_slice(),
        )
        .map_err(failed)?;
    let parts = [&wrapped[..], &iv, text.as_slice(), tag.as_ref()].map(|part| URL_SAFE_NO_PAD.encode(part));
    Ok(format!("{header}.{}", parts.join(".")))
}

/// The header of a text that is a JWE with members of ours, whatever else it has.
pub(super) fn ours(text: &str) -> Option<serde_json::Map<String, serde_json::Value>> {
    let (protected, rest) = text.split_once('.').filter(|_| text.starts_with("eyJ"))?;
    let header: serde_json::Map<_, _> = serde_json::from_slice(&decode(protected).ok()?).ok()?;
    let named = ["tbl", "cid", "att"].iter().all(|name| header.contains_key(*name));
    (named && rest.matches('.').count() == 3).then_some(header)
}

/// A sealed value, taken apart and not opened yet.
pub(super) struct Envelope<'a> {
    protected: &'a str,
    wrapped: &'a str,
    iv: &'a str,
    text: &'a str,
    tag: &'a str,
    bytes: Vec<u8>,
}

impl<'a> Envelope<'a> {
    /// Takes it apart.
    pub(super) fn parse(sealed: &'a str) -> Result<Self, SealError> {
        let mut parts = sealed.split('.');
        let mut part = || parts.next().ok_or(SealError::Malformed("it does not have five parts"));
        let (protected, wrapped, iv, text, tag) = (part()?, part()?, part()?, part()?, part()?);
        if parts.next().is_some() {
            return Err(SealError::Malformed("it does not have five parts"));
        }
        let envelope = Self { protected, wrapped, iv, text, tag, bytes: decode(protected)? };
        let header = envelope.header()?;
        if header.alg != ALG || header.enc != ENC {
            return Err(SealError::Malformed("its algorithms are not ours"));
        }
        Ok(envelope)
    }

    fn header(&self) -> Result<Header<'_>, SealError> {
        serde_json::from_slice(&self.bytes).map_err(|_| SealError::Malformed("its header is not ours"))
    }

    /// The name of the key that it was sealed with.
    pub(super) fn kid(&self) -> Result<&str, SealError> {
        Ok(self.header()?.kid)
    }

    /// The generation that wrote it, as it says; believed once it is opened.
    pub(super) fn version(&self) -> Result<i64, SealError> {
        Ok(self.header()?.ver)
    }

    /// Whether it says that it belongs there.
    pub(super) fn belongs(&self, label: &Label<'_>) -> Result<(), SealError> {
        let header = self.header()?;
        let parts = [
            ("tbl", header.tbl == label.table),
            ("cid", header.cid == label.client),
            ("att", header.att == label.attribute),
            ("ver", header.ver == label.version),
        ];
        match parts.into_iter().find(|(_, same)| !same) {
            Some((part, _)) => Err(SealError::Misplaced(part)),
            None => Ok(()),
        }
    }

    pub(super) fn open(&self, key: &Key, label: &Label<'_>) -> Result<Opened, SealError> {
        self.belongs(label)?;
        let header = self.header()?;
        let tampered = |_| SealError::Tampered;
        let mut cek = Zeroizing::new([0_u8; 40]);
        let kek = AesKek::new(&AES_256, key.bytes.as_slice()).map_err(tampered)?;
        let cek = kek.unwrap(&decode(self.wrapped)?, cek.as_mut_slice()).map_err(tampered)?;
        let cek = Zeroizing::new(<[u8; 32]>::try_from(&*cek).map_err(|_| SealError::Tampered)?);
        let iv: [u8; IV] = decode(self.iv)?.try_into().map_err(|_| SealError::Tampered)?;
        let tag: [u8; TAG] = decode(self.tag)?.try_into().map_err(|_| SealError::Tampered)?;
        let mut content = Zeroizing::new(decode(self.text)?);
        content.extend_from_slice(&tag);
        let length = cipher(&cek)
            .map_err(tampered)?
            .open_in_place(
                Nonce::assume_unique_for_key(iv),
                Aad::from(self.protected.as_bytes()),
                content.as_mut_slice(),
            )
            .map_err(tampered)?
            .len();
        content.truncate(length);
        Ok(Opened { content, sealed_at: Timestamp::from_secs(header.iat) })
    }
}

fn cipher(cek: &[u8; 32]) -> Result<LessSafeKey, aws_lc_rs::error::Unspecified> {
    Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, cek)?))
}

fn decode(part: &str) -> Result<Vec<u8>, SealError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| SealError::Malformed("a part of it is not base64url"))
}
