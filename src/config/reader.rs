//! From the raw tree to values that fit their keys: checked leaf by leaf, so that every error is found, and then read
//! by name, which records what `config show` prints.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ::config::{Map, Value, ValueKind};
use serde::de::DeserializeOwned;
use serde_json::json;
use zeroize::Zeroize as _;

use super::error::{ConfigError, Fault, Origin};
use super::kind::{self, Typed};
use super::schema::{self, Fallback, Key, Place};
use super::sources::{shorten, unknown_key};
use super::{REDACTED, Setting};

struct Leaf {
    value: Typed,
    origin: Option<Origin>,
    secret: bool,
}

impl Drop for Leaf {
    fn drop(&mut self) {
        if let (true, Typed::Text(text)) = (self.secret, &mut self.value) {
            text.zeroize();
        }
    }
}

/// The values that were set and fit, and what was wrong with the others.
#[derive(Default)]
pub(super) struct Reader {
    leaves: BTreeMap<String, Leaf>,
    names: BTreeMap<String, BTreeSet<String>>,
    failed: BTreeSet<String>,
    pub(super) settings: Vec<Setting>,
    pub(super) errors: Vec<ConfigError>,
}

impl Reader {
    /// Checks every leaf of a tree.
    pub(super) fn new(tree: &Map<String, Value>) -> Self {
        let mut reader = Self::default();
        reader.walk(tree, &mut Vec::new());
        reader
    }

    fn walk(&mut self, table: &Map<String, Value>, path: &mut Vec<String>) {
        for (name, value) in table {
            path.push(name.clone());
            self.visit(value, path);
            path.pop();
        }
    }

    fn visit(&mut self, value: &Value, path: &mut Vec<String>) {
        let dotted = path.join(".");
        match schema::find(path) {
            Place::Unknown(nearest) => self.errors.push(unknown_key(&dotted, nearest, Origin::of(value))),
            Place::Key(key) => self.leaf(key, value, path),
            Place::Section => match (&value.kind, schema::check_name(path)) {
                (_, Err(fault)) => self.fail(&dotted, "the name", fault, Origin::of(value)),
                (ValueKind::Table(table), Ok(())) => {
                    self.names.entry(parent(path)).or_default().extend(path.last().cloned());
                    self.walk(table, path);
                }
                (other, Ok(())) => {
                    let fault = Fault::new(
                        format!("is {}, not a table", kind::noun(other)),
                        format!("write it as a table, [{}]", shorten(&dotted)),
                    );
                    self.fail(&dotted, "the value", fault, Origin::of(value));
                }
            },
        }
    }

    fn leaf(&mut self, key: &Key, value: &Value, path: &[String]) {
        let mut path = path.to_vec();
        if key.path == "providers.*.headers.*" {
            path.iter_mut().skip(3).for_each(|name| name.make_ascii_lowercase());
        }
        let dotted = path.join(".");
        let origin = Origin::of(value);
        let secret = key.is_secret(&path);
        let lenient = matches!(origin, Some(Origin::Environment(_)));
        if let Err(fault) = schema::check_name(&path) {
            return self.fail(&dotted, "the name", fault, origin);
        }
        match key.kind.read(value, lenient) {
            Ok(value) => self.keep(dotted, Leaf { value, origin, secret }),
            Err(fault) => self.fail(&dotted, &kind::echo(value, secret), fault, origin),
        }
    }

    /// Header names are the same in any case: the environment's value wins over a file's, and two of one kind are
    /// one too many.
    fn keep(&mut self, dotted: String, leaf: Leaf) {
        let from_environment = |leaf: &Leaf| matches!(leaf.origin, Some(Origin::Environment(_)));
        match self.leaves.get(&dotted) {
            Some(there) if from_environment(there) => {}
            Some(_) if !from_environment(&leaf) => {
                let fault = Fault::new("is given twice, in different capitals", "remove one of the two");
                self.fail(&dotted, "the name", fault, leaf.origin.clone());
            }
            _ => drop(self.leaves.insert(dotted, leaf)),
        }
    }

    fn fail(&mut self, dotted: &str, subject: &str, fault: Fault, origin: Option<Origin>) {
        self.failed.insert(dotted.to_owned());
        self.errors.push(ConfigError {
            key: shorten(dotted),
            problem: format!("{subject} {}", fault.problem),
            remedy: fault.remedy,
            origin,
        });
    }

    /// Reports what is wrong between keys, at the first of them; silent where one of them is wrong already, since it
    /// was then judged by its default.
    pub(super) fn refuse(&mut self, keys: &[&str], problem: impl Into<String>, remedy: impl Into<String>) {
        if keys.iter().any(|key| self.failed.contains(*key)) {
            return;
        }
        let origin = keys.iter().find_map(|key| self.leaves.get(*key)).and_then(|leaf| leaf.origin.clone());
        let key = shorten(keys.first().copied().unwrap_or_default());
        self.errors.push(ConfigError { key, problem: problem.into(), remedy: remedy.into(), origin });
    }

    /// Whether a source set this key.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.leaves.contains_key(key) || self.failed.contains(key)
    }

    /// The tables of a section.
    pub(super) fn names(&self, section: &str) -> BTreeSet<String> {
        self.names.get(section).cloned().unwrap_or_default()
    }

    fn resolve(&mut self, dotted: &str, follows: Option<Typed>) -> Option<Typed> {
        let leaf = self.leaves.get(dotted);
        let origin = leaf.and_then(|leaf| leaf.origin.clone()).unwrap_or(Origin::Default);
        let value = match leaf {
            Some(leaf) => Some(leaf.value.clone()),
            None => follows.or_else(|| default_of(dotted)),
        };
        let secret = leaf.is_some_and(|leaf| leaf.secret);
        let shown = if secret { json!(REDACTED) } else { value.as_ref().map_or(json!(null), Typed::json) };
        self.settings.push(Setting { key: dotted.to_owned(), value: shown, origin });
        value
    }

    fn required(&mut self, dotted: &str, follows: Option<Typed>) -> Typed {
        self.resolve(dotted, follows).unwrap_or_else(|| unreachable!("{dotted} has a default in the schema"))
    }

    pub(super) fn duration(&mut self, dotted: &str) -> Duration {
        let Typed::Duration(duration) = self.required(dotted, None) else { mismatch(dotted) };
        duration
    }

    /// A duration that is another key's where it is not set.
    pub(super) fn duration_or(&mut self, dotted: &str, follows: Duration) -> Duration {
        let value = self.required(dotted, Some(Typed::Duration(follows)));
        let Typed::Duration(duration) = value else { mismatch(dotted) };
        duration
    }

    pub(super) fn optional_duration(&mut self, dotted: &str) -> Option<Duration> {
        match self.resolve(dotted, None)? {
            Typed::Duration(duration) => Some(duration),
            _ => mismatch(dotted),
        }
    }

    pub(super) fn integer<T: TryFrom<u64>>(&mut self, dotted: &str) -> T {
        let Typed::Integer(number) = self.required(dotted, None) else { mismatch(dotted) };
        T::try_from(number).unwrap_or_else(|_| mismatch(dotted))
    }

    pub(super) fn float(&mut self, dotted: &str) -> f64 {
        let Typed::Float(number) = self.required(dotted, None) else { mismatch(dotted) };
        number
    }

    pub(super) fn flag(&mut self, dotted: &str) -> bool {
        let Typed::Flag(flag) = self.required(dotted, None) else { mismatch(dotted) };
        flag
    }

    pub(super) fn flag_or(&mut self, dotted: &str, follows: bool) -> bool {
        let Typed::Flag(flag) = self.required(dotted, Some(Typed::Flag(follows))) else { mismatch(dotted) };
        flag
    }

    pub(super) fn text(&mut self, dotted: &str) -> String {
        let Typed::Text(text) = self.required(dotted, None) else { mismatch(dotted) };
        text
    }

    pub(super) fn text_or(&mut self, dotted: &str, follows: &str) -> String {
        let Typed::Text(text) = self.required(dotted, Some(Typed::Text(follows.to_owned()))) else {
            mismatch(dotted)
        };
        text
    }

    pub(super) fn list(&mut self, dotted: &str) -> Vec<String> {
        let Typed::List(list) = self.required(dotted, None) else { mismatch(dotted) };
        list
    }

    pub(super) fn address(&mut self, dotted: &str) -> std::net::SocketAddr {
        let Typed::Address(address) = self.required(dotted, None) else { mismatch(dotted) };
        address
    }

    pub(super) fn optional_address(&mut self, dotted: &str) -> Option<std::net::SocketAddr> {
        match self.resolve(dotted, None)? {
            Typed::Address(address) => Some(address),
            _ => mismatch(dotted),
        }
    }

    /// One of an enum's names: the schema's words are those that its `Deserialize` takes.
    pub(super) fn choice<T: DeserializeOwned>(&mut self, dotted: &str) -> T {
        let word = self.required(dotted, None);
        serde_json::from_value(word.json()).unwrap_or_else(|_| mismatch(dotted))
    }

    pub(super) fn choice_or<T: DeserializeOwned>(&mut self, dotted: &str, follows: &str) -> T {
        let word = self.required(dotted, Some(Typed::Text(follows.to_owned())));
        serde_json::from_value(word.json()).unwrap_or_else(|_| mismatch(dotted))
    }

    pub(super) fn optional_text(&mut self, dotted: &str) -> Option<String> {
        match self.resolve(dotted, None)? {
            Typed::Text(text) => Some(text),
            _ => mismatch(dotted),
        }
    }

    pub(super) fn optional_url(&mut self, dotted: &str) -> Option<url::Url> {
        match self.resolve(dotted, None)? {
            Typed::Url(url) => Some(url),
            _ => mismatch(dotted),
        }
    }

    /// The strings of a table whose names the operator chose.
    pub(super) fn map(&mut self, section: &str) -> BTreeMap<String, String> {
        let prefix = format!("{section}.");
        let mut map = BTreeMap::new();
        for (dotted, leaf) in self.leaves.range(prefix.clone()..) {
            let Some(name) = dotted.strip_prefix(&prefix) else { break };
            let Typed::Text(text) = &leaf.value else { mismatch(dotted) };
            map.insert(name.to_owned(), text.clone());
            self.settings.push(Setting {
                key: dotted.clone(),
                value: if leaf.secret { json!(REDACTED) } else { json!(text) },
                origin: leaf.origin.clone().unwrap_or(Origin::Default),
            });
        }
        map
    }
}

fn parent(path: &[String]) -> String {
    path.split_last().map(|(_, parent)| parent.join(".")).unwrap_or_default()
}

fn default_of(dotted: &str) -> Option<Typed> {
    let path: Vec<String> = dotted.split('.').map(str::to_owned).collect();
    let Place::Key(key) = schema::find(&path) else { return None };
    match key.default {
        Fallback::Is(text) => key.kind.parse(text).ok(),
        Fallback::Follows(_) | Fallback::Unset | Fallback::Required => None,
    }
}

fn mismatch(dotted: &str) -> ! {
    unreachable!("{dotted} is read as the kind that the schema gives it")
}
