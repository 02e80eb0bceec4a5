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
    let mut text = content.to_vec();
    let tag = cipher(&cek)
        .map_err(failed)?
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(iv), Aad::from(header.as_bytes()), &mut text)
        .map_err(failed)?;
    let parts = [&wrapped[..], &iv, &text, tag.as_ref()].map(|part| URL_SAFE_NO_PAD.encode(part));
    Ok(format!("{header}.{}", parts.join(".")))
}

pub(super) fn open(sealed: &str, keys: &[Key], label: &Label<'_>) -> Result<Opened, SealError> {
    let parts: Vec<&str> = sealed.split('.').collect();
    let [protected, wrapped, iv, text, tag] = parts.as_slice() else {
        return Err(SealError::Malformed("it does not have five parts"));
    };
    let bytes = decode(protected)?;
    let header: Header<'_> =
        serde_json::from_slice(&bytes).map_err(|_| SealError::Malformed("its header is not ours"))?;
    if header.alg != ALG || header.enc != ENC {
        return Err(SealError::Malformed("its algorithms are not ours"));
    }
    belongs(&header, label)?;
    let key = keys.iter().find(|key| key.id == header.kid);
    let key = key.ok_or_else(|| SealError::UnknownKey(header.kid.chars().take(64).collect()))?;
    let tampered = |_| SealError::Tampered;
    let mut cek = Zeroizing::new([0_u8; 40]);
    let kek = AesKek::new(&AES_256, key.bytes.as_slice()).map_err(tampered)?;
    let cek = kek.unwrap(&decode(wrapped)?, cek.as_mut_slice()).map_err(tampered)?;
    let cek = Zeroizing::new(<[u8; 32]>::try_from(&*cek).map_err(|_| SealError::Tampered)?);
    let iv: [u8; IV] = decode(iv)?.try_into().map_err(|_| SealError::Tampered)?;
    let tag: [u8; TAG] = decode(tag)?.try_into().map_err(|_| SealError::Tampered)?;
    let mut content = Zeroizing::new(decode(text)?);
    content.extend_from_slice(&tag);
    let length = cipher(&cek)
        .map_err(tampered)?
        .open_in_place(
            Nonce::assume_unique_for_key(iv),
            Aad::from(protected.as_bytes()),
            content.as_mut_slice(),
        )
        .map_err(tampered)?
        .len();
    content.truncate(length);
    Ok(Opened { content, sealed_at: Timestamp::from_secs(header.iat) })
}

fn belongs(header: &Header<'_>, label: &Label<'_>) -> Result<(), SealError> {
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

fn cipher(cek: &[u8; 32]) -> Result<LessSafeKey, aws_lc_rs::error::Unspecified> {
    Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, cek)?))
}

fn decode(part: &str) -> Result<Vec<u8>, SealError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| SealError::Malformed("a part of it is not base64url"))
}
