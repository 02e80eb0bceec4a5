//! Which references may be followed, and for whom.
//!
//! Whoever writes to the table names references and the token endpoint that gets what they lead to: without this, they
//! could read any secret that the daemon can. So nothing is followed but what the configuration allows, and a rule can
//! bind a secret to those who use it: `ssm:/oauth/{provider}/{client}/*`.

use std::str::FromStr;

use super::ClientId;
use super::reference::{Scheme, SecretRef};

/// One rule: a reference in which `*` stands for anything but `/` (in an ARN also but `:`, so that it is one account's, or one
/// region's, where that is spelt), `{client}` for the client's id and `{provider}` for the name of its provider's profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    scheme: Scheme,
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
pub enum InvalidRule {
    /// It is for no kind of place.
    #[error("is of no kind that there is: {}", Scheme::ALL.map(Scheme::as_str).join(", "))]
    Scheme,
    /// Anything else.
    #[error("{0}")]
    Form(&'static str),
}

/// A reference that may be followed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Allowed {
    /// The reference.
    pub reference: SecretRef,
    /// Of a file: the folder that it must lie below once its links have been followed, which is never `/`. It is what stands
    /// before the first `*` of the rule.
    pub below: Option<String>,
}

/// A reference that the configuration does not allow.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("secrets.allow has no rule for {0} and this client: add one, as in {example:?}", example = narrowest(.0))]
pub struct NotAllowed(pub SecretRef);

/// The rule that allows this and nothing beside it, but for other versions: of those no rule speaks.
fn narrowest(reference: &SecretRef) -> String {
    let location = reference.location();
    let key = location.key().map_or_else(String::new, |key| format!("#{key}"));
    format!("{}:{}{key}", location.scheme().as_str(), location.name())
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
    pub fn name_any(&self, scheme: Scheme) -> bool {
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
        // An ARN may lead into another account: a rule for names says nothing of it.
        let is_arn = location.name().starts_with("arn:");
        let for_arns = matches!(self.name.first(), Some(Piece::Text(text)) if text.starts_with("arn:"));
        let fits_key = match (&self.key, location.key()) {
            (None, _) => true,
            (Some(pattern), Some(key)) => fits(pattern, key, b"/", user),
            (Some(_), None) => false,
        };
        let bounds: &[u8] = if is_arn { b"/:" } else { b"/" };
        self.scheme == location.scheme()
            && is_arn == for_arns
            && fits_key
            && fits(&self.name, location.name(), bounds, user)
    }

    fn folder(&self, user: User<'_>) -> Option<String> {
        let fixed = self.name.iter().take_while(|piece| **piece != Piece::Star);
        let fixed: String = fixed.map(|piece| piece.spelled(user)).collect();
        let (folder, _) = fixed.rsplit_once('/').filter(|_| self.scheme == Scheme::File)?;
        Some(folder.to_owned())
    }

    /// Whether a link may lead anywhere: all files lie below the folder that this rule names.
    fn is_of_root(&self) -> bool {
        // No id and no name of a provider is empty or has a slash.
        self.folder(User { client: "c", provider: "p" }).is_some_and(|folder| folder.is_empty())
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

/// Whether the pieces, one after the other, are the whole text; a star crosses none of `bounds`. What may have been read so far
/// is kept as a set of places, so that no text takes long.
fn fits(pattern: &[Piece], text: &str, bounds: &[u8], user: User<'_>) -> bool {
    let bytes = text.as_bytes();
    let mut reached = vec![false; bytes.len() + 1];
    reached[0] = true;
    for piece in pattern {
        let mut next = vec![false; bytes.len() + 1];
        for at in 0..=bytes.len() {
            if *piece == Piece::Star {
                next[at] = reached[at] || (at > 0 && next[at - 1] && !bounds.contains(&bytes[at - 1]));
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
        let form = InvalidRule::Form;
        let refuse = |wrong, problem| if wrong { Err(form(problem)) } else { Ok(()) };
        let (scheme, rest) = text.split_once(':').ok_or(form("does not begin with a kind and a colon"))?;
        let scheme = Scheme::parse(scheme).ok_or(InvalidRule::Scheme)?;
        let (name, key) = match rest.split_once('#') {
            Some((name, key)) if scheme == Scheme::SecretsManager => (name, Some(key)),
            _ => (rest, None),
        };
        refuse(text.chars().any(|c| c.is_control() || c == '?'), "has a character that no name has")?;
        refuse(name.is_empty() || key.is_some_and(str::is_empty), "names nothing")?;
        refuse(scheme == Scheme::File && !name.starts_with('/'), "names no absolute path")?;
        refuse(name.split('/').any(|part| part == "." || part == ".."), "has a . or .. in its path")?;
        let rule = Self { scheme, name: pieces(name)?, key: key.map(pieces).transpose()? };
        refuse(
            rule.is_of_root(),
            "has / for its folder, below which a link may lead to any file: name a folder, as in file:/run/secrets/oauth/*",
        )?;
        Ok(rule)
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
            return Err(InvalidRule::Form("has braces around something else than client or provider"));
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
            ("secretsmanager:shared#*", "secretsmanager:shared#a:b"),
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
            // A star for the region is none for the account.
            (
                "secretsmanager:arn:aws:secretsmanager:*:secret:x",
                "secretsmanager:arn:aws:secretsmanager:eu:2:secret:x",
            ),
            (
                "secretsmanager:arn:aws:secretsmanager:eu*:1:secret:x",
                "secretsmanager:arn:aws:secretsmanager:eu:2:secret:y:1:secret:x",
            ),
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
    fn what_is_recommended_allows_what_was_asked_for_and_no_other_key() {
        for (reference, rule) in [
            ("secretsmanager:shared?stage=AWSPENDING#crm", "secretsmanager:shared#crm"),
            ("secretsmanager:shared", "secretsmanager:shared"),
            ("ssm:/oauth/acme", "ssm:/oauth/acme"),
        ] {
            let reference = SecretRef::new(reference).expect("a reference");
            let told = NotAllowed(reference.clone()).to_string();
            assert!(told.ends_with(&format!("as in {rule:?}")), "{told}");
            assert!(admits(rule, reference.as_str()));
        }
        assert!(!admits("secretsmanager:shared#crm", "secretsmanager:shared#erp"));
    }

    #[test]
    fn a_rule_of_files_whose_links_could_lead_anywhere_is_refused_with_the_reason() {
        for text in ["file:/*", "file:/name*", "file:/acme", "file:/{client}*", "file:/*/acme"] {
            let error = text.parse::<Rule>().expect_err(text).to_string();
            assert!(error.contains("/ for its folder"), "{text}: {error}");
        }
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
            ("file:/{client}/*", "file:/crm-7/x", "/crm-7"),
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
        fn a_star_is_anything_but_a_bound(pattern in "[ab:/*]{0,8}", name in "[ab:/]{1,8}", arn in any::<bool>()) {
            fn slow(pattern: &str, text: &str, bounds: &[char]) -> bool {
                match pattern.strip_prefix('*') {
                    Some(rest) => {
                        let reach = text.find(bounds).unwrap_or(text.len());
                        (0..=reach).any(|at| slow(rest, &text[at..], bounds))
                    }
                    None => match (pattern.chars().next(), text.chars().next()) {
                        (None, None) => true,
                        (Some(one), Some(other)) => one == other && slow(&pattern[1..], &text[1..], bounds),
                        _ => false,
                    },
                }
            }
            let Ok(rule) = format!("ssm:{pattern}").parse::<Rule>() else { return Ok(()) };
            let user = User { client: "c", provider: "p" };
            let (bytes, bounds): (&[u8], &[char]) = if arn { (b"/:", &['/', ':']) } else { (b"/", &['/']) };
            prop_assert_eq!(fits(&rule.name, &name, bytes, user), slow(&pattern, &name, bounds));
        }
    }
}
