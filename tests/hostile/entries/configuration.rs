//! Configurations: the text of a file, and after a line `---` the environment, one `NAME=value` a line.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;

use perennial::config::{Config, ConfigError, Loaded, Sources};
use perennial::secret::Secret;
use tempfile::TempDir;

/// Stands where only secrets stand, before whatever the stranger writes.
const CANARY: &str = "hunter2-canary";

/// Any file, and any environment.
pub(crate) fn configuration(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (file, variables) = text.split_once("\n---\n").unwrap_or((&text, ""));
    let path = file_with(&format!("[providers.zz.headers]\nx-key = \"{CANARY}\\u0007\"\n{file}"));
    let mut environment: BTreeMap<_, _> = variables.lines().filter_map(variable).collect();
    environment.insert("PERENNIAL__SEALING__KEYS".to_owned(), CANARY.into());
    match Config::load(Sources { path: Some(path), environment: environment.clone() }) {
        Ok(_) => panic!("a header with a control character, and a key that is none"),
        Err(errors) => errors.0.iter().for_each(is_one_readable_line),
    }
    // The same without our own mistakes, so that what is sound is built as well.
    environment.remove("PERENNIAL__SEALING__KEYS");
    match Config::load(Sources { path: Some(file_with(file)), environment }) {
        Ok(loaded) => is_sound(&loaded),
        Err(errors) => {
            assert!(!errors.0.is_empty(), "refused without a reason");
            errors.0.iter().for_each(is_one_readable_line);
        }
    }
}

fn variable(line: &str) -> Option<(String, Secret)> {
    let (name, value) = line.split_once('=')?;
    Some((name.to_owned(), value.into()))
}

/// Names its key, says what to do, fits a line, and shows no secret.
fn is_one_readable_line(error: &ConfigError) {
    let told = error.to_string();
    assert!(!error.key.is_empty() && !error.problem.is_empty() && !error.remedy.is_empty(), "{told}");
    assert!(!told.contains(CANARY) && !format!("{error:?}").contains(CANARY), "a secret is shown: {told}");
    assert!(!told.chars().any(char::is_control), "{told:?}");
    assert!(told.len() < 2000, "{} bytes of error", told.len());
}

/// What the planner's own constructors promise, and that no setting is lost.
fn is_sound(loaded: &Loaded) {
    let Config { refresh, providers, store, .. } = &loaded.config;
    let longest = providers.values().map(|provider| provider.request_timeout).max().unwrap_or_default();
    let timing = refresh.timing;
    assert!(
        timing.window() + longest + timing.commit_budget() < timing.lease(),
        "a lease that may be outlived"
    );
    assert!((1..=4096).contains(&store.shards) && refresh.concurrency > 0);
    assert!(refresh.lifetimes.min <= refresh.lifetimes.max);
    assert!(loaded.settings.is_sorted_by(|one, next| one.key < next.key), "a setting is listed twice");
    let shown = serde_json::to_string(&loaded.settings).expect("settings are plain data");
    for header in providers.values().flat_map(|provider| provider.headers.values()) {
        assert!(header.len() < 24 || !shown.contains(header.expose()), "a header is shown");
    }
}

/// A file of this thread's own, with this text.
fn file_with(text: &str) -> PathBuf {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let memory = std::path::Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        folder.expect("a folder")
    });
    let path = folder.path().join(format!("{:?}.toml", std::thread::current().id()));
    std::fs::write(&path, text).expect("a file");
    path
}
