//! The client secret of a refresh: found before the send, and looked up again where the provider refuses it.

use tracing::{error, info, warn};

use super::{Attempt, Held, Refresher, Which, outcome};
use crate::client::{Client, ClientAuth, Provider};
use crate::metrics;
use crate::plan::lease::Release;
use crate::plan::outcome::Tally;
use crate::provider::TokenEndpoint;
use crate::secret::Secret;
use crate::store::Store;

impl<S: Store, E: TokenEndpoint> Refresher<S, E> {
    /// The attempt with the secret that it sends. Where there is none to be had, nothing is sent and nothing is in doubt.
    pub(super) async fn with_secret(
        &self,
        attempt: Attempt,
        provider: &Provider,
    ) -> Result<Attempt, Release> {
        let Some(first) = &attempt.client.credentials.first else { return Ok(attempt) };
        let error = match self.secrets.resolve(first, &attempt.client, &provider.name).await {
            Ok(secret) => return Ok(Attempt { secret: Some(secret), ..attempt }),
            Err(error) => error,
        };
        let code = if error.is_transient() {
            error!(alarm = "secret_unavailable", %error, "nothing was sent: there is no answer about the client secret");
            outcome::SECRET_UNAVAILABLE
        } else {
            error!(alarm = "secret_refused", %error, "nothing was sent: the client secret cannot be had");
            outcome::SECRET_REFUSED
        };
        Err(outcome::unsent(&attempt, code, &self.policy.backoff, self.clock.now(), self.entropy.unit()))
    }

    /// The secret that is to be tried once after the refusal of the first, of the registration as it stands by now.
    pub(super) async fn another_secret(
        &self,
        held: &Held<'_>,
        attempt: &Attempt,
        code: String,
        tally: &Tally,
    ) -> Result<(Client, Option<Secret>, Which), Release> {
        let unverified = |_| outcome::unverified(attempt, tally, &self.judge());
        let read = self.read(held.id, self.clock.moment()).await.map_err(unverified)?;
        let client = outcome::after_client_recheck(&code, &read, attempt, tally, &self.judge())?;
        let (offered, which) = self.offered(&client, held.provider, attempt.secret.as_ref(), &code).await;
        let secret = outcome::after_offer(code, offered, attempt, tally, &self.judge())?;
        match which {
            Which::First => info!("the client secret has changed meanwhile: trying the new one once"),
            Which::Second => info!("the first client secret is refused: trying the second once"),
        }
        Ok((client, Some(secret), which))
    }

    async fn offered(
        &self,
        client: &Client,
        provider: &Provider,
        sent: Option<&Secret>,
        code: &str,
    ) -> (Option<Secret>, Which) {
        // Whoever sends no secret would send the same again.
        if provider.auth == ClientAuth::None {
            return (None, Which::First);
        }
        let first = self.look_up(client, provider, Which::First, sent).await;
        match outcome::next_secret(code, sent, first.as_ref()) {
            Some(Which::Second) => (self.look_up(client, provider, Which::Second, None).await, Which::Second),
            Some(Which::First) => (first, Which::First),
            None => (None, Which::First),
        }
    }

    /// One of the client's secrets as it is by now. None is no new one: the refusal stands.
    async fn look_up(
        &self,
        client: &Client,
        provider: &Provider,
        which: Which,
        refused: Option<&Secret>,
    ) -> Option<Secret> {
        let credential = match which {
            Which::First => client.credentials.first.as_ref()?,
            Which::Second => client.credentials.second.as_ref()?,
        };
        let found = match refused {
            Some(sent) => self.secrets.resolve_again(credential, client, &provider.name, sent).await,
            None => self.secrets.resolve(credential, client, &provider.name).await,
        };
        found.inspect_err(|error| warn!(%error, ?which, "a client secret cannot be looked up")).ok()
    }
}

/// Says which secret the provider has taken.
pub(super) fn note(which: Which, provider: &Provider) {
    if which == Which::First {
        return;
    }
    metrics::SECOND_SECRETS.add(&[&provider.name], 1);
    warn!(
        "the provider refused the first client secret and took the second: make it the first by `perennial clients secret \
         promote`, or every refresh is sent twice"
    );
}
