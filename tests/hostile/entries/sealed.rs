//! Sealed values: the first byte chooses a way to spoil a sound one, or to bring in a text of the stranger's own.

use perennial::seal::{Label, LocalKeys, SealError};
use perennial::time::Timestamp;

use super::bytes::Bytes;

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const OTHER: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";
const CANARY: &str = "hunter2-canary";
const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const LABEL: Label<'static> =
    Label { table: "tokens", client: "crm-7", attribute: "refresh_token", version: 7 };

/// Anything but what was sealed, for anybody but whom it was sealed for.
pub(crate) fn jwe(data: &[u8]) {
    let keys = LocalKeys::parse(KEY).expect("a key");
    let mut bytes = Bytes(data);
    match bytes.byte() % 6 {
        0 => refused(&keys, &String::from_utf8_lossy(bytes.0)),
        1 => opens_in_its_place(&keys, bytes.0),
        2 => refused_with_a_bit_turned(&keys, &mut bytes),
        3 => refused_with_a_part_replaced(&keys, &mut bytes),
        4 => refused_elsewhere(&keys, &mut bytes),
        _ => refused_with_a_header(&keys, bytes.0),
    }
}

fn sealed(keys: &LocalKeys, content: &[u8]) -> String {
    keys.seal(content, &LABEL, NOW).expect("sealed")
}

/// It does not open, and what is said about it is short, fits a line, and has nothing of the content.
fn refused(keys: &LocalKeys, sealed: &str) {
    match keys.open(sealed, &LABEL) {
        Ok(_) => panic!("it opens: {sealed}"),
        Err(error) => says_nothing(&error),
    }
}

fn says_nothing(error: &SealError) {
    let told = error.to_string();
    assert!(!told.contains(CANARY) && !format!("{error:?}").contains(CANARY), "the content is shown: {told}");
    assert!(!told.chars().any(char::is_control), "{told:?}");
    assert!(told.len() < 400, "{} bytes of error", told.len());
}

fn opens_in_its_place(keys: &LocalKeys, content: &[u8]) {
    let sealed = sealed(keys, content);
    let opened = keys.open(&sealed, &LABEL).expect("what was sealed opens");
    assert_eq!((opened.content.as_slice(), opened.sealed_at), (content, NOW));
    let other = LocalKeys::parse(OTHER).expect("a key");
    assert!(matches!(other.open(&sealed, &LABEL), Err(SealError::UnknownKey(_))));
    assert_ne!(sealed, self::sealed(keys, content), "every message has a key and a nonce of its own");
}

fn refused_with_a_bit_turned(keys: &LocalKeys, bytes: &mut Bytes<'_>) {
    let mut changed = sealed(keys, CANARY.as_bytes()).into_bytes();
    let at = usize::from(u16::from_be_bytes([bytes.byte(), bytes.byte()])) % changed.len();
    changed[at] ^= 1 << (bytes.byte() % 8);
    refused(keys, &String::from_utf8_lossy(&changed));
}

fn refused_with_a_part_replaced(keys: &LocalKeys, bytes: &mut Bytes<'_>) {
    let sound = sealed(keys, CANARY.as_bytes());
    let mut parts: Vec<_> = sound.split('.').map(str::to_owned).collect();
    let at = usize::from(bytes.byte()) % parts.len();
    let part = String::from_utf8_lossy(bytes.0).into_owned();
    if parts[at] != part {
        parts[at] = part;
        refused(keys, &parts.join("."));
    }
}

fn refused_elsewhere(keys: &LocalKeys, bytes: &mut Bytes<'_>) {
    let sealed = sealed(keys, CANARY.as_bytes());
    let (table, client, attribute) = (bytes.text(40), bytes.text(40), bytes.text(40));
    let label =
        Label { table: &table, client: &client, attribute: &attribute, version: i64::from(bytes.byte()) };
    if label != LABEL {
        let error = keys.open(&sealed, &label).err().expect("it was sealed for another place");
        assert!(matches!(error, SealError::Misplaced(_)), "{error}");
        says_nothing(&error);
    }
}

/// A header of the stranger's own, before parts that are sound.
fn refused_with_a_header(keys: &LocalKeys, header: &[u8]) {
    use base64::Engine as _;
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(header);
    let sound = sealed(keys, CANARY.as_bytes());
    let (own, rest) = sound.split_once('.').expect("five parts");
    if own != header {
        refused(keys, &format!("{header}.{rest}"));
    }
}
