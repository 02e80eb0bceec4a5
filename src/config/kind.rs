//! The kinds of values, and how each is read: strictly from files, from a string where the environment gives it.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use ::config::{Value, ValueKind};
use serde_json::json;
use url::Url;

use super::check;
use super::error::Fault;
use crate::client::without_query;

/// What a key takes.
pub(super) enum Kind {
    /// A duration with its unit, within bounds.
    Duration(RangeInclusive<Duration>),
    /// A whole number, within bounds.
    Integer(RangeInclusive<u64>),
    /// A number, within bounds.
    Float(RangeInclusive<f64>),
    /// `true` or `false`.
    Flag,
    /// An http or https URL, without user information and fragment.
    Url,
    /// An IP address and a port.
    Address,
    /// One of a few words.
    Choice(&'static [&'static str]),
    /// A string of a described form.
    Text(&'static str, check::Check),
    /// A list of strings, each of a described form.
    List(&'static str, check::Check),
}

/// A value that fits its kind.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Typed {
    Duration(Duration),
    Integer(u64),
    Float(f64),
    Flag(bool),
    Url(Url),
    Address(SocketAddr),
    Text(String),
    List(Vec<String>),
}

impl Kind {
    /// Reads a value as a file spells it, and a string as the environment does where `lenient`.
    pub(super) fn read(&self, value: &Value, lenient: bool) -> Result<Typed, Fault> {
        let typed = match (self, &value.kind) {
            (Self::List(_, check), ValueKind::Array(items)) => {
                strings(items).and_then(|list| checked(list, *check))
            }
            (Self::Flag, ValueKind::Boolean(flag)) => Ok(Typed::Flag(*flag)),
            (Self::Integer(range), ValueKind::I64(number)) => integer(*number, range),
            (Self::Float(range), ValueKind::Float(number)) => float(*number, range),
            (Self::Float(_), ValueKind::I64(number)) => self.parse(&number.to_string()),
            (kind, ValueKind::String(text)) if lenient || kind.is_text() => kind.parse(text),
            (_, other) => Err(format!("is {}", noun(other))),
        };
        typed.map_err(|problem| Fault::new(problem, self.remedy()))
    }

    /// Reads a string: what the environment and the schema's defaults give.
    pub(super) fn parse(&self, text: &str) -> Result<Typed, String> {
        match self {
            Self::Duration(range) => duration(text, range),
            Self::Integer(range) => match text.parse() {
                Ok(number) => integer(number, range),
                Err(_) => Err("is not a whole number".to_owned()),
            },
            Self::Float(range) => match text.parse() {
                Ok(number) => float(number, range),
                Err(_) => Err("is not a number".to_owned()),
            },
            Self::Flag => text.parse().map(Typed::Flag).map_err(|_| "is neither true nor false".to_owned()),
            Self::Url => check::url(text).map(Typed::Url),
            Self::Address => {
                text.parse().map(Typed::Address).map_err(|_| "is not an address with a port".to_owned())
            }
            Self::Choice(words) if words.contains(&text) => Ok(Typed::Text(text.to_owned())),
            Self::Choice(_) => Err("is not one of its values".to_owned()),
            Self::Text(_, check) => check(text).map(|()| Typed::Text(text.to_owned())),
            Self::List(_, check) => checked(split(text), *check),
        }
    }

    /// What to write instead.
    pub(super) fn remedy(&self) -> String {
        match self {
            Self::Duration(_) => format!("write {}, as in \"90s\" or \"1h 30m\"", self.describe()),
            Self::List(..) => format!("write {}, as in [\"one\", \"two\"]", self.describe()),
            _ => format!("write {}", self.describe()),
        }
    }

    /// The kind and its range, in words.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Duration(range) => {
                format!("a duration from {} to {}", human(*range.start()), human(*range.end()))
            }
            Self::Integer(range) => format!("a whole number from {} to {}", range.start(), range.end()),
            Self::Float(range) => format!("a number from {} to {}", range.start(), range.end()),
            Self::Flag => "true or false".to_owned(),
            Self::Url => "an http or https URL without user information and fragment".to_owned(),
            Self::Address => "an IP address and a port, as in \"127.0.0.1:9464\"".to_owned(),
            Self::Choice(words) => quoted(words),
            Self::Text(what, _) => (*what).to_owned(),
            Self::List(what, _) => format!("a list of {what}"),
        }
    }

    fn is_text(&self) -> bool {
        !matches!(self, Self::Integer(_) | Self::Float(_) | Self::Flag | Self::List(..))
    }
}

impl Typed {
    /// As `config show` prints it. Of a URL's query, which may carry a key, only that there is one.
    pub(super) fn json(&self) -> serde_json::Value {
        match self {
            Self::Duration(duration) => json!(human(*duration)),
            Self::Integer(number) => json!(number),
            Self::Float(number) => json!(number),
            Self::Flag(flag) => json!(flag),
            Self::Url(url) => json!(without_query(url)),
            Self::Address(address) => json!(address.to_string()),
            Self::Text(text) => json!(text),
            Self::List(list) => json!(list),
        }
    }
}

/// A duration as a person writes it: 90d, and not the 2months 29days 2h 52m 48s of average months.
pub(super) fn human(duration: Duration) -> String {
    const DAY: u64 = 24 * 3600;
    let (days, rest) = (duration.as_secs() / DAY, duration.as_secs() % DAY);
    let rest = Duration::new(rest, duration.subsec_nanos());
    match (days, rest.is_zero()) {
        (0, _) => humantime::format_duration(rest).to_string(),
        (_, true) => format!("{days}d"),
        (_, false) => format!("{days}d {}", humantime::format_duration(rest)),
    }
}

/// A value in an error: quoted and cut short, or not shown at all where it may carry a credential.
pub(super) fn echo(value: &Value, secret: bool) -> String {
    const LONGEST: usize = 60;
    let text = match &value.kind {
        ValueKind::Table(_) | ValueKind::Array(_) => return "the value".to_owned(),
        other => other.to_string(),
    };
    if secret || text.contains('@') || text.contains("://") && text.contains('?') {
        "the value".to_owned()
    } else if text.chars().count() > LONGEST {
        format!("{:?}...", text.chars().take(LONGEST).collect::<String>())
    } else {
        format!("{text:?}")
    }
}

/// What a value is, where something else was wanted.
pub(super) fn noun(kind: &ValueKind) -> &'static str {
    match kind {
        ValueKind::Nil => "empty",
        ValueKind::Boolean(_) => "a boolean",
        ValueKind::I64(_) | ValueKind::I128(_) | ValueKind::U64(_) | ValueKind::U128(_) => "a whole number",
        ValueKind::Float(_) => "a number",
        ValueKind::String(_) => "a string",
        ValueKind::Table(_) => "a table",
        ValueKind::Array(_) => "a list",
    }
}

fn duration(text: &str, range: &RangeInclusive<Duration>) -> Result<Typed, String> {
    let duration =
        humantime::parse_duration(text).map_err(|_| "is not a duration with its unit".to_owned())?;
    within(duration, range).map(Typed::Duration)
}

fn integer(number: i64, range: &RangeInclusive<u64>) -> Result<Typed, String> {
    let number = u64::try_from(number).map_err(|_| "is negative".to_owned())?;
    within(number, range).map(Typed::Integer)
}

fn float(number: f64, range: &RangeInclusive<f64>) -> Result<Typed, String> {
    within(number, range).map(Typed::Float)
}

fn within<T: PartialOrd>(value: T, range: &RangeInclusive<T>) -> Result<T, String> {
    if range.contains(&value) { Ok(value) } else { Err("is out of range".to_owned()) }
}

fn strings(items: &[Value]) -> Result<Vec<String>, String> {
    let text = |item: &Value| match &item.kind {
        ValueKind::String(text) => Ok(text.clone()),
        other => Err(format!("has an element that is {}", noun(other))),
    };
    items.iter().map(text).collect()
}

fn checked(list: Vec<String>, check: check::Check) -> Result<Typed, String> {
    for item in &list {
        check(item).map_err(|problem| format!("has an element that {problem}"))?;
    }
    Ok(Typed::List(list))
}

fn split(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" or ")
}
