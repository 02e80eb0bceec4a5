//! References to secrets that are kept elsewhere: the text of one, and what it means.
//!
//! | text | the secret is |
//! |---|---|
//! | `secretsmanager:NAME-OR-ARN[?stage=STAGE][#KEY]` | the string of a secret of AWS Secrets Manager, or of one key of its JSON object |
//! | `ssm:NAME` | the value of a SecureString of AWS Systems Manager Parameter Store |
//! | `env:NAME` | an environment variable of the daemon |
//! | `file:/PATH` | what stands in a file beside the daemon |
//!
//! Neither `?` nor `#` can stand in a secret's name there (AWS Secrets Manager API Reference, "CreateSecret"), so that a text
//! has one meaning. A reference is a name and no secret: it may be shown.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A reference that can be followed. Whether it may be is for the configuration to say: see [`super::allowance`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretRef(Arc<str>);

/// Where a reference leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location<'a> {
    /// AWS Secrets Manager.
    SecretsManager {
        /// The secret's name or ARN.
        id: &'a str,
        /// The staging label of the version; none means `AWSCURRENT`.
        stage: Option<&'a str>,
        /// The key of its JSON object; none means all of the string.
        key: Option<&'a str>,
    },
    /// AWS Systems Manager Parameter Store: a parameter's name.
    Parameter(&'a str),
    /// The name of an environment variable.
    Environment(&'a str),
    /// The absolute path of a file.
    File(&'a str),
}

/// What stands before the first colon of a reference: the kind of place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// AWS Secrets Manager.
    SecretsManager,
    /// AWS Systems Manager Parameter Store.
    Parameter,
    /// The environment of the daemon.
    Environment,
    /// A file beside the daemon.
    File,
}

impl Scheme {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::SecretsManager, Self::Parameter, Self::Environment, Self::File];

    /// As it is written in a reference.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SecretsManager => "secretsmanager",
            Self::Parameter => "ssm",
            Self::Environment => "env",
            Self::File => "file",
        }
    }

    /// The kind that is written so.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scheme| scheme.as_str() == text)
    }
}

/// How the names of this program's own variables begin, of AWS's, and of those that ECS gives a task.
const OWN: [&str; 3] = ["PERENNIAL", "AWS_", "ECS_"];

/// Whether no reference may lead to this variable: it belongs to this program or to what it runs on.
pub fn is_own_variable(name: &str) -> bool {
    OWN.iter().any(|prefix| name.starts_with(prefix))
}

/// A text that is no reference.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0}: write secretsmanager:NAME-OR-ARN[?stage=STAGE][#KEY], ssm:/NAME, env:NAME or file:/PATH, and never the secret \
     itself"
)]
pub struct InvalidRef(&'static str);

impl SecretRef {
    /// The longest reference, in bytes: an ARN and a key fit in.
    pub const MAX_LEN: usize = 1024;

    /// Reads a reference.
    ///
    /// # Errors
    /// Says what is wrong without repeating the text, which may be a secret that somebody wrote in its place.
    pub fn new(text: &str) -> Result<Self, InvalidRef> {
        if text.len() > Self::MAX_LEN {
            return Err(InvalidRef("is longer than 1024 bytes"));
        }
        // A name is shown in logs and on terminals: nothing in it may move the cursor, or turn the line around.
        let printable = |c: char| c.is_ascii_graphic() || c == ' ' || c.is_alphanumeric();
        if !text.chars().all(printable) {
            return Err(InvalidRef("has a character that is no letter, digit or sign"));
        }
        check(locate(text)?)?;
        Ok(Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The reference to all of what is looked up for this one: without `#KEY`.
    #[must_use]
    pub fn whole(&self) -> Self {
        match self.location().key() {
            // No secret's name and no staging label has a #.
            Some(_) => Self(split(&self.0, '#').0.into()),
            None => self.clone(),
        }
    }

    /// Where it leads.
    pub fn location(&self) -> Location<'_> {
        locate(&self.0).expect("it was located when it was made")
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for SecretRef {
    type Err = InvalidRef;
    fn from_str(text: &str) -> Result<Self, InvalidRef> {
        Self::new(text)
    }
}

impl Location<'_> {
    /// What stands before the first colon.
    pub fn scheme(&self) -> Scheme {
        match self {
            Self::SecretsManager { .. } => Scheme::SecretsManager,
            Self::Parameter(_) => Scheme::Parameter,
            Self::Environment(_) => Scheme::Environment,
            Self::File(_) => Scheme::File,
        }
    }

    /// Which string of the JSON object that is there is wanted; none means all of what is there.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::SecretsManager { key, .. } => *key,
            _ => None,
        }
    }

    /// What is named there, without the part of it that is wanted.
    pub fn name(&self) -> &str {
        match self {
            Self::SecretsManager { id, .. } => id,
            Self::Parameter(name) | Self::Environment(name) | Self::File(name) => name,
        }
    }
}

fn locate(text: &str) -> Result<Location<'_>, InvalidRef> {
    let (scheme, rest) = text.split_once(':').ok_or(InvalidRef("is no reference"))?;
    match Scheme::parse(scheme).ok_or(InvalidRef("is no reference"))? {
        Scheme::SecretsManager => {
            let (rest, key) = split(rest, '#');
            let (id, query) = split(rest, '?');
            let stage =
                query.map(|query| query.strip_prefix("stage=").ok_or(InvalidRef("asks for no stage")));
            Ok(Location::SecretsManager { id, stage: stage.transpose()?, key })
        }
        Scheme::Parameter => Ok(Location::Parameter(rest)),
        Scheme::Environment => Ok(Location::Environment(rest)),
        Scheme::File => Ok(Location::File(rest)),
    }
}

fn split(text: &str, at: char) -> (&str, Option<&str>) {
    text.split_once(at).map_or((text, None), |(before, after)| (before, Some(after)))
}

fn check(location: Location<'_>) -> Result<(), InvalidRef> {
    match location {
        // "The secret name can contain ASCII letters, numbers, and the following characters: /_+=.@-"; those that a service
        // of AWS's manages have a !, and an ARN has colons.
        Location::SecretsManager { id, stage, key } => {
            refuse(id.is_empty() || !id.bytes().all(|byte| word(byte, b"/_+=.@-!:")), "names no secret")?;
            let label =
                |stage: &str| (1..=256).contains(&stage.len()) && stage.bytes().all(|b| word(b, b"_+=.@-/"));
            refuse(!stage.is_none_or(label), "names no staging label")?;
            refuse(key.is_some_and(str::is_empty), "names an empty key")?;
        }
        // "A parameter name can include only the following symbols and letters: a-zA-Z0-9_.-", and / for hierarchies.
        Location::Parameter(name) => {
            refuse(name.is_empty() || !name.bytes().all(|byte| word(byte, b"/_.-")), "names no parameter")?;
        }
        Location::Environment(name) => {
            let starts = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
            refuse(!starts || !name.bytes().all(|byte| word(byte, b"_")), "names no environment variable")?;
            refuse(is_own_variable(name), "names a variable of this program's own, of AWS's or of ECS's")?;
        }
        Location::File(path) => {
            let plain =
                path.len() > 1 && path.starts_with('/') && !path.ends_with('/') && !path.contains("//");
            refuse(!plain, "names no file by its absolute path")?;
        }
    }
    refuse(location.name().split('/').any(|part| part == "." || part == ".."), "has a . or .. in its path")
}

fn word(byte: u8, others: &[u8]) -> bool {
    byte.is_ascii_alphanumeric() || others.contains(&byte)
}

fn refuse(wrong: bool, problem: &'static str) -> Result<(), InvalidRef> {
    if wrong { Err(InvalidRef(problem)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_kind_says_where_the_secret_is() {
        let at = |text: &str| format!("{:?}", SecretRef::new(text).expect(text).location());
        let arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:oauth/acme-AbCdEf";
        assert_eq!(at("ssm:/oauth/acme"), "Parameter(\"/oauth/acme\")");
        assert_eq!(at("env:ACME_SECRET"), "Environment(\"ACME_SECRET\")");
        assert_eq!(at("file:/run/secrets/..data/a b"), "File(\"/run/secrets/..data/a b\")");
        let secret = |id: &str, stage: Option<&str>, key: Option<&str>| {
            format!("{:?}", Location::SecretsManager { id, stage, key })
        };
        assert_eq!(at("secretsmanager:oauth/acme@eu"), secret("oauth/acme@eu", None, None));
        assert_eq!(
            at(&format!("secretsmanager:{arn}#client#secret")),
            secret(arn, None, Some("client#secret"))
        );
        let staged = at("secretsmanager:acme?stage=AWSPENDING#a?b");
        assert_eq!(staged, secret("acme", Some("AWSPENDING"), Some("a?b")));
    }

    #[test]
    fn what_is_no_reference_is_told_and_not_repeated() {
        let bad = [
            "",
            "canary",
            "vault:canary",
            "SSM:/canary",
            "ssm:",
            "ssm:/a/../canary",
            "ssm:arn:aws:ssm:eu-central-1:1:parameter/canary",
            "secretsmanager:",
            "secretsmanager:canary secret",
            "secretsmanager:canary?version=1",
            "secretsmanager:canary?stage=",
            "secretsmanager:canary#",
            "env:",
            "env:1CANARY",
            "env:PERENNIAL__SEALING__KEY",
            "env:PERENNIAL_CANARY",
            "env:PERENNIAL",
            "env:AWS_SECRET_ACCESS_KEY",
            "env:ECS_CONTAINER_METADATA_URI_V4",
            "file:canary",
            "file:/",
            "file:/canary/",
            "file:/a//canary",
            "file:/run/secrets/../../etc/canary",
            "file:/canary\n",
            "file:/\u{202e}canary",
            &format!("ssm:/{}", "x".repeat(1024)),
        ];
        for text in bad {
            let told = SecretRef::new(text).expect_err(text).to_string();
            assert!(!told.contains("canary") && told.contains("write secretsmanager:"), "{told}");
        }
    }

    #[test]
    fn only_what_begins_as_ours_do_is_an_own_variable() {
        for name in ["PERENNIAL_CONFIG", "PERENNIAL__SEALING__KEY", "AWS_PROFILE", "ECS_AGENT_URI"] {
            assert!(is_own_variable(name), "{name}");
        }
        for name in ["ACME_SECRET", "OAUTH_AWS_", "AWSOME", "ECSTATIC", "perennial_x", ""] {
            assert!(!is_own_variable(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_reference_is_read_as_it_is_written(text in "(secretsmanager|ssm|env|file|x)?:?[a-zA-Z/._#?=@:-]{0,24}") {
            if let Ok(reference) = SecretRef::new(&text) {
                prop_assert_eq!(reference.as_str(), &text);
                let again = match reference.location() {
                    Location::SecretsManager { id, stage, key } => {
                        let stage = stage.map(|stage| format!("?stage={stage}")).unwrap_or_default();
                        let key = key.map(|key| format!("#{key}")).unwrap_or_default();
                        format!("secretsmanager:{id}{stage}{key}")
                    }
                    other => format!("{}:{}", other.scheme().as_str(), other.name()),
                };
                prop_assert_eq!(again, text);
            }
        }

        #[test]
        fn nothing_that_stands_in_a_table_is_too_strange(text in any::<String>()) {
            let _read = SecretRef::new(&text);
        }
    }
}
