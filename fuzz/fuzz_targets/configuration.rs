//! See `tests/hostile/entries`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| perennial_fuzz::enter("configuration", data));
