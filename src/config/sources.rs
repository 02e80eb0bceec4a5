//! From files and environment to one raw tree, in which each value still knows where it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use ::config::{FileFormat, Map, Source, Value, ValueKind};

use sha2::{Digest as _, Sha256};

use super::error::{ConfigError, ConfigErrors, Origin};
use super::schema::{self, Place};
use crate::bounded;
use crate::client::reference::is_own_variable;
use crate::secret::Secret;
use crate::shown;

const PREFIX: &str = "PERENNIAL__";
const PATH_VARIABLE: &str = "PERENNIAL_CONFIG";
const DEFAULT_DIRECTORY: &str = "config";

/// What configuration files hold, as digests: none for a file that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint(Vec<Option<Vec<u8>>>);

/// No configuration is larger, in bytes.
const LARGEST: u64 = 1 << 20;

/// What a configuration is read from. Nothing else in this crate reads the environment.
///
/// `Debug` names no variable and shows no value: an environment holds secrets.
#[derive(Clone, Default)]
pub struct Sources {
    /// A configuration file, or a directory of them; where there is none, `PERENNIAL_CONFIG` names it.
    pub path: Option<PathBuf>,
    /// The environment, as it was when the process began: it is read once.
    pub environment: BTreeMap<String, Secret>,
}

impl Sources {
    /// The process's own environment, and `path` as the operator gave it. Without one, and without
    /// `PERENNIAL_CONFIG`, the directory `./config` is read if it exists.
    pub fn from_process(path: Option<PathBuf>) -> Self {
        let mut sources = Self { path, environment: process_environment() };
        if sources.path().is_none() && Path::new(DEFAULT_DIRECTORY).is_dir() {
            sources.path = Some(DEFAULT_DIRECTORY.into());
        }
        sources
    }

    /// An environment variable that the operator named, such as the one that holds a client secret. None if it is
    /// not set, or empty.
    pub fn variable(&self, name: &str) -> Option<Secret> {
        self.environment.get(name).filter(|value| !value.is_empty()).cloned()
    }

    /// Every variable that may hold a client secret: none of this program's own, nor of AWS's or ECS's.
    pub fn foreign_variables(&self) -> BTreeMap<String, Secret> {
        let set = self.environment.iter().filter(|(name, _)| !is_own_variable(name));
        set.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// The files that hold this program's own settings and credentials, as far as the environment and the command line name
    /// them: what AWS's SDKs read ("Settings reference" of the AWS SDKs and Tools Reference Guide) among them.
    pub fn own_files(&self) -> Vec<PathBuf> {
        const NAMING: [&str; 4] = [
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            "AWS_SHARED_CREDENTIALS_FILE",
            "AWS_CONFIG_FILE",
        ];
        let named = NAMING.iter().filter_map(|name| Some(PathBuf::from(self.set(name)?)));
        let home = self.set("HOME").map(PathBuf::from);
        let usual =
            home.iter().flat_map(|home| ["credentials", "config"].map(|name| home.join(".aws").join(name)));
        self.files().into_iter().chain(named).chain(usual).collect()
    }

    /// Whether this process is an Amazon ECS task: its agent sets these variables (Amazon ECS Developer Guide,
    /// "Task metadata endpoint").
    pub fn on_ecs(&self) -> bool {
        let metadata = ["ECS_CONTAINER_METADATA_URI_V4", "ECS_CONTAINER_METADATA_URI"];
        metadata.iter().any(|name| self.set(name).is_some())
            || self.set("AWS_EXECUTION_ENV").is_some_and(|environment| environment.starts_with("AWS_ECS"))
    }

    /// Whether there are files to be read, or should be.
    pub fn has_files(&self) -> bool {
        self.path().is_some()
    }

    /// What the files hold by now: two readings are equal where nothing has changed.
    pub fn fingerprint(&self) -> Fingerprint {
        let read = |file: &PathBuf| bounded::read(file, LARGEST).ok();
        let digest = |file: &PathBuf| read(file).map(|text| Sha256::digest(&text).to_vec());
        Fingerprint(self.files().iter().map(digest).collect())
    }

    /// Those that are read, whether they are there or not.
    fn files(&self) -> Vec<PathBuf> {
        let Some(path) = self.path() else { return Vec::new() };
        if !path.is_dir() {
            return vec![path];
        }
        ["perennial.toml", "development.toml", "production.toml"].map(|name| path.join(name)).to_vec()
    }

    /// Whether what was read then is still there: a file that is missing for a moment is no configuration without it.
    ///
    /// # Errors
    /// Where a file is gone, or cannot be read any more.
    pub fn missing_since(&self, read: &Fingerprint) -> Result<(), ConfigErrors> {
        let now = self.fingerprint();
        let gone = now.0.len() != read.0.len()
            || read.0.iter().zip(&now.0).any(|(then, now)| then.is_some() && now.is_none());
        if !gone {
            return Ok(());
        }
        let path = self.path().unwrap_or_default();
        Err(ConfigErrors(vec![ConfigError {
            key: path.display().to_string(),
            problem: "is not all there any more, or cannot be read".to_owned(),
            remedy: "put the file back; to do without it, restart".to_owned(),
            origin: None,
        }]))
    }

    /// Where the task's metadata are served on Amazon ECS (version 4).
    pub fn ecs_metadata_uri(&self) -> Option<&str> {
        self.set("ECS_CONTAINER_METADATA_URI_V4")
    }

    /// Where the agent of Amazon ECS takes requests of its tasks.
    pub fn ecs_agent_uri(&self) -> Option<&str> {
        self.set("ECS_AGENT_URI")
    }

    /// Where the APIs of AWS Lambda's runtimes and extensions are: a host and a port ("Using the Lambda Extensions API" in
    /// the AWS Lambda Developer Guide).
    pub fn lambda_runtime_api(&self) -> Option<&str> {
        self.set("AWS_LAMBDA_RUNTIME_API")
    }

    /// What a function's own processes know and nobody else: its session token, or, with SnapStart, the token for its
    /// credentials ("Defined runtime environment variables" in the same guide). AWS's own agent takes it for its key.
    pub fn lambda_session_token(&self) -> Option<&Secret> {
        ["AWS_SESSION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN"]
            .iter()
            .find(|name| self.set(name).is_some())
            .and_then(|name| self.environment.get(*name))
    }

    pub(super) fn path(&self) -> Option<PathBuf> {
        self.path.clone().or_else(|| self.set(PATH_VARIABLE).map(PathBuf::from))
    }

    fn set(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(Secret::expose).filter(|value| !value.is_empty())
    }

    /// The variables of ours as a tree, and an error for each that no key takes.
    pub(super) fn into_layer(self, errors: &mut Vec<ConfigError>) -> Layer {
        let mut layer = Layer::default();
        let ours = |name: &str| name.starts_with("PERENNIAL_") && name != PATH_VARIABLE;
        for (name, value) in self.environment.into_iter().filter(|(name, _)| ours(name)) {
            match key_of(&name) {
                Err(error) => errors.push(error),
                Ok(_) if value.is_empty() => {}
                Ok(path) => {
                    let origin = Origin::Environment(name);
                    layer.insert(&path, Value::new(Some(&origin.label()), value.expose()));
                }
            }
        }
        layer
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A variable that is not Unicode is ignored, except one of ours: its value is read lossily, and then refused by
/// whatever key takes it.
fn process_environment() -> BTreeMap<String, Secret> {
    #[allow(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
    let variables = std::env::vars_os();
    let readable = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        let name = name.into_string().ok()?;
        let value = match value.into_string() {
            Ok(value) => value,
            Err(value) if name.starts_with("PERENNIAL_") => value.to_string_lossy().into_owned(),
            Err(_) => return None,
        };
        Some((name, Secret::new(value)))
    };
    variables.filter_map(readable).collect()
}

/// The key that a variable sets. In a header's name `_` stands for `-`: a variable cannot have a `-` in its name, and
/// headers hardly ever have a `_`.
fn key_of(variable: &str) -> Result<Vec<String>, ConfigError> {
    let unknown = |remedy: String| ConfigError {
        key: shorten(variable),
        problem: "no key takes this environment variable".to_owned(),
        remedy,
        origin: None,
    };
    let form = "keys are spelled PERENNIAL__SECTION__KEY, in capitals; remove or rename it".to_owned();
    let nearest = |form| match schema::nearest_variable(variable) {
        Some(known) => format!("did you mean {known}?"),
        None => form,
    };
    let spelled = variable.strip_prefix(PREFIX).filter(|_| variable == variable.to_ascii_uppercase());
    let Some(key) = spelled else { return Err(unknown(nearest(form))) };
    let mut path: Vec<String> = key.split("__").map(str::to_ascii_lowercase).collect();
    if path.len() == 4 && path[2] == "headers" {
        path[3] = path[3].replace('_', "-");
    }
    match schema::find(&path) {
        Place::Key(_) => Ok(path),
        Place::Section => Err(unknown(form)),
        Place::Unknown(None) => Err(unknown(nearest(form))),
        Place::Unknown(Some(name)) => {
            path.pop();
            path.push(name.to_owned());
            Err(unknown(format!("did you mean {}?", schema::variable_of(&path.join(".")))))
        }
    }
}

/// One source's values, as a tree whose first level holds known sections only. (The `config` crate reads the names of
/// the first level as paths with indexes, which a hostile file could use to ask for any amount of memory.)
#[derive(Clone, Debug, Default)]
pub(super) struct Layer(Map<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ::config::ConfigError> {
        Ok(self.0.clone())
    }
}

impl Layer {
    pub(super) fn remove(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    /// Reads a TOML file; a file that cannot be read is an error and an empty layer.
    pub(super) fn from_file(path: &Path, errors: &mut Vec<ConfigError>) -> Self {
        let file = ::config::File::from(path).format(FileFormat::Toml);
        match file.collect() {
            Ok(tree) => Self(tree).labelled(&Origin::File(path.display().to_string()), errors),
            Err(error) => {
                errors.push(unreadable(path, &error));
                Self::default()
            }
        }
    }

    fn labelled(self, origin: &Origin, errors: &mut Vec<ConfigError>) -> Self {
        let mut known = Self::default();
        for (name, value) in self.0 {
            match schema::find(std::slice::from_ref(&name)) {
                Place::Unknown(nearest) => errors.push(unknown_key(&name, nearest, Some(origin.clone()))),
                _ => drop(known.0.insert(name, label(value, &origin.label()))),
            }
        }
        known
    }

    fn insert(&mut self, path: &[String], value: Value) {
        let Some((first, rest)) = path.split_first() else { return };
        if rest.is_empty() {
            self.0.insert(first.clone(), value);
            return;
        }
        let mut inner = match self.0.remove(first).map(|section| section.kind) {
            Some(ValueKind::Table(table)) => Self(table),
            _ => Self::default(),
        };
        inner.insert(rest, value);
        self.0.insert(first.clone(), Value::new(None, ValueKind::Table(inner.0)));
    }
}

/// The same value, with our name for where it came from.
fn label(value: Value, origin: &String) -> Value {
    let kind = match value.kind {
        ValueKind::Table(table) => {
            ValueKind::Table(table.into_iter().map(|(name, value)| (name, label(value, origin))).collect())
        }
        kind => kind,
    };
    Value::new(Some(origin), kind)
}

/// Lays the layers over one another, the last one on top.
pub(super) fn merge(layers: &[&Layer]) -> Map<String, Value> {
    let builder = layers
        .iter()
        .fold(::config::Config::builder(), |builder, layer| builder.add_source((*layer).clone()));
    let tree = builder.build().and_then(|tree| tree.collect());
    tree.expect("layers are in memory and cannot fail to be collected")
}

/// A key that there is not.
pub(super) fn unknown_key(key: &str, nearest: Option<&str>, origin: Option<Origin>) -> ConfigError {
    let remedy = match nearest {
        Some(name) => format!("did you mean {name}? Otherwise remove it"),
        None => "remove it".to_owned(),
    };
    ConfigError { key: shorten(key), problem: "there is no such key".to_owned(), remedy, origin }
}

/// A key as it is printed: names in a file may be of any length, with any character.
pub(super) fn shorten(key: &str) -> String {
    shown::clipped(key, 160)
}

/// Why a file could not be read. TOML's own message is used without its excerpt, which could show a secret.
fn unreadable(path: &Path, error: &::config::ConfigError) -> ConfigError {
    let text = std::fs::read_to_string(path);
    let (problem, remedy) = match text.as_deref().map(|text| (text, toml::de::DeTable::parse(text))) {
        Ok((text, Err(error))) => {
            (format!("is not TOML{}: {}", line(text, &error), error.message()), "correct the file".to_owned())
        }
        Ok((_, Ok(_))) => (
            match error {
                ::config::ConfigError::FileParse { cause, .. } => format!("cannot be used: {cause}"),
                _ => "cannot be used".to_owned(),
            },
            "write numbers that fit into 64 bits".to_owned(),
        ),
        Err(error) => (format!("cannot be read: {error}"), "make it a readable TOML file".to_owned()),
    };
    ConfigError { key: path.display().to_string(), problem, remedy, origin: None }
}

fn line(text: &str, error: &toml::de::Error) -> String {
    let Some(span) = error.span() else { return String::new() };
    let before = text.as_bytes().iter().take(span.start);
    format!(" in line {}", before.filter(|byte| **byte == b'\n').count() + 1)
}
