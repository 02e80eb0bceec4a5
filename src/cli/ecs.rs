//! A daemon's dealings with the agent of Amazon ECS, where there is one.

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::App;
use crate::ecs::{Account, Agent, Patience, identify, protect};
use crate::entropy::Entropy;
use crate::scheduler::Pulse;
use crate::time::Clock;

/// The agent, and what it has told.
pub(super) struct Ecs {
    agent: Arc<Agent>,
    account: Arc<Account>,
    clock: Arc<dyn Clock>,
    may_protect: bool,
}

impl Ecs {
    /// None outside ECS. Who this task is comes to be known in the background.
    pub(super) fn detect(app: &App) -> Option<Self> {
        let sources = app.sources();
        let (metadata, agent) = (sources.ecs_metadata_uri(), sources.ecs_agent_uri());
        if metadata.is_none() && agent.is_none() {
            return None;
        }
        let agent = match Agent::at(metadata, agent, Patience::default()) {
            Ok(agent) => Arc::new(agent),
            Err(error) => {
                warn!(%error, "the ECS agent cannot be asked: going on without");
                return None;
            }
        };
        let ecs = Self {
            may_protect: agent.protects() && app.config().ecs.protection,
            account: Arc::default(),
            clock: app.clock(),
            agent,
        };
        if ecs.agent.identifies() {
            let (agent, account, clock) =
                (Arc::clone(&ecs.agent), Arc::clone(&ecs.account), Arc::clone(&ecs.clock));
            tokio::spawn(async move { identify(&agent, &account, clock.as_ref()).await });
        }
        Some(ecs)
    }

    pub(super) fn account(&self) -> Arc<Account> {
        Arc::clone(&self.account)
    }

    /// Protects this task from scale-in while its scheduler has something in flight.
    pub(super) fn protect(self, pulse: &Arc<Pulse>) -> Option<Protector> {
        if !self.may_protect {
            debug!("this task does not protect itself from scale-in");
            return None;
        }
        let stop = CancellationToken::new();
        let (pulse, asked) = (Arc::clone(pulse), stop.clone());
        let keeping = tokio::spawn(async move {
            let entropy = Entropy::from_system();
            let (account, clock) = (self.account.as_ref(), self.clock.as_ref());
            protect(self.agent.as_ref(), pulse.in_flight(), account, clock, &entropy, &asked).await;
        });
        Some(Protector { keeping, stop })
    }
}

/// Keeps the task protected.
pub(super) struct Protector {
    keeping: JoinHandle<()>,
    stop: CancellationToken,
}

impl Protector {
    /// Lets go, within seconds: the drain is over.
    pub(super) async fn release(self) {
        self.stop.cancel();
        if let Err(error) = self.keeping.await {
            warn!(%error, "scale-in protection was not let go of: it runs out");
        }
    }
}
