//! Files that hold a token, for programs that can read nothing else.
//!
//! Each file is tended by a task of its own: it looks at what the reader knows, [`decision`] says what that means for the
//! file, `place` writes it in one step, and `hook` runs what the operator wants run after a change.
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
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::client::ClientId;
use crate::entropy::Entropy;
use crate::metrics;
use crate::reader::freshness::Now;
use crate::reader::{Reader, Refusal, Served};
use crate::record::Gen;
use crate::store::Store;
use crate::time::{Clock, Moment};

pub use form::Form;
pub use place::PlaceError;

use decision::{Held, News, Step};
use hook::{Change, Hook};
use place::{Found, Note, Place};

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

    /// Keeps them until `drain` is cancelled. Files stay as they are then; what is being written is, and commands that run
    /// are waited for. Whoever does not wait ends them: the next process tells what was not told.
    ///
    /// # Panics
    /// Where keeping one of them does.
    pub async fn run(self, drain: CancellationToken) {
        metrics::AGENT_FILES_MISSING.set_count(&[], self.missing.load(Ordering::Relaxed));
        let mut tasks = JoinSet::new();
        for (file, place, hook) in self.files {
            let (changes, news) = watch::channel(None);
            let place = Arc::new(place);
            let telling = hook::follow(hook, Arc::clone(&place), news);
            let keeper = Keeper {
                reader: self.reader.clone(),
                file,
                place,
                held: None,
                writes: Tries::default(),
                removals: Tries::default(),
                changes,
                missing: Arc::clone(&self.missing),
            };
            let keeping = keeper.keep(drain.clone());
            tasks.spawn(async { _ = tokio::join!(keeping, telling) });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.expect("keeping a file does not panic");
        }
    }
}

/// One file, and what is known of it.
struct Keeper<S> {
    reader: Reader<S>,
    file: File,
    place: Arc<Place>,
    held: Option<Held>,
    writes: Tries,
    removals: Tries,
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
    fn may_try(&self, now: Moment) -> bool {
        now >= self.not_before
    }

    fn failed(&mut self, now: Moment) {
        self.failures = self.failures.saturating_add(1);
        self.not_before = now.plus(PATIENT.min(LOOK * 2_u32.saturating_pow(self.failures.min(6) - 1)));
    }
}

impl Found {
    /// What has other permissions than it should is good for as long as it was, and older than any token that comes.
    fn held(&self, now: Now) -> Held {
        let Note { generation: Gen(generation), expires_at, .. } = self.note;
        let older = if self.is_as_wanted { generation } else { generation.saturating_sub(1) };
        Held::of(Gen(older), expires_at, now)
    }
}

impl<S: Store> Keeper<S> {
    /// Ends between two changes, never within one: what is written is told, or left for the next process to tell.
    async fn keep(mut self, drain: CancellationToken) {
        let (reader, client) = (self.reader.clone(), self.file.client.clone());
        self.adopt().await;
        while let Some(seen) = drain.run_until_cancelled(reader.look(&client)).await {
            self.turn(&seen).await;
            if drain.run_until_cancelled(reader.heard(&client, self.rest())).await.is_none() {
                return;
            }
        }
    }

    /// What an earlier process has left, where it can be vouched for, and what it did not come to tell.
    async fn adopt(&mut self) {
        let (place, client, form) = (Arc::clone(&self.place), self.file.client.clone(), self.file.form);
        let look = move || Ok((place.found(client.as_str(), form.as_str()), place.is_gone_untold()));
        let (found, is_gone_untold) = blocking(look).await.unwrap_or_default();
        let now = self.reader.now();
        self.holds(found.as_ref().map(|found| found.held(now)));
        if is_gone_untold {
            self.tell(Change::Removed);
        }
        // Of an expired one there is nothing to tell but that it goes.
        if self.held.is_some_and(|held| !held.has_expired(now)) {
            let untold = found.map(|found| found.note).filter(|note| !note.told);
            untold.into_iter().for_each(|note| self.tell(Change::Written(note.generation, note.expires_at)));
        }
    }

    fn rest(&self) -> Duration {
        // What cannot be removed is not tried as often as the clock ticks.
        let held = self.held.as_ref().filter(|_| self.removals.failures == 0);
        decision::rest(held, self.reader.now(), LOOK)
    }

    async fn turn(&mut self, seen: &Result<Served, Refusal>) {
        self.notice_a_loss().await;
        let mut step = decision::decide(self.held.as_ref(), &News::of(seen), self.reader.now());
        if let (Step::Write, Ok(served)) = (step, seen) {
            if self.try_to_write(served).await {
                return;
            }
            step = decision::unwritten(self.held.as_ref(), self.reader.now());
        }
        if step == Step::Remove {
            self.try_to_remove().await;
        }
    }

    async fn notice_a_loss(&mut self) {
        let place = Arc::clone(&self.place);
        if self.held.is_some() && !blocking(move || Ok(place.is_there())).await.unwrap_or(true) {
            self.holds(None);
        }
    }

    /// Whether it is written.
    async fn try_to_write(&mut self, served: &Served) -> bool {
        let now = self.reader.now();
        if !self.writes.may_try(now.moment) {
            return false;
        }
        match self.write(served, now).await {
            Ok(()) => {
                (self.writes, self.removals) = (Tries::default(), Tries::default());
                true
            }
            Err(why) => {
                self.writes.failed(now.moment);
                self.warn(&why);
                false
            }
        }
    }

    /// Failed writes hold no removal back.
    async fn try_to_remove(&mut self) {
        let now = self.reader.now();
        if !self.removals.may_try(now.moment) {
            return;
        }
        match self.remove().await {
            Ok(()) => self.removals = Tries::default(),
            Err(why) => {
                self.removals.failed(now.moment);
                self.warn(&why);
            }
        }
    }

    fn warn(&self, why: &str) {
        metrics::AGENT_FILE_CHANGES.add(&["failed"], 1);
        let path = self.file.path.display();
        warn!(file = %self.file.name, %path, %why, "a token's file could not be changed: trying again");
    }

    async fn write(&mut self, served: &Served, now: Now) -> Result<(), String> {
        let token = served.token();
        let (client, form) = (self.file.client.clone(), self.file.form);
        let content = form.content(&client, token).map_err(|misfit| misfit.to_string())?;
        let note = Note {
            client: client.as_str().to_owned(),
            form: form.as_str().to_owned(),
            generation: token.generation,
            expires_at: token.expires_at,
            sha256: String::new(),
            told: !self.has_listeners(),
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
        self.tell(Change::Written(token.generation, token.expires_at));
        Ok(())
    }

    async fn remove(&mut self) -> Result<(), String> {
        let (place, is_to_be_told) = (Arc::clone(&self.place), self.has_listeners());
        blocking(move || place.remove(is_to_be_told)).await?;
        self.holds(None);
        warn!(file = %self.file.name, client = %self.file.client, "a token's file is removed: there is no good token");
        metrics::AGENT_FILE_CHANGES.add(&["removed"], 1);
        self.tell(Change::Removed);
        Ok(())
    }

    fn has_listeners(&self) -> bool {
        !self.file.on_change.is_empty()
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

#[cfg(test)]
mod tests;
