//! What strings must look like. A check returns what is wrong as a predicate (`is empty`), never the value.

use croner::parser::{CronParser, Seconds};
use http::{HeaderName, HeaderValue};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use url::Url;

use super::error::Fault;
use crate::client::ClientId;
use crate::client::allowance::Rule;
use crate::client::outbound::{self, Pin};

/// A check of one string.
pub(crate) type Check = fn(&str) -> Result<(), String>;

/// Something visible, without control characters.
pub(super) fn line(text: &str) -> Result<(), String> {
    refuse(text.trim().is_empty(), "is empty")?;
    refuse(text.chars().any(char::is_control), "has a control character")
}

/// A DynamoDB table name (Amazon DynamoDB Developer Guide, "Naming rules").
pub(crate) fn table(name: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    refuse(!(3..=255).contains(&name.len()), "is not of 3 to 255 characters")?;
    refuse(!name.bytes().all(allowed), "has a character that a table name cannot have")
}

/// An S3 bucket's name as a policy has it (Amazon S3 User Guide, "General purpose bucket naming rules"). Requests may name it by an
/// access point, too.
pub(crate) fn bucket(name: &str) -> Result<(), String> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'.' || byte == b'-';
    let outer =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = name.as_bytes();
    refuse(!(3..=63).contains(&name.len()), "is not of 3 to 63 characters")?;
    refuse(!name.bytes().all(inner), "has a character that a bucket's name cannot have")?;
    refuse(!outer(bytes.first()) || !outer(bytes.last()), "begins or ends with no letter and no digit")
}

/// An ECS cluster's name (Amazon ECS API Reference, "CreateCluster").
pub(crate) fn cluster(name: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    refuse(!(1..=255).contains(&name.len()), "is not of 1 to 255 characters")?;
    refuse(!name.bytes().all(allowed), "has a character that a cluster's name cannot have")
}

/// An AWS region code.
pub(crate) fn region(name: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    refuse(name.is_empty() || !name.bytes().all(allowed), "is not a region code")
}

/// A namespace of metrics ("Namespaces" in the Amazon CloudWatch User Guide). A leading `AWS/` is Amazon's own.
pub(super) fn namespace(name: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_/#:".contains(&byte);
    refuse(!(1..=255).contains(&name.len()), "is not of 1 to 255 characters")?;
    refuse(!name.bytes().all(allowed), "has a character that a namespace cannot have")?;
    refuse(name.starts_with("AWS/"), "begins with AWS/, which is Amazon's own")
}

/// A `scope-token` of RFC 6749 section 3.3.
pub(super) fn scope(scope: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
    refuse(scope.is_empty() || !scope.bytes().all(allowed), "is not one scope (RFC 6749 section 3.3)")
}

/// A resource indicator: an absolute URI without a fragment (RFC 8707 section 2).
pub(super) fn resource(uri: &str) -> Result<(), String> {
    let parsed = Url::parse(uri).map_err(|_| "is not an absolute URI".to_owned())?;
    refuse(parsed.fragment().is_some(), "has a fragment")
}

/// A client's id.
pub(super) fn client(id: &str) -> Result<(), String> {
    refuse(ClientId::new(id).is_err(), "is no client's id")
}

/// A file's permissions, in octal: its owner may read it, and nobody else may write it.
pub(super) fn mode(octal: &str) -> Result<(), String> {
    let digits = octal.len() <= 4 && octal.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let mode = u32::from_str_radix(octal, 8).ok().filter(|_| digits);
    let mode = mode.ok_or("is no octal number of up to four digits")?;
    refuse(mode & 0o400 == 0, "does not let its owner read the file")?;
    refuse(mode & !0o644 != 0, "lets others write the file, or somebody run it")
}

/// A group's number.
pub(super) fn group(id: &str) -> Result<(), String> {
    refuse(id.parse::<u32>().is_err(), "is not a numeric group id")
}

/// A user's number.
pub(super) fn user(id: &str) -> Result<(), String> {
    refuse(id.parse::<u32>().is_err(), "is not a numeric user id")
}

/// A template of a secret's name ("Name" in "CreateSecret" of the AWS Secrets Manager API Reference).
pub(super) fn secret_name(template: &str) -> Result<(), String> {
    const PLACE: &str = "{client}";
    let around = template.split_once(PLACE).ok_or("has no {client} in it")?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/_+=.@-".contains(&byte);
    let rest = format!("{}{}", around.0, around.1);
    refuse(!rest.bytes().all(allowed), "has a character that a secret's name cannot have")?;
    refuse(rest.len() > 512 - PLACE.len(), "is longer than a secret's name can be")
}

/// A client's id with `*` in it.
pub(super) fn client_pattern(pattern: &str) -> Result<(), String> {
    refuse(ClientId::new(pattern.replace('*', "x")).is_err(), "fits no client id")
}

/// A network that a provider's requests may go to.
pub(super) fn network(network: &str) -> Result<(), String> {
    outbound::network(network).map(|_| ()).map_err(str::to_owned)
}

/// The pin of a server's key.
pub(super) fn pin(pin: &str) -> Result<(), String> {
    pin.parse::<Pin>().map(|_| ()).map_err(|error| error.to_string())
}

/// A rule for references to client secrets.
pub(super) fn secret_rule(rule: &str) -> Result<(), String> {
    rule.parse::<Rule>().map(|_| ()).map_err(|error| error.to_string())
}

/// The value of a request header.
pub(super) fn header_value(value: &str) -> Result<(), String> {
    refuse(HeaderValue::from_str(value).is_err(), "has a character that a header cannot carry")
}

/// An http or https URL that names a host, without user information and fragment.
pub(super) fn url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|_| "is not a URL".to_owned())?;
    refuse(!matches!(url.scheme(), "http" | "https"), "is neither http nor https")?;
    refuse(!url.username().is_empty() || url.password().is_some(), "has user information")?;
    refuse(url.fragment().is_some(), "has a fragment")?;
    Ok(url)
}

/// A redis or rediss URL that names a host, with nothing but a database's number behind it.
pub(super) fn redis_url(text: &str) -> Result<(), String> {
    let url = Url::parse(text).map_err(|_| "is not a URL".to_owned())?;
    refuse(!matches!(url.scheme(), "redis" | "rediss"), "is neither redis nor rediss")?;
    refuse(url.host_str().is_none_or(str::is_empty), "names no host")?;
    refuse(!url.username().is_empty() || url.password().is_some(), "has user information")?;
    refuse(url.query().is_some() || url.fragment().is_some(), "has a query or a fragment")?;
    let database = url.path().trim_start_matches('/');
    refuse(
        !database.is_empty() && database.parse::<u16>().is_err(),
        "has a path that is no database's number",
    )
}

/// What keys of a shared cache begin with.
pub(super) fn cache_prefix(prefix: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:@/{}-".contains(&byte);
    refuse(!(1..=200).contains(&prefix.len()), "is not of 1 to 200 characters")?;
    refuse(!prefix.bytes().all(allowed), "has another character than those")
}

/// A cron expression of six fields, read as `tokio-cron-scheduler` reads it. The parser alone would let a seventh
/// field (the year) and nicknames pass.
pub(super) fn cron(expression: &str) -> Result<(), String> {
    let fields = expression.split_whitespace().count();
    refuse(fields != 6, &format!("has {fields} fields"))?;
    let parser = CronParser::builder().seconds(Seconds::Required).dom_and_dow(true).build();
    parser.parse(expression).map(|_| ()).map_err(|error| format!("is not a cron expression ({error})"))
}

/// Log directives. A bare word that is no level would silence everything but a target of that name.
pub(super) fn log_filter(filter: &str) -> Result<(), String> {
    EnvFilter::try_new(filter).map_err(|_| "is not a list of log directives".to_owned())?;
    let bare = |directive: &&str| !directive.contains(['=', '[']);
    let wrong = |directive: &str| directive.trim().parse::<LevelFilter>().is_err();
    refuse(filter.split(',').filter(bare).any(wrong), "has a directive that is no level and names none")
}

/// The name of a provider.
pub(super) fn provider_name(name: &str) -> Result<(), Fault> {
    own_name(name, "is not a provider's name")
}

/// The name of a file that the agent keeps.
pub(super) fn file_name(name: &str) -> Result<(), Fault> {
    own_name(name, "is not a name for a file of the agent's")
}

/// One that an environment variable can have in its name.
fn own_name(name: &str, problem: &str) -> Result<(), Fault> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let fits = name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(allowed)
        && !name.contains("__");
    if fits {
        return Ok(());
    }
    Err(Fault::new(problem, "use a-z, 0-9 and single underscores, a letter first: [a-z][a-z0-9_]*"))
}

/// The name of a further parameter of the token request: none that the request has already, since no parameter may
/// be sent twice (RFC 6749 section 3.2).
pub(super) fn param_name(name: &str) -> Result<(), Fault> {
    match name {
        "scope" => Err(Fault::new("belongs to the grant", "set scopes instead")),
        "audience" | "resource" => Err(Fault::new("has a key of its own", format!("set {name} instead"))),
        "grant_type" | "refresh_token" | "client_id" | "client_secret" => {
            Err(Fault::new("belongs to the grant", "remove it: it comes from the client's registration"))
        }
        name => line(name).map_err(|problem| Fault::new(problem, "name the parameter")),
    }
}

/// The name of a further request header, in lower case: none that the request sets itself.
pub(super) fn header_name(name: &str) -> Result<(), Fault> {
    let own = ["authorization", "host", "connection", "transfer-encoding"];
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        Err(Fault::new("is not a header's name", "use letters, digits and -, as in x-api-key"))
    } else if own.contains(&name) || name.starts_with("content-") {
        Err(Fault::new("is set by the request itself", "remove it; auth says how the client authenticates"))
    } else {
        Ok(())
    }
}

fn refuse(wrong: bool, problem: &str) -> Result<(), String> {
    if wrong { Err(problem.to_owned()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(check: Check, good: &[&str], bad: &[&str]) {
        for text in good {
            assert_eq!(check(text), Ok(()), "{text:?}");
        }
        for text in bad {
            assert!(check(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn strings_are_held_to_their_form() {
        accepts(
            table,
            &["abc", "client-credentials", "A_1.x"],
            &["", "ab", "a b c", "été", &"x".repeat(256)],
        );
        accepts(bucket, &["acme-spill", "a.b1"], &["", "ab", "Acme", "a_b", "-ab", "ab.", "a/b", "a*b"]);
        accepts(cluster, &["perennial", "A_1-x"], &["", "a/b", "*", "a b"]);
        accepts(region, &["eu-central-1"], &["", "EU", "eu central"]);
        accepts(scope, &["openid", "https://a.test/.default"], &["", "a b", "a\"b", "é"]);
        accepts(resource, &["https://api.test/"], &["api", "https://api.test/#x"]);
        accepts(header_value, &["a b", ""], &["a\nb", "\u{7f}"]);
        accepts(line, &["x"], &["", "  ", "a\nb"]);
        accepts(
            mode,
            &["0600", "640", "0644", "0400"],
            &["", "0200", "0660", "0700", "00600", "+600", "0x1"],
        );
    }

    #[test]
    fn cron_expressions_have_six_fields() {
        let bad =
            ["", "* * * * *", "0 0 0 1 1 * 2030", "@hourly", "61 0 0 * * *", "+ + + + + +", "é é é é é é"];
        accepts(cron, &["17 23 * * * *", "41 7 */6 * * MON-FRI"], &bad);
    }

    #[test]
    fn a_misspelt_level_is_not_taken_for_a_target() {
        let good = ["info", "warn,perennial=debug", "off", "perennial[refresh]=trace,info"];
        accepts(log_filter, &good, &["inof", "info,verbose", "perennial=loud", "a=b=c"]);
    }

    #[test]
    fn urls_name_a_host_and_carry_no_password() {
        for good in ["http://127.0.0.1:8000", "https://a.test/token?tenant=1"] {
            assert!(url(good).is_ok(), "{good}");
        }
        for bad in
            ["", "a.test", "ftp://a.test", "https://u@a.test", "https://:p@a.test", "https://a.test/#f"]
        {
            assert!(url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_shared_caches_url_names_a_host_and_at_most_a_database() {
        let good = ["redis://127.0.0.1", "rediss://cache.test:6380/3", "redis://[::1]:1/"];
        let bad = [
            "http://a.test",
            "redis:///0",
            "redis://u@a.test",
            "redis://:p@a.test",
            "redis://a.test/x",
            "redis://a.test/70000",
            "redis://a.test?db=1",
            "a.test:6379",
            "",
        ];
        accepts(redis_url, &good, &bad);
        accepts(cache_prefix, &["perennial:t:"], &["", "a b", &"x".repeat(201)]);
    }

    #[test]
    fn names_are_held_to_their_form() {
        let all = |check: fn(&str) -> Result<(), Fault>, names: &[&str]| {
            names.iter().map(|name| check(name).is_ok()).collect::<Vec<_>>()
        };
        assert_eq!(
            all(provider_name, &["acme", "a1_b", "Acme", "1a", "a__b", ""]),
            [true, true, false, false, false, false]
        );
        assert_eq!(
            all(param_name, &["tenant", "scope", "client_secret", "audience", ""]),
            [true, false, false, false, false]
        );
        assert_eq!(
            all(header_name, &["x-api-key", "host", "content-type", "a b"]),
            [true, false, false, false]
        );
    }
}
