//! The store goes away between a provider's answer and its commit: the answer is held until it is stored.

use perennial::store::DynamoStore;

use super::super::{SOON, is_live, provider, register, tok_gen};
use crate::support::{
    Deployment, DynamoLocal, Process, Proxy, StrictProvider, log_lines, snapshot, wait_until,
};

pub(crate) const IDS: [&str; 3] = ["one", "two", "three"];

pub(crate) struct World {
    pub(crate) provider: StrictProvider,
    pub(crate) store: DynamoStore,
    pub(crate) proxy: Proxy,
    pub(crate) daemon: Process,
    pub(crate) deployment: Deployment,
}

impl World {
    /// Every client's answer has come, and cannot be stored.
    async fn cut_off() -> Self {
        Self::cut_off_with(&[]).await
    }

    /// As [`World::cut_off`], with more variables in the daemon's environment.
    pub(crate) async fn cut_off_with(variables: &[(&str, &str)]) -> Self {
        let (provider, settings) = provider(&["--latency-ms", "1500"]).await;
        let local = DynamoLocal::shared().await;
        let deployment = Deployment::on_dynamo(local, &settings);
        register(&deployment, &provider, &IDS).await;
        let proxy = Proxy::before(local.endpoint()).await;
        let through = [("PERENNIAL__STORE__ENDPOINT", proxy.url())];
        let daemon = deployment.daemon_with(&[&through, variables].concat()).await;
        wait_until(SOON, "all are in flight", async || provider.stats().await.token_requests == 3).await;
        proxy.cut();
        wait_until(SOON, "three answers are held", async || {
            let log = log_lines(&daemon.errors());
            let held =
                log.iter().filter(|line| line["alarm"] == "uncommitted_tokens" && line["failures"] == 1);
            held.count() == 3
        })
        .await;
        let store = deployment.store().await;
        for id in IDS {
            assert!(
                !is_live(&store, &provider, id).await,
                "what is stored is spent: the answer is the only copy"
            );
        }
        Self { provider, store, proxy, daemon, deployment }
    }

    pub(crate) async fn has_lost_nothing(&self) {
        for id in IDS {
            assert!(is_live(&self.store, &self.provider, id).await, "{id}: the answer was lost");
            let lease = snapshot(&self.store, id).await.lease.expect("a lease");
            assert_eq!(tok_gen(&self.store, id).await, lease.generation, "{id}");
        }
        assert_eq!(self.provider.stats().await.double_redemptions, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commit_lands_once_the_store_is_back() {
    let world = World::cut_off().await;
    world.proxy.mend();
    wait_until(SOON, "all are stored", async || {
        let mut stored = 0;
        for id in IDS {
            stored += tok_gen(&world.store, id).await.0;
        }
        stored == 3
    })
    .await;
    world.has_lost_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_waits_for_the_store() {
    let mut world = World::cut_off().await;
    world.daemon.signal("TERM");
    wait_until(SOON, "it drains", async || world.daemon.errors().contains("draining")).await;
    assert!(!world.daemon.has_ended(), "it has left with the only copy of three answers");
    world.proxy.mend();
    assert_eq!(world.daemon.exit_code(SOON).await, 0, "{}", world.daemon.errors());
    world.has_lost_nothing().await;
}
