//! `perennial clients add`: one registration.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use url::Url;

use super::source::{
    AccessTokenArgs, ClientSecretArgs, Expiry, Given, RefreshTokenArgs, SecondSecretArgs, Source, imported,
    only_one_stdin,
};
use super::{App, UsageError, client_id, output, spec};
use crate::client::credentials::Credentials;
use crate::client::{Client, ClientId, Grant};
use crate::registrar::{Step, Wanted};
use crate::secret::Secret;
use crate::time::Timestamp;

/// Below this a crash of the refreshing task may cost freshness: a take-over would come too late.
const SHORT_LIFETIME: Duration = Duration::from_secs(6 * 60);

/// Register a client; a running daemon finds it within seconds.
///
/// Secrets come from standard input, the environment or a file, never from an argument.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  perennial clients add billing --provider acme --grant client_credentials \\
      --client-id app-1 --client-secret-env ACME_SECRET
  vault read ... | perennial clients add crm-7 --provider acme --grant refresh_token \\
      --client-id app-1 --client-secret-file /run/secrets/acme --refresh-token-stdin
  perennial clients add billing --provider acme --grant client_credentials \\
      --client-id app-1 --client-secret-ref ssm:/oauth/acme")]
pub(super) struct Add {
    /// The client's name: 1 to 128 characters of A-Z a-z 0-9 . _ : @ -
    #[arg(value_name = "ID", value_parser = client_id)]
    id: ClientId,
    /// Provider profile in the configuration.
    #[arg(long)]
    provider: String,
    /// client_credentials or refresh_token.
    #[arg(long)]
    grant: Grant,
    /// OAuth client id.
    #[arg(long)]
    client_id: String,
    #[command(flatten)]
    client_secret: ClientSecretArgs,
    #[command(flatten)]
    second_client_secret: SecondSecretArgs,
    #[command(flatten)]
    refresh_token: RefreshTokenArgs,
    #[command(flatten)]
    access_token: AccessTokenArgs,
    /// Scope to ask for instead of the provider's; may be repeated.
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// `audience` to ask for instead of the provider's.
    #[arg(long)]
    audience: Option<String>,
    /// RFC 8707 resource indicator instead of the provider's; may be repeated.
    #[arg(long, value_name = "URI")]
    resource: Vec<String>,
    /// Further parameter of the token request; may be repeated.
    #[arg(long = "param", value_name = "KEY=VALUE", value_parser = key_value)]
    params: Vec<(String, Secret)>,
    /// Token endpoint instead of the provider's.
    #[arg(long, value_name = "URL")]
    token_url: Option<Url>,
    /// Register it without refreshing it yet.
    #[arg(long)]
    paused: bool,
    /// Put the given refresh token in the place of one that another tool stored under this id.
    #[arg(long)]
    replace: bool,
}

fn key_value(text: &str) -> Result<(String, Secret), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.into())),
        _ => Err("write it as KEY=VALUE".into()),
    }
}

impl Add {
    pub(super) async fn run(&self, app: &App) -> anyhow::Result<ExitCode> {
        let provider = app.provider(&self.provider)?;
        let (first, second) = (self.client_secret.given()?, self.second_client_secret.given()?);
        let sources = [
            Given::source(first.as_ref()),
            Given::source(second.as_ref()),
            self.refresh_token.source(),
            self.access_token.source(),
        ];
        let [first_read, second_read, refresh_token, access_token] = read_all(app, &sources)?;
        let wanted = self.wanted(Credentials {
            first: Given::credential(first, first_read),
            second: Given::credential(second, second_read),
        });
        let has = spec::Has::of(&wanted.client.credentials, refresh_token.is_some());
        let wrong = spec::check(&wanted.client, provider, has, &app.config().secrets.allow);
        if !wrong.is_empty() {
            let lines = wrong.iter().map(|(key, problem)| format!("\n  {key} {problem}"));
            return Err(UsageError(format!("client `{}`:{}", self.id, lines.collect::<String>())).into());
        }
        let expiry = self.access_token.expires_in.map_or(Expiry::Unknown, Expiry::In);
        let tokens = imported(app, refresh_token, access_token, expiry);
        let store = app.store().await?;
        let step = app.registrar(&store).register(&wanted, &tokens, provider, self.replace).await?;
        if let Some(note) = short_lifetime(expiry) {
            output::note(format_args!("note: {}: {note}", self.id));
        }
        let told = match step {
            Step::Create { adopts: true } => "registered, with the tokens that another tool stored",
            _ => "registered",
        };
        output::told(format_args!("{} {told}", self.id));
        Ok(ExitCode::SUCCESS)
    }

    fn wanted(&self, credentials: Credentials) -> Wanted {
        let client = Client {
            id: self.id.clone(),
            provider: self.provider.clone(),
            grant: self.grant,
            client_id: self.client_id.clone(),
            credentials,
            scopes: self.scopes.clone(),
            audience: self.audience.clone(),
            resource: self.resource.clone(),
            params: self.params.iter().cloned().collect(),
            token_url: self.token_url.clone(),
            paused: false,
            refresh_now: None,
            joined: Timestamp::EPOCH,
        };
        Wanted { client, paused: Some(self.paused) }
    }
}

/// Reads secrets from where their arguments say.
pub(super) fn read_all<const N: usize>(
    app: &App,
    sources: &[Option<Source>; N],
) -> Result<[Option<Secret>; N], UsageError> {
    only_one_stdin(sources).map_err(UsageError)?;
    let mut secrets = [const { None }; N];
    for (secret, source) in secrets.iter_mut().zip(sources) {
        *secret = source.as_ref().map(|source| source.read(app.sources())).transpose().map_err(UsageError)?;
    }
    Ok(secrets)
}

/// What is not promised for tokens of this life.
pub(super) fn short_lifetime(expiry: Expiry) -> Option<String> {
    match expiry {
        Expiry::In(lifetime) if lifetime < SHORT_LIFETIME => Some(format!(
            "its tokens live for {} only; that one stays fresh through the crash of a task is not promised under 6 \
             minutes",
            humantime::format_duration(lifetime)
        )),
        _ => None,
    }
}
