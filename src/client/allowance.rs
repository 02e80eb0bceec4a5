//! Which references may be followed, and for whom.
//!
//! Whoever writes to the table names references and the token endpoint that gets what they lead to: without this, they
//! could read any secret that the daemon can. So nothing is followed but what the configuration allows, and a rule can
//! bind a secret to those who use it: `ssm:/oauth/{provider}/{client}/*`.

use std::str::FromStr;

use super::ClientId;
use super::reference::{Location, SecretRef};

/// One rule: a reference in which `*` stands for anything but `/`, `{client}` for the client's id and `{provider}` for the
/// name of its provider's profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    scheme: &'static str,
    name: Vec<Piece>,
    /// Of the key of a JSON object; none means any, and all of them.
    key: Option<Vec<Piece>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Star,
    Client,
    Provider,
}

/// A text that is no rule.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct InvalidRule(&'static str);

/// A reference that may be followed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Allowed {
    /// The reference.
    pub reference: SecretRef,
    /// Of a file: the folder that it must lie below once its links have been followed. It is what stands before the first
    /// `*` of the rule.
    pub below: Option<String>,
}

/// A reference that the configuration does not allow.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("secrets.allow has no rule for {0} and this client: add one, as in {example:?}", example = example(.0))]
pub struct NotAllowed(pub SecretRef);

fn example(reference: &SecretRef) -> String {
    let location = reference.location();
    format!("{}:{}", location.scheme(), location.name())
}

/// All rules; none allows nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(pub Vec<Rule>);

impl Rules {
    /// Whether this client of this provider may have this reference followed.
    ///
    /// # Errors
    /// Where no rule says so.
    pub fn admit(
        &self,
        reference: &SecretRef,
        client: &ClientId,
        provider: &str,
    ) -> Result<Allowed, NotAllowed> {
        let user = User { client: client.as_str(), provider };
        let rule = self.0.iter().find(|rule| rule.admits(reference, user));
        let rule = rule.ok_or_else(|| NotAllowed(reference.clone()))?;
        Ok(Allowed { reference: reference.clone(), below: rule.folder(user) })
    }

    /// Whether one of them is of this kind of reference.
    pub fn name_any(&self, scheme: &str) -> bool {
        self.0.iter().any(|rule| rule.scheme == scheme)
    }
}

#[derive(Clone, Copy)]
struct User<'a> {
    client: &'a str,
    provider: &'a str,
}

impl Rule {
    fn admits(&self, reference: &SecretRef, user: User<'_>) -> bool {
        let location = reference.location();
        let key = match location {
            Location::SecretsManager { key, .. } => key,
            _ => None,
        };
        // An ARN may lead into another account: a rule for names says nothing of it.
        let is_arn = location.name().starts_with("arn:");
        let for_arns = matches!(self.name.first(), Some(Piece::Text(text)) if text.starts_with("arn:"));
        let fits_key = match (&self.key, key) {
            (None, _) => true,
            (Some(pattern), Some(key)) => fits(pattern, key, user),
            (Some(_), None) => false,
        };
        self.scheme == location.scheme()
            && is_arn == for_arns
            && fits_key
            && fits(&self.name, location.name(), user)
    }

    fn folder(&self, user: User<'_>) -> Option<String> {
        let fixed = self.name.iter().take_while(|piece| **piece != Piece::Star);
        let fixed: String = fixed.map(|piece| piece.spelled(user)).collect();
        let (folder, _) = fixed.rsplit_once('/').filter(|_| self.scheme == "file")?;
        Some(if folder.is_empty() { "/" } else { folder }.to_owned())
    }
}

impl Piece {
    fn spelled<'a>(&'a self, user: User<'a>) -> &'a str {
        match self {
            Self::Text(text) => text,
            Self::Star => "",
            Self::Client => user.client,
            Self::Provider => user.provider,
        }
    }
}

/// Whether the pieces, one after the other, are the whole text. What may have been read so far is kept as a set of places,
/// so that no text takes long.
fn fits(pattern: &[Piece], text: &str, user: User<'_>) -> bool {
    let bytes = text.as_bytes();
    let mut reached = vec![false; bytes.len() + 1];
    reached[0] = true;
    for piece in pattern {
        let mut next = vec![false; bytes.len() + 1];
        for at in 0..=bytes.len() {
            if *piece == Piece::Star {
                next[at] = reached[at] || (at > 0 && next[at - 1] && bytes[at - 1] != b'/');
            } else if reached[at] && bytes[at..].starts_with(piece.spelled(user).as_bytes()) {
                next[at + piece.spelled(user).len()] = true;
            }
        }
        reached = next;
    }
    reached[bytes.len()]
}

impl FromStr for Rule {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        let refuse = |wrong, problem| if wrong { Err(InvalidRule(problem)) } else { Ok(()) };
        let (scheme, rest) =
            text.split_once(':').ok_or(InvalidRule("does not begin with a kind and a colon"))?;
        let known = ["secretsmanager", "ssm", "env", "file"].into_iter().find(|known| *known == scheme);
        let scheme =
            known.ok_or(InvalidRule("is of no kind that there is: secretsmanager, ssm, env or file"))?;
        let (name, key) = match rest.split_once('#') {
            Some((name, key)) if scheme == "secretsmanager" => (name, Some(key)),
            _ => (rest, None),
        };
        refuse(text.chars().any(|c| c.is_control() || c == '?'), "has a character that no name has")?;
        refuse(name.is_empty() || key.is_some_and(str::is_empty), "names nothing")?;
        refuse(scheme == "file" && !name.starts_with('/'), "names no absolute path")?;
        refuse(name.split('/').any(|part| part == "." || part == ".."), "has a . or .. in its path")?;
        Ok(Self { scheme, name: pieces(name)?, key: key.map(pieces).transpose()? })
    }
}

fn pieces(text: &str) -> Result<Vec<Piece>, InvalidRule> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let special = [("*", Piece::Star), ("{client}", Piece::Client), ("{provider}", Piece::Provider)];
        if let Some((word, piece)) = special.into_iter().find(|(word, _)| rest.starts_with(word)) {
            pieces.push(piece);
            rest = &rest[word.len()..];
            continue;
        }
        if first == '{' || first == '}' {
            return Err(InvalidRule("has braces around something else than client or provider"));
        }
        let end = rest.find(['*', '{', '}']).unwrap_or(rest.len());
        pieces.push(Piece::Text(rest[..end].to_owned()));
        rest = &rest[end..];
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(texts: &[&str]) -> Rules {
        Rules(texts.iter().map(|text| text.parse().expect("a rule")).collect())
    }

    fn admits(rule: &str, reference: &str) -> bool {
        let (reference, client) = (SecretRef::new(reference).expect("a reference"), ClientId::new("crm-7"));
        rules(&[rule]).admit(&reference, &client.expect("an id"), "acme").is_ok()
    }

    #[test]
    fn a_rule_admits_what_it_spells() {
        for (rule, reference) in [
            ("ssm:/oauth/*", "ssm:/oauth/acme"),
            ("ssm:/oauth/*/*", "ssm:/oauth/acme/x"),
            ("ssm:/oauth/{provider}/{client}/*", "ssm:/oauth/acme/crm-7/secret"),
            ("env:OAUTH_*", "env:OAUTH_"),
            ("env:*_SECRET", "env:ACME_SECRET"),
            ("file:/run/secrets/*", "file:/run/secrets/acme"),
            ("secretsmanager:oauth/*", "secretsmanager:oauth/acme?stage=AWSPENDING#client_secret"),
            ("secretsmanager:oauth/shared#{client}", "secretsmanager:oauth/shared#crm-7"),
            (
                "secretsmanager:arn:aws:secretsmanager:*:1:secret:a*",
                "secretsmanager:arn:aws:secretsmanager:eu:1:secret:a-b",
            ),
        ] {
            assert!(admits(rule, reference), "{rule} {reference}");
        }
    }

    #[test]
    fn and_nothing_beyond_that() {
        for (rule, reference) in [
            ("ssm:/oauth/*", "ssm:/oauth/acme/x"),
            ("ssm:/oauth/*", "ssm:/oauthx"),
            ("ssm:/oauth/{client}", "ssm:/oauth/crm-8"),
            ("ssm:/oauth/{provider}", "ssm:/oauth/crm-7"),
            ("ssm:oauth", "ssm:oauth2"),
            ("env:OAUTH_*", "env:HOME"),
            ("env:*", "ssm:HOME"),
            ("file:/run/secrets/*", "file:/run/secrets/a/b"),
            ("file:/run/secrets/*", "file:/etc/shadow"),
            ("secretsmanager:oauth/shared#{client}", "secretsmanager:oauth/shared#crm-8"),
            ("secretsmanager:oauth/shared#{client}", "secretsmanager:oauth/shared"),
            ("secretsmanager:*", "secretsmanager:arn:aws:secretsmanager:eu:2:secret:x"),
        ] {
            assert!(!admits(rule, reference), "{rule} {reference}");
        }
    }

    #[test]
    fn without_a_rule_nothing_is_admitted_and_the_key_is_named() {
        let reference = SecretRef::new("ssm:/oauth/acme").expect("a reference");
        let told = Rules::default().admit(&reference, &ClientId::new("c").expect("an id"), "acme");
        let told = told.expect_err("there is no rule").to_string();
        assert!(told.contains("secrets.allow") && told.contains("ssm:/oauth/acme"), "{told}");
    }

    #[test]
    fn a_file_must_lie_below_what_stands_before_the_first_star() {
        let below = |rule: &str, reference: &str| {
            let (reference, client) =
                (SecretRef::new(reference).expect("one"), ClientId::new("crm-7").expect("one"));
            rules(&[rule]).admit(&reference, &client, "acme").expect("admitted").below
        };
        for (rule, reference, folder) in [
            ("file:/run/secrets/*", "file:/run/secrets/x", "/run/secrets"),
            ("file:/run/{client}/*", "file:/run/crm-7/x", "/run/crm-7"),
            ("file:/run/a*/x", "file:/run/ab/x", "/run"),
            ("file:/run/secrets/acme", "file:/run/secrets/acme", "/run/secrets"),
            ("file:/*", "file:/x", "/"),
        ] {
            assert_eq!(below(rule, reference).as_deref(), Some(folder), "{rule}");
        }
        assert_eq!(below("ssm:/a/*", "ssm:/a/b"), None);
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for text in [
            "",
            "ssm",
            "vault:x",
            "ssm:",
            "file:run/*",
            "file:/run/../etc/*",
            "ssm:/{tenant}/*",
            "ssm:/{client",
            "ssm:/client}",
            "secretsmanager:a#",
            "secretsmanager:a?stage=b",
            "env:A\n",
        ] {
            assert!(text.parse::<Rule>().is_err(), "{text:?}");
        }
    }

    proptest! {
        /// Slowly, and by another way.
        #[test]
        fn a_star_is_anything_but_a_slash(pattern in "[ab/*]{0,8}", name in "[ab/]{1,8}") {
            fn slow(pattern: &str, text: &str) -> bool {
                match pattern.strip_prefix('*') {
                    Some(rest) => {
                        let reach = text.find('/').unwrap_or(text.len());
                        (0..=reach).any(|at| slow(rest, &text[at..]))
                    }
                    None => match (pattern.chars().next(), text.chars().next()) {
                        (None, None) => true,
                        (Some(one), Some(other)) => one == other && slow(&pattern[1..], &text[1..]),
                        _ => false,
                    },
                }
            }
            let Ok(rule) = format!("ssm:{pattern}").parse::<Rule>() else { return Ok(()) };
            let user = User { client: "c", provider: "p" };
            prop_assert_eq!(fits(&rule.name, &name, user), slow(&pattern, &name));
        }
    }
}
