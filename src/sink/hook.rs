//! What is run after a file has changed: a program and its arguments, never a shell's line.
//!
//! It gets no secret: neither in its arguments, which every user of the machine can see, nor in its environment, nor is what
//! it prints kept, which may be what it has read. At most one runs of those with the same words; what changes meanwhile is
//! told once, when it has ended.
//!
//! Only when a command has ended is its change noted as told. What an agent did not come to tell, or was telling when it
//! ended, the next one tells.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, watch};
use tracing::{info, warn};

use super::place::Place;
use super::{File, blocking};
use crate::metrics;
use crate::record::Gen;
use crate::time::{Clock, Timestamp};

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It holds a token of this generation, which expires then.
    Written(Gen, Timestamp),
    /// It is gone.
    Removed,
}

/// What is run, and with what.
pub(super) struct Hook {
    file: File,
    turn: Arc<Mutex<()>>,
    environment: Arc<Vec<(String, String)>>,
    clock: Arc<dyn Clock>,
}

/// Why it was of no use.
#[derive(Debug, thiserror::Error)]
enum HookError {
    #[error("it could not be started: {0}")]
    Start(io::Error),
    #[error("it failed: {0}")]
    Failed(ExitStatus),
    #[error("it did not end in {0:?}, and was killed")]
    Late(Duration),
}

impl Hook {
    /// None where nothing is to be run.
    pub(super) fn new(
        file: &File,
        turn: Arc<Mutex<()>>,
        environment: Arc<Vec<(String, String)>>,
        clock: Arc<dyn Clock>,
    ) -> Option<Self> {
        (!file.on_change.is_empty()).then(|| Self { file: file.clone(), turn, environment, clock })
    }

    /// Who may run it.
    pub(super) fn turn(&self) -> Arc<Mutex<()>> {
        Arc::clone(&self.turn)
    }

    async fn tell(&self, change: Change) {
        let _turn = self.turn.lock().await;
        let file = &self.file.name;
        match self.run(change).await {
            Ok(()) => {
                info!(%file, "what is run after a change has ended well");
                metrics::AGENT_FILE_COMMANDS.add(&["done"], 1);
            }
            Err(why) => {
                warn!(%file, %why, "what is run after a change was of no use: it is run again after the next");
                metrics::AGENT_FILE_COMMANDS.add(&["failed"], 1);
            }
        }
    }

    async fn run(&self, change: Change) -> Result<(), HookError> {
        let mut child = self.command(change).spawn().map_err(HookError::Start)?;
        let ended = tokio::select! {
            ended = child.wait() => ended,
            () = self.clock.sleep(self.file.timeout) => {
                kill(&mut child).await;
                return Err(HookError::Late(self.file.timeout));
            }
        };
        let status = ended.map_err(HookError::Start)?;
        if status.success() { Ok(()) } else { Err(HookError::Failed(status)) }
    }

    fn command(&self, change: Change) -> Command {
        let (program, arguments) = self.file.on_change.split_first().expect("there is a program");
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(self.environment.iter().cloned());
        // Not PERENNIAL_...: this program, run from there, would take them for its own.
        command.env("TOKEN_FILE", &self.file.path).env("TOKEN_CLIENT", self.file.client.as_str());
        match change {
            Change::Written(generation, _) => {
                command.env("TOKEN_CHANGE", "written").env("TOKEN_GENERATION", generation.to_string())
            }
            Change::Removed => command.env("TOKEN_CHANGE", "removed"),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // A group of its own, so that what it has started ends with it.
        command.process_group(0).kill_on_drop(true);
        command
    }
}

/// Tells of each change, until there will be none; of the last alone where several came while one was told.
pub(super) async fn follow(hook: Option<Hook>, place: Arc<Place>, mut news: watch::Receiver<Option<Change>>) {
    while news.changed().await.is_ok() {
        let change = *news.borrow_and_update();
        let Some(change) = change else { continue };
        if let Some(hook) = &hook {
            hook.tell(change).await;
        }
        let place = Arc::clone(&place);
        if let Err(why) = blocking(move || place.told(change)).await {
            warn!(%why, "that a change was told could not be noted: the next agent tells it again");
        }
    }
}

async fn kill(child: &mut Child) {
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(group) = group {
        // It may just have ended.
        let _gone_already = kill_process_group(group, Signal::KILL);
    }
    let _reaped_already = child.kill().await;
}
