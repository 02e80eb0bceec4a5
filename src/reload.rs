//! A configuration that changes under a running daemon: read again at SIGHUP, and when its files change.
//!
//! Files are looked at every few seconds. That works where notifications do not: on bind mounts, and where a file is
//! a link that an orchestrator turns over. One that is still being written is left until it rests. A new configuration
//! is taken as a whole or not at all; see [`Loaded::take`].

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use crate::config::{Changes, Config, ConfigErrors, Fingerprint, Loaded, Sources};
use crate::time::Clock;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Reads a configuration again, and keeps what is running of it.
pub struct Reloader {
    sources: Sources,
    running: Loaded,
    /// What was last read, whatever became of it.
    read: Fingerprint,
    /// What is running.
    taken: Fingerprint,
    /// What stood there at the last look.
    seen: Fingerprint,
}

impl Reloader {
    /// `running` was read from `sources`.
    pub fn new(sources: Sources, running: Loaded) -> Self {
        let read = sources.fingerprint();
        Self { sources, running, seen: read.clone(), taken: read.clone(), read }
    }

    /// Whether the files have changed since they were last read, and rest.
    pub fn is_due(&mut self) -> bool {
        let now = self.sources.fingerprint();
        let rests = now == self.seen;
        self.seen = now;
        rests && self.seen != self.read
    }

    /// Reads everything again, and has `check` judge what cannot be seen in the files alone. What is returned holds from
    /// now on.
    ///
    /// # Errors
    /// What is wrong with the new configuration; then the old one holds.
    pub fn read(
        &mut self,
        check: impl Fn(&Config) -> Result<(), ConfigErrors>,
    ) -> Result<(Changes, &Config), ConfigErrors> {
        self.read = self.sources.fingerprint();
        self.sources.missing_since(&self.taken)?;
        // Another profile waits for a restart, and its rules do, too: which file is read, and that loopback is reached.
        let new = Config::load_again(self.sources.clone(), self.running.config.profile)?;
        let (running, changes) = self.running.take(new)?;
        check(&running.config)?;
        self.running = running;
        self.taken = self.read.clone();
        Ok((changes, &self.running.config))
    }
}

/// SIGHUP, from now on. Without this it ends the process.
///
/// # Errors
/// Where the operating system refuses a signal handler.
///
/// # Panics
/// Outside a tokio runtime.
pub fn hangups() -> io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// Reads the configuration at every signal and every change, and hands what is live of it to `apply`, unless `check` refuses
/// it. Never ends.
pub async fn watch(
    mut reloader: Reloader,
    mut hangups: Signal,
    clock: &dyn Clock,
    check: impl Fn(&Config) -> Result<(), ConfigErrors>,
    mut apply: impl FnMut(&Config),
) {
    loop {
        let asked = tokio::select! {
            biased;
            Some(()) = hangups.recv() => true,
            () = clock.sleep(LOOK) => false,
        };
        if asked && !reloader.sources.has_files() {
            info!(
                "asked to reload, and there is no configuration file: the environment stays as it was at the start"
            );
            continue;
        }
        if asked || reloader.is_due() {
            reload(&mut reloader, asked, &check, &mut apply);
        }
    }
}

fn reload(
    reloader: &mut Reloader,
    asked: bool,
    check: &impl Fn(&Config) -> Result<(), ConfigErrors>,
    apply: &mut impl FnMut(&Config),
) {
    match reloader.read(check) {
        Ok((changes, _)) if changes.is_empty() && !asked => {}
        Ok((changes, _)) if changes.is_empty() => info!("asked to reload: nothing has changed"),
        Ok((changes, config)) => {
            apply(config);
            let changed: Vec<_> = changes.live.iter().collect();
            info!(changed = ?changed, "reloaded");
            for (key, why) in &changes.waiting {
                warn!(key, why, "changed, and waits for a restart");
            }
        }
        Err(errors) => {
            error!(alarm = "reload", %errors, "the new configuration is refused: the old one stays")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::Profile;

    #[test]
    fn a_file_is_read_when_it_rests_and_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("perennial.toml");
        let write =
            |text: &str| fs::write(&file, format!("{text}\n[store]\nkind = \"dynamodb\"\n")).expect("a file");
        write("[refresh]\nconcurrency = 3");
        let sources = Sources { path: Some(folder.path().to_owned()), ..Sources::default() };
        let running = Config::load(sources.clone()).expect("a configuration");
        let mut reloader = Reloader::new(sources, running);
        assert!(!reloader.is_due());

        write("[refresh]\nconcurrency = 4");
        assert!(!reloader.is_due(), "it may still be written");
        assert!(reloader.is_due());
        let (changes, config) = reloader.read(|_| Ok(())).expect("it is valid");
        assert_eq!((changes.live.len(), config.refresh.concurrency), (1, 4));
        assert!(!reloader.is_due() && !reloader.is_due());

        write("[refresh]\nconcurrency = \"many\"");
        assert!(!reloader.is_due() && reloader.is_due());
        let errors = reloader.read(|_| Ok(())).expect_err("it is not a number").to_string();
        assert!(errors.contains("refresh.concurrency"), "{errors}");
        assert!(!reloader.is_due(), "it is complained about once");
        assert_eq!(reloader.running.config.refresh.concurrency, 4, "the old one stays");

        fs::remove_file(&file).expect("it is there");
        assert!(!reloader.is_due() && reloader.is_due());
        let errors = reloader.read(|_| Ok(())).expect_err("without it all would be defaults").to_string();
        assert!(errors.contains("put the file back"), "{errors}");
        write("[refresh]\nconcurrency = 4");
        assert!(!reloader.is_due() && reloader.is_due());
        assert_eq!(reloader.read(|_| Ok(())).expect("it is back").1.refresh.concurrency, 4);

        fs::write(folder.path().join("development.toml"), "[refresh]\nconcurrency = 5").expect("a file");
        write("");
        assert!(!reloader.is_due() && reloader.is_due());
        assert_eq!(
            reloader.read(|_| Ok(())).expect("valid again").1.refresh.concurrency,
            5,
            "the profile's own file"
        );
    }

    #[test]
    fn another_profile_waits_and_the_running_one_goes_on_ruling() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |file: &str, text: &str| fs::write(folder.path().join(file), text).expect("a file");
        let common = |profile: &str| {
            let provider = "[providers.acme]\ntoken_url = \"https://acme.test/token\"\n";
            let text = format!("profile = \"{profile}\"\n[store]\ntable = \"clients\"\n{provider}");
            write("perennial.toml", &text);
        };
        common("production");
        write("production.toml", "[refresh]\nconcurrency = 3");
        write("development.toml", "[refresh]\nconcurrency = 4");
        let sources = Sources { path: Some(folder.path().to_owned()), ..Sources::default() };
        let running = Config::load(sources.clone()).expect("a configuration");
        let mut reloader = Reloader::new(sources, running);

        common("development");
        let (changes, config) = reloader.read(|_| Ok(())).expect("it is valid");
        assert!(!config.providers["acme"].outbound.loopback, "production admits no loopback");
        assert_eq!((config.profile, config.refresh.concurrency), (Profile::Production, 3));
        assert_eq!(changes.waiting.keys().collect::<Vec<_>>(), ["profile"]);
        assert!(changes.live.is_empty(), "{changes:?}");
    }
}
