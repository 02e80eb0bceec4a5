//! The entries that are fuzzed: those of `tests/hostile.rs`, so that what is found here is kept there.

#[path = "../../tests/hostile/entries/mod.rs"]
mod entries;

/// Brings these bytes in by the door of this name.
///
/// # Panics
/// Where a promise is broken; and where there is no such door.
pub fn enter(door: &str, data: &[u8]) {
    let (_, entry) = entries::ENTRIES.iter().find(|(name, _)| *name == door).expect("a door of this name");
    entry(data);
}
