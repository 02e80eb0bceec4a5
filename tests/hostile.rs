//! The stranger at every door: whatever bytes come in as an answer, an item, a configuration, a sealed value or a
//! request, what each entry promises holds. `make fuzz` searches the same entries with coverage to guide it; what it has
//! found interesting is replayed here.

mod hostile {
    pub(crate) mod entries;
    pub(crate) mod found;
}

use std::path::Path;

use hostile::entries::{ENTRIES, Entry};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

/// Random bytes, and committed inputs with random changes, for each entry.
fn property((name, entry): Entry) {
    let seeds = corpus(name);
    let changed = (0..seeds.len(), prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8))
        .prop_map(move |(at, changes)| spoilt(&seeds[at], &changes));
    let input = prop_oneof![prop::collection::vec(any::<u8>(), 0..300), changed];
    // A failure prints the input that is left after shrinking, and the seed that leads there.
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    runner.run(&input, |bytes| whole(entry, &bytes)).unwrap_or_else(|failure| panic!("{name}: {failure}"));
}

fn whole(entry: fn(&[u8]), bytes: &[u8]) -> Result<(), TestCaseError> {
    let shown = String::from_utf8_lossy(bytes);
    std::panic::catch_unwind(|| entry(bytes)).map_err(|_| TestCaseError::fail(format!("{bytes:?} {shown:?}")))
}

fn spoilt(seed: &[u8], changes: &[(prop::sample::Index, u8)]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for (at, byte) in changes.iter().filter(|_| !seed.is_empty()) {
        bytes[at.index(seed.len())] = *byte;
    }
    bytes
}

/// What fuzzing has found to reach something new.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|file| file.expect("a file").path())
        .collect();
    files.sort();
    assert!(files.len() > 10, "{} holds too little to begin with", folder.display());
    files.iter().map(|file| std::fs::read(file).expect("a readable file")).collect()
}

#[test]
fn what_fuzzing_has_found_is_replayed() {
    for (name, entry) in ENTRIES {
        for (at, input) in corpus(name).iter().enumerate() {
            whole(entry, input).unwrap_or_else(|failure| panic!("{name}, number {at}: {failure}"));
        }
    }
}

#[test]
fn any_answer_with_tokens_is_read_soundly() {
    property(ENTRIES[0]);
}

#[test]
fn any_answer_without_them_is_no_more_than_a_code() {
    property(ENTRIES[1]);
}

#[test]
fn any_item_is_understood_or_named() {
    property(ENTRIES[2]);
}

#[test]
fn any_configuration_is_sound_or_refused_by_its_keys() {
    property(ENTRIES[3]);
}

#[test]
fn nothing_opens_but_what_was_sealed_in_its_place() {
    property(ENTRIES[4]);
}

#[test]
fn any_request_has_one_answer_in_time() {
    property(ENTRIES[5]);
}
