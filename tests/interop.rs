//! Sealed secrets between languages: what Rust, Node.js (`jose`) and Python (`joserfc`) seal, all of them open, and what one
//! must refuse, all of them refuse.
//!
//! `tests/vectors/sealing.json` holds messages of each for good: a change of the format that forgets what stands in tables
//! breaks here. `PERENNIAL_BLESS=1 cargo test --test interop` makes it anew; then look at what has changed.

mod support;

mod interop {
    pub(crate) mod cases;
    pub(crate) mod parties;
    pub(crate) mod readers;
}

use std::collections::{BTreeMap, BTreeSet};

use interop::cases::{self, Opens, Refuses, Vectors};
use interop::parties::{Opening, Outcome, Parties, Place};
use rand::RngExt as _;
use rand::SeedableRng as _;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/sealing.json");

/// The vectors; made anew first, where that is asked for.
#[allow(clippy::disallowed_methods, reason = "tests look at their own environment")]
async fn vectors(parties: &Parties) -> Vectors {
    static BLESSED: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
    if std::env::var_os("PERENNIAL_BLESS").is_some() {
        let bless = async || {
            let made = serde_json::to_string_pretty(&cases::make(parties).await).expect("JSON");
            std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors")).expect("a folder");
            std::fs::write(FILE, made + "\n").expect("tests/ is writable");
        };
        BLESSED.get_or_init(bless).await;
    }
    let text = std::fs::read_to_string(FILE).expect("the vectors are there: PERENNIAL_BLESS=1 makes them");
    serde_json::from_str(&text).expect("the vectors are JSON of their form")
}

fn opening(place: &Place, sealed: &str) -> Opening {
    Opening { place: place.clone(), sealed: sealed.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_opens_what_any_has_sealed() {
    let parties = Parties::new().await;
    let Vectors { opens, .. } = vectors(&parties).await;
    let found: BTreeSet<_> = opens.iter().map(|case| (case.name.as_str(), case.by.as_str())).collect();
    let goods = cases::goods();
    let wanted = goods.iter().flat_map(|good| Parties::NAMES.map(|by| (good.name, by)));
    assert_eq!(found, wanted.collect(), "PERENNIAL_BLESS=1 makes the vectors");

    let orders: Vec<_> = opens.iter().map(|case| opening(&case.place, &case.sealed)).collect();
    for (party, answer) in parties.open(&orders).await {
        for (Opens { name, by, place, plaintext, .. }, outcome) in opens.iter().zip(answer.opened) {
            // What is no access token is none of a reader's business.
            let may = party == "perennial" || place.attribute == "access_token";
            match outcome {
                Outcome::Plaintext(found) => {
                    assert!(may, "{party} opened `{name}` of {by}");
                    assert_eq!(found, *plaintext, "{party}, `{name}` of {by}");
                }
                Outcome::Refused(why) => assert!(!may, "{party} refused `{name}` of {by}: {why}"),
            }
        }
        assert!(answer.ours.into_iter().all(|ours| ours), "{party} takes a sealed one for plain");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refuses_what_must_be_refused_and_takes_none_of_it_for_plain() {
    let parties = Parties::new().await;
    let Vectors { refuses, .. } = vectors(&parties).await;
    let found: BTreeSet<_> = refuses.iter().map(|case| (case.name.as_str(), case.by.as_str())).collect();
    assert_eq!(found, cases::refused_names(), "PERENNIAL_BLESS=1 makes the vectors");

    let orders: Vec<_> = refuses.iter().map(|case| opening(&case.place, &case.sealed)).collect();
    for (party, answer) in parties.open(&orders).await {
        let answers = answer.opened.into_iter().zip(answer.ours);
        for (Refuses { name, by, says, sealed, .. }, (outcome, ours)) in refuses.iter().zip(answers) {
            let Outcome::Refused(why) = outcome else { panic!("{party} opened `{name}` of {by}") };
            assert!(says.iter().all(|word| why.contains(word)), "{party}, `{name}` of {by}: {why}");
            assert_eq!(ours, sealed.split('.').count() == 5, "{party}, `{name}` of {by}: taken for plain");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_providers_are_plain_to_each() {
    let parties = Parties::new().await;
    let place = Place::access(cases::TABLE, "crm-7", 3);
    let orders: Vec<_> = cases::foreign().iter().map(|text| opening(&place, text)).collect();
    for (party, answer) in parties.open(&orders).await {
        for (order, ours) in orders.iter().zip(answer.ours) {
            assert!(!ours, "{party} takes {:?} for a sealed one", order.sealed);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_each_seals_today_the_others_open() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let goods: Vec<_> = (0..12)
        .map(|n| {
            let length =
                [random.random_range(0..40), random.random_range(0..100_000)][usize::from(n % 4 == 0)];
            let text = (0..length).map(|_| random.random_range(' '..'\u{d7ff}')).collect();
            let place = Place::access(cases::TABLE, &format!("client-{n}"), random.random_range(0..1 << 50));
            cases::Good { name: "random", kid: cases::kid(cases::TABLE, "at"), place, plaintext: text }
        })
        .collect();
    let parties = Parties::new().await;
    let sealed: BTreeMap<_, _> = parties.seal(&goods).await;
    for (by, messages) in sealed {
        let orders: Vec<_> =
            goods.iter().zip(&messages).map(|(good, sealed)| opening(&good.place, sealed)).collect();
        for (party, answer) in parties.open(&orders).await {
            for (good, outcome) in goods.iter().zip(answer.opened) {
                let right = matches!(&outcome, Outcome::Plaintext(text) if *text == good.plaintext);
                assert!(right, "{party} does not open what {by} sealed (seed {seed}): {outcome:.200?}");
            }
        }
    }
}
