//! `perennial get`: the access token, for scripts.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use serde_json::json;

use super::{App, client_id, output};
use crate::client::ClientId;
use crate::item::Key;
use crate::record::{Partition, Snapshot, Token};
use crate::secret::Secret;
use crate::store::{Role, Store as _, View};
use crate::time::Timestamp;

/// Print a client's access token, if it is still good; exit code 1 if not.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  curl -H \"Authorization: Bearer $(perennial get acme-crm --min-ttl 60s)\" ..."
)]
pub(super) struct Get {
    /// The client.
    #[arg(value_name = "CLIENT", value_parser = client_id)]
    id: ClientId,
    /// It must still live for so long, as in 60s or 5m.
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    min_ttl: Duration,
    /// Print the token with its expiry, type, scope and generation, as JSON.
    #[arg(long)]
    json: bool,
}

impl Get {
    pub(super) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let store = app.store_for(Role::Reader).await?;
        // The token's item alone: a registration that cannot be understood is no reason to keep a good token back, and
        // whoever may read tokens need not be able to read client secrets.
        let found = store.load(&[Key::Token(self.id.clone())], View::Reader).await?;
        let token = found.into_iter().next().map(|(_, item)| item);
        let partition = Partition { token, ..Partition::default() };
        let read: Snapshot = partition
            .decode(&self.id)
            .map_err(|error| anyhow!("{error}; see `perennial why {}`", self.id))?;
        let now = app.clock().now();
        match valid(read.token.as_ref(), now, self.min_ttl) {
            Ok((token, access)) => {
                if self.json {
                    self.print_json(token, access, now)?
                } else {
                    output::raw(format!("{}\n", access.expose()).as_bytes())?
                }
                Ok(ExitCode::SUCCESS)
            }
            Err(why) => {
                output::note(format_args!("{}: {why}; see `perennial why {}`", self.id, self.id));
                Ok(ExitCode::FAILURE)
            }
        }
    }

    fn print_json(&self, token: &Token, access: &Secret, now: Timestamp) -> anyhow::Result<()> {
        output::json(&json!({
            "client": self.id.as_str(),
            "access_token": access.expose(),
            "token_type": token.token_type,
            "expires_at": token.expires_at.to_string(),
            "expires_in": token.expires_at.since(now).as_secs(),
            "scope": token.scope,
            "generation": token.generation.0,
        }))
    }
}

/// The access token, if it lives for longer than `min_ttl`; judged by its expiry, never by its presence.
fn valid(token: Option<&Token>, now: Timestamp, min_ttl: Duration) -> Result<(&Token, &Secret), String> {
    let token = token.ok_or("there is no token: no such client, or its first token is yet to come")?;
    let access = token.access_token.as_ref().ok_or("its first token is yet to come")?;
    if token.expires_at <= now {
        return Err(format!("its access token expired at {}", token.expires_at));
    }
    if token.expires_at.since(now) <= min_ttl {
        let left = token.expires_at.since(now).as_secs();
        return Err(format!("its access token lives for {left}s more, which is less than --min-ttl"));
    }
    Ok((token, access))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Gen;

    #[test]
    fn a_token_is_good_until_the_second_of_its_expiry_and_not_in_it() {
        let expires_at = Timestamp::from_secs(1000);
        let token = Token { access_token: Some(Secret::new("a")), expires_at, ..Token::stub(Gen(1)) };
        let good =
            |now, ttl| valid(Some(&token), Timestamp::from_secs(now), Duration::from_secs(ttl)).is_ok();
        assert!(good(999, 0));
        assert!(!good(1000, 0));
        assert!(good(900, 99));
        assert!(!good(900, 100));
        assert!(valid(None, expires_at, Duration::ZERO).is_err());
        assert!(valid(Some(&Token::stub(Gen(0))), Timestamp::EPOCH, Duration::ZERO).is_err());
    }
}
