//! `perennial lambda-extension`: the agent in a sandbox of AWS Lambda, which freezes between invocations.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use tracing::{info, warn};

use super::agent::{Readers, Serving};
use super::{App, UsageError};
use crate::agent::Keys;
use crate::agent::keys::Pattern;
use crate::aws::connections;
use crate::config::{Config, ConfigErrors, Sources};
use crate::lambda::{Api, Event, Extension, was_frozen};
use crate::time::{Clock, SystemClock};

/// The file's name in a layer's `extensions` folder; called by it, the program is the extension.
const NAME: &str = "perennial-lambda-extension";
/// For reading what is wanted before the function begins; the whole of its beginning has ten seconds.
const WARM: Duration = Duration::from_secs(4);
/// Between the end of what is under way and Lambda's deadline.
const MARGIN: Duration = Duration::from_millis(200);
/// How long requests under way may go on, where Lambda names no deadline.
const DRAIN: Duration = Duration::from_secs(2);

/// Give a function of AWS Lambda its tokens, as an extension of its sandbox, until Lambda ends that.
#[derive(Debug, Args)]
#[command(
    name = "lambda-extension",
    after_help = "\
Lambda starts it: by `make lambda-layer` it stands in a layer as extensions/perennial-lambda-extension, and needs no arguments."
)]
pub(super) struct LambdaExtension {
    /// The file's name in /opt/extensions, by which Lambda knows it
    #[arg(long, value_name = "NAME", default_value = NAME)]
    name: String,
}

/// The words of the command line: called by the extension's name, the program needs none.
pub fn arguments(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<_> = words.collect();
    let called = words.first().and_then(|word| Path::new(word).file_name());
    if words.len() == 1 && called.is_some_and(|name| name == NAME) {
        words.push("lambda-extension".into());
    }
    words
}

impl LambdaExtension {
    pub(super) async fn run(&self, config: Option<PathBuf>) -> anyhow::Result<ExitCode> {
        let sources = Sources::from_process(config.clone());
        let address = sources.lambda_runtime_api().ok_or_else(|| {
            UsageError(
                "AWS_LAMBDA_RUNTIME_API is not set: AWS Lambda starts this command, from /opt/extensions"
                    .into(),
            )
        })?;
        let api = Api::at(address)?;
        // Lambda begins the function once all extensions have registered: it must not find the port closed.
        let serving = match begin(config).await {
            Ok(serving) => serving,
            Err(error) => {
                give_up(api, &self.name, &error).await;
                return Err(error);
            }
        };
        let extension = api.register(&self.name).await?;
        info!(name = self.name, "registered with AWS Lambda");
        match attend(&extension, &serving).await {
            Ok(drain) => serving.end(drain).await,
            Err(error) => {
                told(extension.fail_exit("Extension.Failed", &format!("{error:#}")).await);
                serving.end(Duration::ZERO).await?;
                Err(error)
            }
        }
    }
}

async fn begin(config: Option<PathBuf>) -> anyhow::Result<Serving> {
    let app = App::load(config)?;
    let serving = Serving::start(&app, |config| readers(config, app.sources())).await?;
    let warm = app.config().lambda.warm.iter().map(|id| serving.agent.warm(id));
    let clock = app.clock();
    tokio::select! {
        _ = futures_util::future::join_all(warm) => {}
        () = clock.sleep(WARM) => warn!("the table is slow: not all tokens that were to be read are"),
    }
    Ok(serving)
}

/// An error is told by whoever has registered.
async fn give_up(api: Api, name: &str, error: &anyhow::Error) {
    let kind = if error.is::<ConfigErrors>() || error.is::<UsageError>() {
        "Extension.ConfigInvalid"
    } else {
        "Extension.InitFailed"
    };
    told(match api.register(name).await {
        Ok(extension) => extension.fail_init(kind, &format!("{error:#}")).await,
        Err(error) => Err(error),
    });
}

fn told(answer: Result<(), crate::lambda::LambdaError>) {
    if let Err(error) = answer {
        super::output::note(format_args!("AWS Lambda could not be told: {:#}", anyhow::Error::new(error)));
    }
}

/// Follows the sandbox, and says how long the last requests may take.
async fn attend(extension: &Extension, serving: &Serving) -> anyhow::Result<Duration> {
    let clock = SystemClock;
    loop {
        let before = (clock.moment(), clock.now());
        let event = tokio::select! {
            // In this order: asked to stop, it has not ended by itself.
            biased;
            () = serving.shutdown.drain.cancelled() => return Ok(DRAIN),
            event = extension.next() => event?,
            () = serving.asked_to_stop() => bail!("the agent has ended"),
        };
        match event {
            Event::Invoke if was_frozen(before, (clock.moment(), clock.now())) => connections::drop_all(),
            Event::Invoke => {}
            Event::Shutdown { reason, deadline } => {
                let left = deadline.since(clock.now()).saturating_sub(MARGIN);
                info!(reason, ?left, "AWS Lambda ends the sandbox");
                return Ok(left);
            }
        }
    }
}

/// Readers with keys of their own where there is a file of them; else the function, by what only its sandbox knows.
fn readers(config: &Config, sources: &Sources) -> anyhow::Result<Readers> {
    if let Some(readers) = Readers::of_file(config)? {
        return Ok(readers);
    }
    let token = sources.lambda_session_token().ok_or_else(|| {
        UsageError("there is neither agent.keys_file nor AWS_SESSION_TOKEN: nobody could read a token".into())
    })?;
    let patterns = config.lambda.clients.iter().filter_map(|pattern| Pattern::new(pattern)).collect();
    Ok(Readers::Fixed(Keys::of_one("function", token, patterns)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_a_layer_is_called_without_words() {
        let called = |words: &[&str]| arguments(words.iter().map(OsString::from));
        let extension: Vec<OsString> =
            ["/opt/extensions/perennial-lambda-extension", "lambda-extension"].map(Into::into).into();
        assert_eq!(called(&["/opt/extensions/perennial-lambda-extension"]), extension);
        for words in [&["perennial"][..], &["perennial-lambda-extension", "--version"], &[]] {
            assert_eq!(called(words).len(), words.len());
        }
    }
}
