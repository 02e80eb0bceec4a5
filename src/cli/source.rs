//! Where a secret is read from: never from an argument, which every user of the machine can see (ps), and never
//! from a clients file, which ends up in a repository.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use clap::Args;
use zeroize::Zeroizing;

use super::{App, UsageError};
use crate::client::credentials::Credential;
use crate::client::reference::SecretRef;
use crate::config::Sources;
use crate::plan::registry::Imported;
use crate::plan::schedule;
use crate::secret::Secret;
use crate::time::Timestamp;

/// The longest secret, in bytes: a token is some kilobytes at most, and what is longer is another file.
const LONGEST: usize = 64 * 1024;

/// The place of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// An environment variable.
    Env(String),
    /// A file.
    File(PathBuf),
    /// Standard input, to its end.
    Stdin,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Stdin => f.write_str("standard input"),
        }
    }
}

impl Source {
    /// The secret, without one trailing newline. An error says what is wrong with the place.
    pub(super) fn read(&self, environment: &Sources) -> Result<Secret, String> {
        let text = match self {
            // Not repeated: somebody who took the option wrongly may have written the secret itself.
            Self::Env(name) if !is_variable(name) => {
                return Err(
                    "what is given is no name of an environment variable (letters, digits and _): write the \
                            name, not the secret"
                        .into(),
                );
            }
            Self::Env(name) => match environment.variable(name) {
                Some(secret) => Zeroizing::new(secret.expose().to_owned()),
                None => return Err(format!("{self} is not set, or empty: set it")),
            },
            Self::File(path) => {
                slurp(File::open(path)).map_err(|e| format!("{self} cannot be read ({e}): check it"))?
            }
            Self::Stdin => {
                slurp(Ok(io::stdin().lock())).map_err(|e| format!("{self} cannot be read ({e})"))?
            }
        };
        match without_newline(&text) {
            _ if text.len() > LONGEST => Err(format!(
                "{self} holds more than {LONGEST} bytes, which is no secret: check what is there"
            )),
            secret if secret.contains('\0') => {
                Err(format!("{self} holds a NUL byte, which is no part of a secret: check what is there"))
            }
            "" => Err(format!("{self} is empty: put the secret there")),
            secret => Ok(Secret::new(secret)),
        }
    }
}

fn slurp(from: io::Result<impl Read>) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    // One byte more than is allowed, to tell. The limit may cut a character in two.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST + 1));
    from?.take(LONGEST as u64 + 1).read_to_end(&mut bytes)?;
    match std::str::from_utf8(&bytes) {
        Err(_) if bytes.len() <= LONGEST => {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no UTF-8"));
        }
        Err(_) => text.push_str(&" ".repeat(LONGEST + 1)),
        Ok(read) => text.push_str(read),
    }
    Ok(text)
}

fn is_variable(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.chars().all(word) && !name.starts_with(|c: char| c.is_ascii_digit()) && !name.is_empty()
}

fn without_newline(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

/// A client secret that is read now, or a reference that the daemon is to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// The secret's place.
    Here(Source),
    /// The reference.
    At(SecretRef),
}

impl Given {
    fn of(source: Option<Source>, reference: Option<&Secret>) -> Result<Option<Self>, UsageError> {
        let reference = reference.map(|text| SecretRef::new(text.expose())).transpose();
        // Not by clap: it would repeat the text, which may be the secret itself.
        let reference = reference.map_err(|error| UsageError(format!("the reference {error}")))?;
        Ok(reference.map(Self::At).or(source.map(Self::Here)))
    }

    /// Where it is read, if it is.
    pub(super) fn source(given: Option<&Self>) -> Option<Source> {
        match given? {
            Self::Here(source) => Some(source.clone()),
            Self::At(_) => None,
        }
    }

    /// With what was read there.
    pub(super) fn credential(given: Option<Self>, read: Option<Secret>) -> Option<Credential> {
        match given? {
            Self::Here(_) => read.map(Credential::Stored),
            Self::At(reference) => Some(Credential::At(reference)),
        }
    }
}

/// What may be a secret that somebody took for a reference.
#[expect(clippy::unnecessary_wraps, reason = "clap asks for it")]
fn unseen(text: &str) -> Result<Secret, String> {
    Ok(Secret::new(text))
}

/// Where the client secret comes from.
#[derive(Clone, Debug, Default, Args)]
#[group(id = "ClientSecretSource", multiple = false)]
pub(super) struct ClientSecretArgs {
    /// Read the OAuth client secret from standard input.
    #[arg(long)]
    client_secret_stdin: bool,
    /// Read the OAuth client secret from this environment variable.
    #[arg(long, value_name = "NAME")]
    client_secret_env: Option<String>,
    /// Read the OAuth client secret from this file.
    #[arg(long, value_name = "FILE")]
    client_secret_file: Option<PathBuf>,
    /// Do not store the OAuth client secret: the daemon looks it up there, as in ssm:/oauth/acme. secrets.allow must
    /// allow it.
    #[arg(long, value_name = "REF", value_parser = unseen)]
    client_secret_ref: Option<Secret>,
}

/// Where a second client secret comes from: tried where the provider refuses the first.
#[derive(Clone, Debug, Default, Args)]
#[group(id = "SecondSecretSource", multiple = false)]
pub(super) struct SecondSecretArgs {
    /// Read a second OAuth client secret, tried where the first is refused, from standard input.
    #[arg(long)]
    second_client_secret_stdin: bool,
    /// Read a second OAuth client secret from this environment variable.
    #[arg(long, value_name = "NAME")]
    second_client_secret_env: Option<String>,
    /// Read a second OAuth client secret from this file.
    #[arg(long, value_name = "FILE")]
    second_client_secret_file: Option<PathBuf>,
    /// Have the daemon look up a second OAuth client secret there.
    #[arg(long, value_name = "REF", value_parser = unseen)]
    second_client_secret_ref: Option<Secret>,
}

/// Where the refresh token comes from.
#[derive(Clone, Debug, Default, Args)]
#[group(multiple = false)]
pub(super) struct RefreshTokenArgs {
    /// Read the refresh token from standard input.
    #[arg(long)]
    refresh_token_stdin: bool,
    /// Read the refresh token from this environment variable.
    #[arg(long, value_name = "NAME")]
    refresh_token_env: Option<String>,
    /// Read the refresh token from this file.
    #[arg(long, value_name = "FILE")]
    refresh_token_file: Option<PathBuf>,
}

/// Where the access token comes from, and how long it lives.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct AccessTokenArgs {
    #[command(flatten)]
    from: AccessTokenSource,
    /// How long the given access token still lives, as in 55m; unknown, it is refreshed at once.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, requires = "AccessTokenSource")]
    pub(super) expires_in: Option<std::time::Duration>,
}

#[derive(Clone, Debug, Default, Args)]
#[group(id = "AccessTokenSource", multiple = false)]
struct AccessTokenSource {
    /// Read a current access token from standard input.
    #[arg(long)]
    access_token_stdin: bool,
    /// Read a current access token from this environment variable.
    #[arg(long, value_name = "NAME")]
    access_token_env: Option<String>,
    /// Read a current access token from this file.
    #[arg(long, value_name = "FILE")]
    access_token_file: Option<PathBuf>,
}

impl ClientSecretArgs {
    pub(super) fn given(&self) -> Result<Option<Given>, UsageError> {
        let (env, file) = (self.client_secret_env.as_ref(), self.client_secret_file.as_ref());
        Given::of(one_of(self.client_secret_stdin, env, file), self.client_secret_ref.as_ref())
    }
}

impl SecondSecretArgs {
    pub(super) fn given(&self) -> Result<Option<Given>, UsageError> {
        let (env, file) = (self.second_client_secret_env.as_ref(), self.second_client_secret_file.as_ref());
        let source = one_of(self.second_client_secret_stdin, env, file);
        Given::of(source, self.second_client_secret_ref.as_ref())
    }
}

impl RefreshTokenArgs {
    pub(super) fn source(&self) -> Option<Source> {
        one_of(self.refresh_token_stdin, self.refresh_token_env.as_ref(), self.refresh_token_file.as_ref())
    }
}

impl AccessTokenArgs {
    pub(super) fn source(&self) -> Option<Source> {
        let from = &self.from;
        one_of(from.access_token_stdin, from.access_token_env.as_ref(), from.access_token_file.as_ref())
    }
}

fn one_of(stdin: bool, env: Option<&String>, file: Option<&PathBuf>) -> Option<Source> {
    let given = env.cloned().map(Source::Env).or_else(|| file.cloned().map(Source::File));
    if stdin { Some(Source::Stdin) } else { given }
}

/// Standard input has one end: two secrets cannot both come from it.
pub(super) fn only_one_stdin<'a>(
    sources: impl IntoIterator<Item = &'a Option<Source>>,
) -> Result<(), String> {
    match sources.into_iter().filter(|source| **source == Some(Source::Stdin)).count() {
        0 | 1 => Ok(()),
        _ => Err(
            "only one secret can come from standard input: give the others as a file or by the environment"
                .into(),
        ),
    }
}

/// When an access token expires, as an operator says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expiry {
    /// So long from now.
    In(std::time::Duration),
    /// Then.
    At(Timestamp),
    /// Nobody knows: it is refreshed at once.
    Unknown,
}

/// Tokens from outside, with a time for their first refresh. The spread is wide: what was imported together is not
/// to be refreshed together.
pub(super) fn imported(
    app: &App,
    refresh_token: Option<Secret>,
    access_token: Option<Secret>,
    expiry: Expiry,
) -> Imported {
    let now = app.clock().now();
    let expires_at = match expiry {
        Expiry::In(lifetime) => now.plus(lifetime),
        Expiry::At(at) => at,
        Expiry::Unknown => Timestamp::EPOCH,
    };
    let lifetime = expires_at.since(now);
    let bounds = &app.config().refresh.lifetimes;
    let refresh_at = (access_token.is_some() && !lifetime.is_zero())
        .then(|| schedule::refresh_at(now, lifetime, bounds, true, app.entropy.unit()));
    let expires_at = if access_token.is_some() { expires_at } else { Timestamp::EPOCH };
    Imported { access_token, refresh_token, token_type: None, scope: None, expires_at, refresh_at }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_trailing_newline_is_not_part_of_a_secret() {
        assert_eq!(without_newline("s\n"), "s");
        assert_eq!(without_newline("s\r\n"), "s");
        assert_eq!(without_newline("s\n\n"), "s\n");
        assert_eq!(without_newline(" s "), " s ");
    }

    #[test]
    fn a_second_secret_from_stdin_is_refused() {
        let (stdin, env) = (Some(Source::Stdin), Some(Source::Env("X".into())));
        assert!(only_one_stdin([&stdin, &env, &None]).is_ok());
        assert!(only_one_stdin([&stdin, &env, &stdin]).is_err());
    }
}
