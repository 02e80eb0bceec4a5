//! Every key there is: its kind, its default and what it means. Reading, `config show`, the sample file and the
//! documentation all follow this one table; tests hold them to it.

mod keys;
mod providers;

use super::check;
use super::error::Fault;
use super::kind::Kind;
use super::reload::{self, Reload};
use super::spelling::distance;
use keys::KEYS;
use providers::PROVIDERS;

/// A key. A `*` in its path stands for a name that the operator chooses.
pub(super) struct Key {
    pub(super) path: &'static str,
    pub(super) kind: Kind,
    pub(super) default: Fallback,
    pub(super) doc: &'static str,
}

/// What holds where a key is not set.
pub(super) enum Fallback {
    /// A value, spelled as the environment would.
    Is(&'static str),
    /// It follows from other settings, in the described way.
    Follows(&'static str),
    /// Nothing: it is optional.
    Unset,
    /// An error.
    Required,
}

use Fallback::{Follows, Is, Required, Unset};

type NameCheck = fn(&str) -> Result<(), Fault>;

/// The names that operators choose, by the path at which they stand.
const NAMES: [(&str, NameCheck); 4] = [
    ("agent.files.*", check::file_name),
    ("providers.*", check::provider_name),
    ("providers.*.params.*", check::param_name),
    ("providers.*.headers.*", check::header_name),
];

fn keys() -> impl Iterator<Item = &'static Key> {
    [KEYS, PROVIDERS].into_iter().flatten()
}

/// A key as documentation shows it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Reference {
    /// Its path; `*` stands for a name that the operator chooses.
    pub key: &'static str,
    /// The values that it takes.
    pub takes: String,
    /// What holds where it is not set: a value in backticks, or words.
    pub default: String,
    /// What it means.
    pub meaning: &'static str,
    /// Why a new value waits for a restart; none where it holds as soon as it is read.
    pub waits: Option<&'static str>,
}

/// Every key there is, in the order of the documentation.
pub fn reference() -> Vec<Reference> {
    keys().map(Key::reference).collect()
}

/// Where a path leads.
pub(super) enum Place {
    Key(&'static Key),
    Section,
    /// Nowhere; with the known name that is nearest to its last segment.
    Unknown(Option<&'static str>),
}

impl Key {
    /// Whether a value at `path`, which this key takes, must never be shown.
    pub(super) fn is_secret(&self, path: &[String]) -> bool {
        let name = path.last().map(String::as_str).unwrap_or_default();
        matches!(self.path, "providers.*.headers.*" | "sealing.key" | "shared_cache.password")
            || self.path.ends_with(".*") && sounds_secret(name)
    }

    fn reference(&self) -> Reference {
        let default = match self.default {
            Is("") => "none".to_owned(),
            Is(value) => format!("`{value}`"),
            Follows(rule) => rule.to_owned(),
            Unset => "none".to_owned(),
            Required => "required".to_owned(),
        };
        let waits = match reload::class(self.path) {
            Reload::Live => None,
            Reload::Restart(why) => Some(why),
        };
        Reference { key: self.path, takes: self.kind.describe(), default, meaning: self.doc, waits }
    }

    fn segments(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('.')
    }

    fn starts_with(&self, path: &[String]) -> bool {
        let mut segments = self.segments();
        path.iter().all(|name| segments.next().is_some_and(|own| own == "*" || own == name))
    }
}

/// Finds what takes the value at `path`.
pub(super) fn find(path: &[String]) -> Place {
    let mut section = false;
    for key in keys().filter(|key| key.starts_with(path)) {
        if key.segments().count() == path.len() {
            return Place::Key(key);
        }
        section = true;
    }
    if section { Place::Section } else { Place::Unknown(nearest_sibling(path)) }
}

/// Checks the last segment of a path where it is a name that the operator chose.
pub(super) fn check_name(path: &[String]) -> Result<(), Fault> {
    let here = |pattern: &str| {
        let own: Vec<&str> = pattern.split('.').collect();
        own.len() == path.len() && own.iter().zip(path).all(|(own, name)| *own == "*" || own == name)
    };
    let Some(name) = path.last() else { return Ok(()) };
    NAMES.iter().filter(|(pattern, _)| here(pattern)).try_for_each(|(_, check)| check(name))
}

/// The environment variable nearest to a misspelt one, among those without a name of the operator's in them.
pub(super) fn nearest_variable(variable: &str) -> Option<String> {
    let flat = |text: &str| text.replace("__", "_").to_ascii_lowercase();
    let candidates = keys().filter(|key| !key.path.contains('*')).map(|key| variable_of(key.path));
    let (distance, nearest) =
        candidates.map(|known| (distance(&flat(&known), &flat(variable)), known)).min()?;
    (distance <= 2).then_some(nearest)
}

/// The environment variable that sets a key.
pub(super) fn variable_of(path: &str) -> String {
    format!("PERENNIAL__{}", path.replace('.', "__").to_ascii_uppercase())
}

/// Whether a name that an operator chose says that its value is a credential.
pub(super) fn sounds_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["secret", "token", "pass", "pwd", "key", "assertion", "credential", "signature", "jwt"]
        .iter()
        .any(|word| name.contains(word))
}

fn nearest_sibling(path: &[String]) -> Option<&'static str> {
    let (name, parent) = path.split_last()?;
    let siblings = keys().filter(|key| key.starts_with(parent));
    let names = siblings.filter_map(|key| key.segments().nth(parent.len())).filter(|own| *own != "*");
    let (distance, nearest) = names.map(|own| (distance(own, name), own)).min()?;
    (distance <= 2 && distance < nearest.len()).then_some(nearest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(dotted: &str) -> Vec<String> {
        dotted.split('.').map(str::to_owned).collect()
    }

    #[test]
    fn every_default_fits_its_kind() {
        for key in keys() {
            if let Is(text) = key.default {
                assert!(key.kind.parse(text).is_ok(), "{}", key.path);
            }
        }
    }

    #[test]
    fn a_key_that_sounds_secret_is_one_or_is_known_not_to_be() {
        let harmless = [
            "store.kms_key",
            "sealing.key_table",
            "sealing.kms_key",
            "sealing.key_file",
            "shared_cache.password_file",
            "agent.keys_file",
            "secrets.allow",
            "secrets.fresh",
            "secrets.stale",
            "secrets.endpoint",
            "providers.*.token_url",
        ];
        let open = keys().filter(|key| sounds_secret(key.path) && !key.is_secret(&path(key.path)));
        assert_eq!(open.map(|key| key.path).collect::<Vec<_>>(), harmless);
        let Place::Key(header) = find(&path("providers.acme.headers.accept")) else { panic!("a key") };
        assert!(header.is_secret(&path("providers.acme.headers.accept")));
    }
}
