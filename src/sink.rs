//! Files that hold a token, for programs that can read nothing else.
//!
//! Each file is tended by a task of its own: it looks at what the reader knows, [`decision`] says what that means for the
//! file, [`place`] writes it in one step, and [`hook`] runs what the operator wants run after a change.
//!
//! Invariant: a program that opens the path finds a whole token, which was good when it was written and has not expired
//! since; or nothing. That holds for as long as this runs: a file that it leaves behind expires unseen.

pub mod decision;
mod form;
mod hook;
mod place;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::client::ClientId;
use crate::entropy::Entropy;
use crate::metrics;
use crate::reader::freshness::Now;
use crate::reader::{Reader, Served};
use crate::store::Store;
use crate::time::{Clock, Moment};

pub use form::Form;
pub use place::PlaceError;

use decision::{Held, News, Step};
use hook::{Change, Hook};
use place::{Note, Place};

/// Without news, a file is looked at this often: it may be gone, and the clock may have jumped.
const LOOK: Duration = Duration::from_secs(1);
/// Between two tries to write, at most.
const PATIENT: Duration = Duration::from_secs(30);

/// A file that is to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// What the configuration calls it.
    pub name: String,
    /// Whose access token it holds.
    pub client: ClientId,
    /// Where it is.
    pub path: PathBuf,
    /// What is written.
    pub form: Form,
    /// Its permissions.
    pub mode: u32,
    /// Its group; `None` for the process's own.
    pub group: Option<u32>,
    /// A program and its arguments, run after each change; empty for none.
    pub on_change: Vec<String>,
    /// How long that may take.
    pub timeout: Duration,
}

/// What stands in the way of a file, before anything is written.
#[derive(Debug, thiserror::Error)]
#[error("agent.files.{name}.path, {}: {why}", path.display())]
pub struct SinkError {
    /// What the configuration calls it.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Why it cannot be written.
    pub why: PlaceError,
}

/// All files of this process.
pub struct Sink<S> {
    reader: Reader<S>,
    files: Vec<(File, Place, Option<Hook>)>,
    missing: Arc<AtomicUsize>,
}

impl<S: Store> Sink<S> {
    /// Looks at each place, and writes no token yet. `environment` is all that commands get, besides what is said of the change.
    ///
    /// # Errors
    /// The first place at which no file can be kept.
    pub fn open(
        reader: Reader<S>,
        clock: Arc<dyn Clock>,
        files: Vec<File>,
        environment: Vec<(String, String)>,
    ) -> Result<Self, SinkError> {
        let (entropy, environment) = (Arc::new(Entropy::from_system()), Arc::new(environment));
        let mut opened: Vec<(File, Place, Option<Hook>)> = Vec::with_capacity(files.len());
        for file in files {
            let place = Place::open(&file.path, (file.mode, file.group), Arc::clone(&entropy));
            let place =
                place.map_err(|why| SinkError { name: file.name.clone(), path: file.path.clone(), why })?;
            // Two files may be of interest to one program, which is not to be told of both at once.
            let same = opened.iter().find(|(other, ..)| other.on_change == file.on_change);
            let turn = same.and_then(|(.., hook)| Some(hook.as_ref()?.turn()));
            let turn = turn.unwrap_or_else(|| Arc::new(Mutex::new(())));
            let hook = Hook::new(&file, turn, Arc::clone(&environment), Arc::clone(&clock));
            opened.push((file, place, hook));
        }
        let missing = Arc::new(AtomicUsize::new(opened.len()));
        Ok(Self { reader, files: opened, missing })
    }

    /// Keeps them until `drain` is cancelled. Files stay as they are then; commands that run are waited for.
    pub async fn run(self, drain: CancellationToken) {
        metrics::AGENT_FILES_MISSING.set_count(&[], self.missing.load(Ordering::Relaxed));
        let tending = self.files.into_iter().map(|(file, place, hook)| {
            let reader = self.reader.clone();
            let (changes, news) = watch::channel(None);
            let keeper = Keeper {
                reader,
                file,
                place: Arc::new(place),
                held: None,
                tries: Tries::default(),
                changes,
                missing: Arc::clone(&self.missing),
            };
            let drain = drain.clone();
            async move {
                let keeping = async move { drain.run_until_cancelled(keeper.keep()).await };
                tokio::join!(keeping, hook::follow(hook, news));
            }
        });
        futures_util::future::join_all(tending).await;
    }
}

/// One file, and what is known of it.
struct Keeper<S> {
    reader: Reader<S>,
    file: File,
    place: Arc<Place>,
    held: Option<Held>,
    tries: Tries,
    changes: watch::Sender<Option<Change>>,
    missing: Arc<AtomicUsize>,
}

/// When to try again what did not succeed.
#[derive(Default)]
struct Tries {
    failures: u32,
    not_before: Moment,
}

impl Tries {
    fn failed(&mut self, now: Moment) {
        self.failures = self.failures.saturating_add(1);
        self.not_before = now.plus(PATIENT.min(LOOK * 2_u32.saturating_pow(self.failures.min(6) - 1)));
    }
}

impl<S: Store> Keeper<S> {
    async fn keep(mut self) {
        self.adopt().await;
        loop {
            self.turn().await;
            let rest = decision::rest(self.held.as_ref(), self.reader.now(), LOOK);
            self.reader.heard(&self.file.client, rest).await;
        }
    }

    /// What an earlier process has left, where it can be vouched for.
    async fn adopt(&mut self) {
        let (place, client, form) = (Arc::clone(&self.place), self.file.client.clone(), self.file.form);
        let found = blocking(move || Ok(place.found(client.as_str(), form.as_str()))).await.ok().flatten();
        let now = self.reader.now();
        self.holds(found.map(|note| Held::of(note.generation, note.expires_at, now)));
    }

    async fn turn(&mut self) {
        if self.held.is_some() && !self.place.is_there() {
            self.holds(None);
        }
        let seen = self.reader.look(&self.file.client).await;
        let now = self.reader.now();
        let step = decision::decide(self.held.as_ref(), &News::of(&seen), now);
        if step == Step::Keep || now.moment < self.tries.not_before {
            return;
        }
        let done = match (step, &seen) {
            (Step::Write, Ok(served)) => self.write(served, now).await,
            _ => self.remove().await,
        };
        match done {
            Ok(()) => self.tries = Tries::default(),
            Err(why) => {
                self.tries.failed(now.moment);
                metrics::AGENT_FILE_CHANGES.add(&["failed"], 1);
                let path = self.file.path.display();
                warn!(file = %self.file.name, %path, %why, "a token's file could not be changed: trying again");
            }
        }
    }

    async fn write(&mut self, served: &Served, now: Now) -> Result<(), String> {
        let token = served.token();
        let (client, form) = (self.file.client.clone(), self.file.form);
        let content = form.content(client.as_str(), token).map_err(|misfit| misfit.to_string())?;
        let note = Note {
            client: client.as_str().to_owned(),
            form: form.as_str().to_owned(),
            generation: token.generation,
            expires_at: token.expires_at,
            sha256: String::new(),
        };
        let place = Arc::clone(&self.place);
        blocking(move || place.write(&content, note)).await?;
        self.holds(Some(Held {
            generation: token.generation,
            expires_at: token.expires_at,
            until: now.moment.plus(served.remaining),
        }));
        info!(file = %self.file.name, %client, generation = token.generation.0, "a token's file is written");
        metrics::AGENT_FILE_CHANGES.add(&["written"], 1);
        self.tell(Change::Written(token.generation));
        Ok(())
    }

    async fn remove(&mut self) -> Result<(), String> {
        let place = Arc::clone(&self.place);
        blocking(move || place.remove()).await?;
        self.holds(None);
        warn!(file = %self.file.name, client = %self.file.client, "a token's file is removed: there is no good token");
        metrics::AGENT_FILE_CHANGES.add(&["removed"], 1);
        self.tell(Change::Removed);
        Ok(())
    }

    fn tell(&self, change: Change) {
        self.changes.send_replace(Some(change));
    }

    fn holds(&mut self, held: Option<Held>) {
        match (self.held.is_some(), held.is_some()) {
            (false, true) => drop(self.missing.fetch_sub(1, Ordering::Relaxed)),
            (true, false) => drop(self.missing.fetch_add(1, Ordering::Relaxed)),
            _ => {}
        }
        metrics::AGENT_FILES_MISSING.set_count(&[], self.missing.load(Ordering::Relaxed));
        self.held = held;
    }
}

/// Files are written where waiting for a disk keeps nobody else.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PlaceError> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
