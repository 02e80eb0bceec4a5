//! What a request's path and query say.

use std::time::Duration;

use super::keys;
use super::problem::Problem;
use crate::client::ClientId;
use crate::reader::Want;
use crate::record::Gen;

/// What is wanted, and how long it may be waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) want: Want,
    pub(super) max_wait: Duration,
}

impl Query {
    /// `min_ttl`, `max_wait`, `after` and `wait`, each at most once. What is longer than `longest` is cut to it.
    pub(super) fn parse(text: &str, longest: Duration) -> Result<Self, Problem> {
        let (mut min_ttl, mut max_wait, mut after, mut wait) = (None, None, None, None);
        for (name, value) in url::form_urlencoded::parse(text.as_bytes()) {
            let place = match name.as_ref() {
                "min_ttl" => &mut min_ttl,
                "max_wait" => &mut max_wait,
                "after" => &mut after,
                "wait" => &mut wait,
                _ => return Err(malformed("the query takes min_ttl, max_wait, after and wait")),
            };
            if place.replace(value.into_owned()).is_some() {
                return Err(malformed("a parameter stands twice in the query"));
            }
        }
        let after = after.map(|text| generation(&text)).transpose()?;
        if wait.is_some() && after.is_none() {
            return Err(malformed("wait goes with after; for min_ttl it is max_wait"));
        }
        let query = Self::of(min_ttl.as_deref(), wait.or(max_wait).as_deref(), longest)?;
        Ok(Self { want: Want { after, ..query.want }, ..query })
    }

    /// From their texts. Without `max_wait`, a `min_ttl` waits as long as it may.
    pub(super) fn of(
        min_ttl: Option<&str>,
        max_wait: Option<&str>,
        longest: Duration,
    ) -> Result<Self, Problem> {
        let min_ttl = min_ttl.map(|text| duration("min_ttl", text)).transpose()?;
        let max_wait = max_wait.map(|text| duration("max_wait", text)).transpose()?;
        let default = if min_ttl.is_some() { longest } else { Duration::ZERO };
        let max_wait = max_wait.unwrap_or(default).min(longest);
        Ok(Self { want: Want { min_ttl: min_ttl.unwrap_or_default(), after: None }, max_wait })
    }
}

/// A client's id, percent-encoded or not.
pub(super) fn client(segment: &str) -> Result<ClientId, Problem> {
    if segment.contains('%') { id(&decode(segment)?) } else { id(segment) }
}

/// A client's id. A key in its place would go on to the table, and into logs, as a name.
pub(super) fn id(text: &str) -> Result<ClientId, Problem> {
    if keys::is_one(text) {
        return Err(malformed(
            "a reader's key stands where a client's id belongs: send it as Authorization: Bearer",
        ));
    }
    ClientId::new(text).map_err(|error| Problem::Malformed(error.to_string()))
}

/// RFC 3986 section 2.1, strictly.
pub(super) fn decode(segment: &str) -> Result<String, Problem> {
    let wrong = || malformed("a % in the path is not followed by two hexadecimal digits of ASCII");
    let mut bytes = segment.bytes();
    let mut decoded = String::with_capacity(segment.len());
    while let Some(byte) = bytes.next() {
        let character = match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(bytes.next()), digit(bytes.next()));
                let code = high.zip(low).map(|(high, low)| high * 16 + low);
                code.and_then(char::from_u32).filter(char::is_ascii).ok_or_else(wrong)?
            }
            other => char::from(other),
        };
        decoded.push(character);
    }
    Ok(decoded)
}

fn duration(name: &str, text: &str) -> Result<Duration, Problem> {
    let parsed =
        humantime::parse_duration(text).ok().filter(|duration| *duration <= Duration::from_secs(86_400));
    parsed.ok_or_else(|| Problem::Malformed(format!("{name} is not a duration up to a day, as in 90s or 2m")))
}

fn generation(text: &str) -> Result<Gen, Problem> {
    text.parse().map(Gen).map_err(|_| malformed("after is not a generation, a whole number"))
}

fn malformed(why: &str) -> Problem {
    Problem::Malformed(why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(30);

    #[test]
    fn a_query_says_what_is_wanted() {
        let parse = |text| Query::parse(text, LONGEST).expect(text);
        assert_eq!(parse(""), Query::default());
        let query = parse("min_ttl=2m");
        assert_eq!((query.want.min_ttl, query.max_wait), (Duration::from_secs(120), LONGEST));
        assert_eq!(parse("min_ttl=2m&max_wait=1s").max_wait, Duration::from_secs(1));
        assert_eq!(parse("min_ttl=2m&max_wait=1h").max_wait, LONGEST);
        let query = parse("after=7&wait=10s");
        assert_eq!((query.want.after, query.max_wait), (Some(Gen(7)), Duration::from_secs(10)));
        for wrong in
            ["x=1", "min_ttl=5", "min_ttl=2d", "after=x", "wait=5s", "min_ttl=1s&min_ttl=2s", "min_ttl=%zz"]
        {
            assert!(Query::parse(wrong, LONGEST).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_client_may_be_percent_encoded_and_nothing_else_gets_through() {
        assert_eq!(client("acme%3Acrm%40x").expect("an id").as_str(), "acme:crm@x");
        assert_eq!(client("acme:crm@x").expect("an id").as_str(), "acme:crm@x");
        for wrong in ["", "%", "%4", "%zz", "%00", "%c3%bc", "a%2Fb", "a b", "..%2f"] {
            assert!(client(wrong).is_err(), "{wrong}");
        }
    }
}
