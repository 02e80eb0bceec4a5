//! A wall clock that steps while a program runs (libfaketime), and steady clocks that are left alone.

use std::fs;
use std::path::{Path, PathBuf};

/// Of one program.
pub(crate) struct WallClock {
    library: String,
    file: PathBuf,
}

impl WallClock {
    /// A clock that is right so far. None where there is no library: clocks are then left alone, and the run says so.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub(crate) fn new(file: &Path) -> Option<Self> {
        let clock = Self { library: library()?, file: file.to_owned() };
        clock.step(0);
        Some(clock)
    }

    /// It is so many seconds off from now on.
    pub(crate) fn step(&self, seconds: i32) {
        // Replaced as a whole: it may be read at any time.
        let next = self.file.with_extension("next");
        fs::write(&next, format!("{seconds:+}\n")).expect("the folder is writable");
        fs::rename(&next, &self.file).expect("the folder is writable");
    }

    /// What has to be in the program's environment.
    pub(crate) fn variables(&self) -> [(&str, &str); 4] {
        [
            ("LD_PRELOAD", &self.library),
            ("FAKETIME_TIMESTAMP_FILE", self.file.to_str().expect("a path of ASCII")),
            ("DONT_FAKE_MONOTONIC", "1"),
            ("FAKETIME_NO_CACHE", "1"),
        ]
    }
}

/// The library that steps a program's wall clock and leaves its steady clocks alone: the system's, or the one that
/// `scripts/parts.sh` has unpacked. Where there is none, clocks are not skewed, and the run says so.
pub(crate) fn library() -> Option<String> {
    let unpacked = concat!(env!("CARGO_MANIFEST_DIR"), "/.parts/libfaketime");
    let mut places = Vec::new();
    for root in ["", unpacked] {
        for libraries in ["usr/lib", "usr/lib64"] {
            let libraries = PathBuf::from(format!("{root}/{libraries}"));
            let architectures =
                fs::read_dir(&libraries).into_iter().flatten().flatten().map(|entry| entry.path());
            places.extend(architectures.chain([libraries]));
        }
    }
    let files = places.into_iter().map(|place| place.join("faketime/libfaketime.so.1"));
    files.filter(|file| file.exists()).find_map(|file| file.to_str().map(str::to_owned))
}
