//! What is sealed, and what must be refused.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::parties::{Parties, Place, Sealing};

pub(crate) const TABLE: &str = "client-credentials";
/// Another table, whose keys are in the same table of keys.
const OTHER_TABLE: &str = "billing";
const CLIENT: &str = "crm-7";
const VERSION: i64 = 12;
pub(crate) const SEALED_AT: i64 = 1_800_000_000;

/// `tests/vectors/sealing.json`.
#[derive(Serialize, Deserialize)]
pub(crate) struct Vectors {
    about: String,
    /// In hexadecimal, by name.
    keys: BTreeMap<String, String>,
    pub(crate) opens: Vec<Opens>,
    pub(crate) refuses: Vec<Refuses>,
    /// Tokens of providers: not sealed by this program.
    plain: Vec<String>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Opens {
    pub(crate) name: String,
    pub(crate) by: String,
    pub(crate) place: Place,
    pub(crate) plaintext: String,
    pub(crate) sealed: String,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Refuses {
    pub(crate) name: String,
    pub(crate) by: String,
    pub(crate) place: Place,
    /// Words that every refusal of it has.
    pub(crate) says: Vec<String>,
    pub(crate) sealed: String,
}

/// A secret in its place.
pub(crate) struct Good {
    pub(crate) name: &'static str,
    pub(crate) kid: String,
    pub(crate) place: Place,
    pub(crate) plaintext: String,
}

impl Good {
    /// As any library seals it.
    pub(crate) fn sealing(&self, keys: &BTreeMap<String, String>) -> Sealing {
        let (plaintext, key) = (self.plaintext.clone(), keys[&self.kid].clone());
        Sealing { header: header(&self.kid, &self.place), plaintext, key }
    }
}

fn header(kid: &str, place: &Place) -> Value {
    let Place { table, client, attribute, version } = place;
    json!({
        "alg": "A256KW", "enc": "A256GCM", "kid": kid,
        "tbl": table, "cid": client, "att": attribute, "ver": version, "iat": SEALED_AT,
    })
}

pub(crate) fn kid(table: &str, family: &str) -> String {
    format!("{table}/{family}/s0/v1")
}

fn key_of(name: &str) -> String {
    hex(&Sha256::digest(format!("a key of Perennial's test vectors: {name}")))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn bytes(hex: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(byte).collect()
}

pub(crate) fn local_kid() -> String {
    format!("local/{}", hex(&Sha256::digest(bytes(&key_of("local")))[..8]))
}

/// As long as DynamoDB lets a table's name be.
fn longest_table() -> String {
    "t".repeat(255)
}

/// Every key, by its name: those of both families, so that a reader that could open refuses all the same.
pub(crate) fn keys() -> BTreeMap<String, String> {
    let longest = longest_table();
    let names = [kid(TABLE, "at"), kid(TABLE, "rt"), kid(OTHER_TABLE, "at"), kid(&longest, "at")];
    let wrapped = names.into_iter().map(|name| (name.clone(), key_of(&name)));
    wrapped.chain([(local_kid(), key_of("local"))]).collect()
}

pub(crate) fn goods() -> Vec<Good> {
    let here = Place::access(TABLE, CLIENT, VERSION);
    let good = |name, plaintext: &str| {
        let (kid, place, plaintext) = (kid(TABLE, "at"), here.clone(), plaintext.to_owned());
        Good { name, kid, place, plaintext }
    };
    let longest = longest_table();
    let refresh = Place { attribute: "refresh_token".into(), ..here.clone() };
    vec![
        good("a token", "mF_9.B5f-4.1JqM"),
        good("an empty one", ""),
        good("one of 2 KB", &"eyJhbGciOiJSUzI1NiJ9.".repeat(100)),
        good("any characters", "\u{feff}grüße ☃ \u{1f5dd} \"\\\n\t\u{0}"),
        Good { kid: local_kid(), ..good("under a key of the machine", "mF_9.B5f-4.1JqM") },
        Good { place: Place::access(TABLE, CLIENT, 0), ..good("the first generation", "first") },
        Good {
            kid: kid(&longest, "at"),
            place: Place::access(&longest, &"c".repeat(128), i64::from(u32::MAX)),
            ..good("the longest names", "long")
        },
        Good { kid: kid(TABLE, "rt"), place: refresh, ..good("a refresh token", "tGzv3JOkF0XG5Qx2TlKWIA") },
    ]
}

/// What a sealer who has keys, and means harm or errs, could make. The place is where it is found.
struct Bad {
    name: &'static str,
    header: Value,
    key: String,
    place: Place,
    says: &'static [&'static str],
}

fn bads() -> Vec<Bad> {
    let here = Place::access(TABLE, CLIENT, VERSION);
    let at = kid(TABLE, "at");
    let sealed_for = |name, place: Place, says| Bad {
        name,
        header: header(&at, &place),
        key: key_of(&at),
        place: here.clone(),
        says,
    };
    let with = |name, changes: Value, says| {
        let mut bad = sealed_for(name, here.clone(), says);
        for (member, value) in changes.as_object().expect("members") {
            bad.header[member] = value.clone();
        }
        bad
    };
    let under = |name, kid: &str, says| Bad { key: key_of(kid), ..with(name, json!({ "kid": kid }), says) };
    let mut without = with("a member is missing", json!({}), &["header"]);
    without.header.as_object_mut().expect("members").remove("iat");
    vec![
        sealed_for("moved from another client", Place { client: "crm-8".into(), ..here.clone() }, &["`cid`"]),
        sealed_for(
            "moved from another attribute",
            Place { attribute: "refresh_token".into(), ..here.clone() },
            &["`att`"],
        ),
        sealed_for(
            "moved from another table",
            Place { table: OTHER_TABLE.into(), ..here.clone() },
            &["`tbl`"],
        ),
        sealed_for("of a newer generation", Place { version: VERSION + 1, ..here.clone() }, &["`ver`"]),
        sealed_for("put back from an older one", Place { version: VERSION - 1, ..here.clone() }, &["`ver`"]),
        under("under the other family's key", &kid(TABLE, "rt"), &["`kid`"]),
        under("under another table's key", &kid(OTHER_TABLE, "at"), &["`kid`"]),
        Bad {
            key: key_of(&at),
            ..under("under a key that is not there", "client-credentials/at/s0/v9", &[])
        },
        Bad {
            key: key_of(&at),
            ..under("a key's name spelt otherwise", "client-credentials/at/s00/v1", &[])
        },
        Bad { key: key_of("another"), ..with("under another key of the name", json!({}), &[]) },
        with("alg dir", json!({ "alg": "dir" }), &["algorithms"]),
        Bad {
            key: key_of(&at)[..32].to_owned(),
            ..with("alg A128KW", json!({ "alg": "A128KW" }), &["algorithms"])
        },
        with("alg A256GCMKW", json!({ "alg": "A256GCMKW" }), &["header"]),
        with("enc A128GCM", json!({ "enc": "A128GCM" }), &["algorithms"]),
        with("enc A256CBC-HS512", json!({ "enc": "A256CBC-HS512" }), &["algorithms"]),
        with("zip", json!({ "zip": "DEF" }), &["header"]),
        with("crit", json!({ "crit": ["tbl"] }), &["header"]),
        with("a member too many", json!({ "typ": "JWE" }), &["header"]),
        with("a version in quotes", json!({ "ver": "12" }), &["header"]),
        with("a version that is true", json!({ "ver": true }), &["header"]),
        without,
    ]
}

/// A message that is in its place, with one part changed.
fn mangled(sealed: &str, other: &str) -> Vec<(&'static str, String)> {
    let (parts, others): (Vec<_>, Vec<_>) = (sealed.split('.').collect(), other.split('.').collect());
    let with = |at: usize, part: &str| {
        let mut parts = parts.clone();
        parts[at] = part;
        parts.join(".")
    };
    let flipped = |at: usize| {
        let mut bytes = URL_SAFE_NO_PAD.decode(parts[at]).expect("base64url");
        bytes[0] ^= 1;
        with(at, &URL_SAFE_NO_PAD.encode(bytes))
    };
    vec![
        ("another's under its header", [&parts[..1], &others[1..]].concat().join(".")),
        ("its wrapped key changed", flipped(1)),
        ("another's wrapped key", with(1, others[1])),
        ("its nonce changed", flipped(2)),
        ("its text changed", flipped(3)),
        ("its text left out", with(3, "")),
        ("its tag changed", flipped(4)),
        ("its tag cut short", with(4, &parts[4][..16])),
        ("four parts", parts[..4].join(".")),
        ("six parts", format!("{sealed}.")),
    ]
}

pub(crate) fn refused_names() -> BTreeSet<(&'static str, &'static str)> {
    let crafted = bads().into_iter().flat_map(|bad| [(bad.name, "jose"), (bad.name, "joserfc")]);
    let mangled = mangled("AA.AA.AA.AA.AAAAAAAAAAAAAAAAAAAAAA", "B.B.B.B.B");
    crafted.chain(mangled.into_iter().map(|(name, _)| (name, "perennial"))).collect()
}

/// Tokens that providers issue, JWE among them.
pub(crate) fn foreign() -> Vec<String> {
    let encrypted = |header: Value| format!("{}.a.b.c.d", URL_SAFE_NO_PAD.encode(header.to_string()));
    vec![
        String::new(),
        "mF_9.B5f-4.1JqM".into(),
        "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln".into(),
        "eyJ....".into(),
        encrypted(json!({ "alg": "RSA-OAEP-256", "enc": "A256GCM", "cty": "JWT" })),
        encrypted(json!({ "alg": "A256KW", "enc": "A256GCM", "kid": "client-credentials/at/s0/v1" })),
        encrypted(json!({ "alg": "dir", "enc": "A256GCM", "cid": "7" })),
    ]
}

pub(crate) async fn make(parties: &Parties) -> Vectors {
    let goods = goods();
    let mut opens = Vec::new();
    for (by, messages) in parties.seal(&goods).await {
        for (good, sealed) in goods.iter().zip(messages) {
            let (name, place, plaintext) = (good.name.to_owned(), good.place.clone(), good.plaintext.clone());
            opens.push(Opens { name, by: by.to_owned(), place, plaintext, sealed });
        }
    }
    let bads = bads();
    let orders: Vec<_> = bads
        .iter()
        .map(|Bad { header, key, .. }| Sealing {
            header: header.clone(),
            plaintext: "never to be seen".into(),
            key: key.clone(),
        })
        .collect();
    let mut refuses = Vec::new();
    for by in ["jose", "joserfc"] {
        for (bad, sealed) in bads.iter().zip(parties.seal_by(by, &orders).await) {
            let says = bad.says.iter().map(ToString::to_string).collect();
            let (name, by, place) = (bad.name.to_owned(), by.to_owned(), bad.place.clone());
            refuses.push(Refuses { name, by, place, says, sealed });
        }
    }
    let here = Place::access(TABLE, CLIENT, VERSION);
    let next_door = Place::access(TABLE, "crm-8", VERSION);
    let pair = [&next_door, &here].map(|place| Good {
        name: "",
        kid: kid(TABLE, "at"),
        place: place.clone(),
        plaintext: "never to be seen".into(),
    });
    let pair = &parties.seal(&pair).await["perennial"];
    for (name, sealed) in mangled(&pair[1], &pair[0]) {
        let (name, by, place) = (name.to_owned(), "perennial".to_owned(), here.clone());
        refuses.push(Refuses { name, by, place, says: Vec::new(), sealed });
    }
    Vectors {
        about: "Sealed secrets, each to be opened in its place or refused there. Made by PERENNIAL_BLESS=1 cargo test --test interop."
            .into(),
        keys: keys(),
        opens,
        refuses,
        plain: foreign(),
    }
}
