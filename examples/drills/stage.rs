//! What every drill has: clients at a provider that rotates, a table, ways there that can be broken, a daemon, and a
//! witness who reads the tokens as an application does.

#![allow(clippy::disallowed_methods, reason = "a drill lives in real time")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::report::Seen;
use crate::support::numbers::{labels, scrape};
use crate::support::{
    Auth, Call, Deployment, DynamoLocal, Front, Process, Proxy, Refusal, StrictProvider, fetch, free_port,
    snapshot, wait_until,
};
use crate::timings::{Scale, Timings};
use perennial::record::Gen;
use perennial::store::DynamoStore;
use perennial::time::{Clock as _, SystemClock, Timestamp};

const SECRET: &str = "drill-client-secret";
const CLIENTS: usize = 12;

/// How long a drill takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    /// Seconds, and the protocol's times with them.
    Scaled,
    /// Minutes, and the program's defaults.
    Stated,
}

impl Length {
    /// The one or the other.
    pub(crate) fn seconds(self, scaled: u64, stated: u64) -> Duration {
        Duration::from_secs(match self {
            Self::Scaled => scaled,
            Self::Stated => stated,
        })
    }

    /// Of access tokens. Below 22 minutes they are refreshed after 50 to 65 percent of their life.
    pub(crate) fn token_life(self) -> Duration {
        self.seconds(40, 1200)
    }

    /// No token is due yet.
    fn before_due(self) -> Duration {
        self.token_life().mul_f64(0.4)
    }

    /// What comes back has come back by then: every backoff, breaker and round of discovery, several times over.
    fn bound(self) -> Duration {
        self.seconds(90, 900)
    }
}

/// Before the curtain.
pub(crate) struct Stage {
    pub(crate) length: Length,
    pub(crate) provider: StrictProvider,
    pub(crate) to_provider: Proxy,
    pub(crate) to_store: Proxy,
    pub(crate) deployment: Deployment,
    pub(crate) store: Arc<DynamoStore>,
    pub(crate) address: String,
    ids: Vec<String>,
    _front: Front,
}

impl Stage {
    /// `rule` refuses requests to the table; `host` is how the daemon knows this machine.
    pub(crate) async fn set(
        length: Length,
        host: &str,
        rule: impl Fn(&Call) -> Option<Refusal> + Send + Sync + 'static,
    ) -> Self {
        let life = length.token_life().as_secs().to_string();
        let provider = StrictProvider::start(&["--lifetime-secs", &life, "--latency-ms", "200"]).await;
        provider.register(Auth::Basic("app", SECRET)).await;
        let to_provider = Proxy::before(provider.url()).await;
        let token_url =
            provider.token_url().replace(provider.url(), &format!("http://{host}:{}", to_provider.port()));
        let timings = Timings::of(match length {
            Length::Scaled => Scale::Scaled,
            Length::Stated => Scale::Default,
        });
        let settings = format!("{}\n[providers.strict]\ntoken_url = \"{token_url}\"\n", timings.settings);
        let local = DynamoLocal::shared().await;
        let front = Front::before(local.endpoint(), rule).await;
        let to_store = Proxy::before(front.url()).await;
        let deployment = Deployment::on_dynamo(local, &settings);
        let ids: Vec<_> = (0..CLIENTS).map(|number| format!("client-{number}")).collect();
        deployment.register(&provider, SECRET, ids.clone()).await;
        let store = Arc::new(deployment.store().await);
        let address = format!("127.0.0.1:{}", free_port());
        Self { length, provider, to_provider, to_store, deployment, store, address, ids, _front: front }
    }

    /// Starts the daemon, by itself or by another program, and waits until each client has its first token and none is
    /// due yet.
    pub(crate) async fn begin(&self, by: &[&str], variables: &[(&str, &str)]) -> Play<'_> {
        let store = self.to_store.url();
        let common = [
            ("PERENNIAL__STORE__ENDPOINT", store),
            ("PERENNIAL__HEALTH__ENABLED", "true"),
            ("PERENNIAL__HEALTH__ADDRESS", self.address.as_str()),
        ];
        let variables = [&common[..], variables].concat();
        let daemon = match by {
            [] => self.deployment.daemon_with(&variables).await,
            [program, arguments @ ..] => {
                self.deployment.daemon_by(Path::new(program), arguments, &variables).await
            }
        };
        let before = vec![Gen(0); CLIENTS];
        let mut play =
            Play { stage: self, daemon, begun: before, trouble: Duration::ZERO, longest_expired: 0 };
        play.until("each client has its first token", async || self.all_have_moved_on(&play.begun).await)
            .await;
        play.begun = self.generations().await;
        tokio::time::sleep(self.length.before_due()).await;
        play
    }

    pub(crate) async fn generations(&self) -> Vec<Gen> {
        let mut generations = Vec::new();
        for id in &self.ids {
            generations.push(snapshot(self.store.as_ref(), id).await.tok_gen());
        }
        generations
    }

    /// Whether each client has a newer token than it had.
    pub(crate) async fn all_have_moved_on(&self, from: &[Gen]) -> bool {
        self.generations().await.iter().zip(from).all(|(now, then)| now > then)
    }

    /// Seconds for which a client's token has been an expired one.
    async fn expired_for(&self, id: &str) -> u64 {
        let token = snapshot(self.store.as_ref(), id).await.token.expect("it has one");
        now().since(token.expires_at).as_secs()
    }
}

/// A daemon on its stage.
pub(crate) struct Play<'a> {
    pub(crate) stage: &'a Stage,
    pub(crate) daemon: Process,
    /// Of each token, as the trouble began.
    begun: Vec<Gen>,
    trouble: Duration,
    longest_expired: u64,
}

impl Play<'_> {
    /// Waits for what has to come.
    pub(crate) async fn until(&self, what: &str, condition: impl AsyncFnMut() -> bool) {
        wait_until(self.stage.length.bound(), what, condition).await;
    }

    /// So long it goes wrong; the tokens are looked at meanwhile, as an application would.
    pub(crate) async fn trouble(&mut self, length: Duration) {
        self.trouble += length;
        let end = Instant::now() + length;
        while Instant::now() < end {
            self.look_at_tokens().await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    async fn look_at_tokens(&mut self) {
        for id in &self.stage.ids {
            self.longest_expired = self.longest_expired.max(self.stage.expired_for(id).await);
        }
    }

    /// The status of one of its health endpoints.
    pub(crate) async fn status(&self, path: &str) -> u16 {
        fetch(&format!("http://{}{path}", self.stage.address)).await.expect("the daemon answers").status
    }

    /// A number that it tells.
    pub(crate) async fn number(&self, name: &str, pairs: &[(&str, &str)]) -> u64 {
        let samples = scrape(&format!("http://{}", self.stage.address)).await;
        let value = samples.get(&(name.to_owned(), labels(pairs))).copied().unwrap_or_default();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let whole = value as u64;
        whole
    }

    /// Every token that came due in the trouble is renewed, and live at the provider; nothing was redeemed twice; the
    /// daemon, which is the one that began, drains and ends with 0.
    pub(crate) async fn end(mut self, more: Vec<(&'static str, u64)>) -> Seen {
        let mended = Instant::now();
        let bound = self.stage.length.bound();
        while !self.stage.all_have_moved_on(&self.begun).await || !self.all_are_fresh().await {
            assert!(
                mended.elapsed() < bound,
                "some are not fresh after {bound:?}:\n{}",
                self.daemon.errors()
            );
            self.look_at_tokens().await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let recovery_s = mended.elapsed().as_secs();
        self.until("it is ready again", async || self.status("/readyz").await == 200).await;
        self.daemon.signal("TERM");
        assert_eq!(self.daemon.exit_code(bound).await, 0, "{}", self.daemon.errors());
        let stage = self.stage;
        for id in &stage.ids {
            let token = snapshot(stage.store.as_ref(), id).await.token.and_then(|token| token.refresh_token);
            let token = token.expect("it rotates");
            assert!(
                stage.provider.is_live(token.expose()).await,
                "{id}: the stored token is not the live one"
            );
        }
        let stats = stage.provider.stats().await;
        assert_eq!((stats.double_redemptions, stats.families_revoked), (0, 0), "{stats:?}");
        Seen {
            seconds: self.trouble.as_secs(),
            clients: CLIENTS,
            granted: stats.granted,
            longest_expired_s: self.longest_expired,
            recovery_s,
            more,
        }
    }

    async fn all_are_fresh(&self) -> bool {
        let mut expired = 0;
        for id in &self.stage.ids {
            expired += self.stage.expired_for(id).await;
        }
        expired == 0
    }
}

fn now() -> Timestamp {
    SystemClock.now()
}
