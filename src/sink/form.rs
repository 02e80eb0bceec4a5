//! What stands in a file.

use zeroize::Zeroizing;

use crate::client::ClientId;
use crate::reader::{AccessToken, written};

/// How a token is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The access token alone, without a line's end: what programs read that are told of a token's file.
    Token,
    /// A JSON object and a line's end. No member of it ages.
    Json,
    /// Variables, a line each, as shells, systemd's `EnvironmentFile` and `docker --env-file` all read them: without quotes.
    Env,
}

/// A token that cannot be written so.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("its token has characters that shells, systemd and Docker read differently: set format to \"json\"")]
pub(super) struct Misfit;

impl Form {
    /// As the configuration spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Json => "json",
            Self::Env => "env",
        }
    }

    /// The file's content.
    ///
    /// # Errors
    /// Where this form cannot hold such a token.
    pub(super) fn content(self, client: &ClientId, token: &AccessToken) -> Result<Zeroizing<String>, Misfit> {
        let text = token.secret.expose();
        Ok(match self {
            Self::Token => text.to_owned().into(),
            Self::Json => line(&written::json(client, token)),
            Self::Env if is_plain(text) && is_plain(token.scheme()) => format!(
                "ACCESS_TOKEN={text}\nTOKEN_TYPE={}\nEXPIRES_AT={}\n",
                token.scheme(),
                token.expires_at.as_secs()
            )
            .into(),
            Self::Env => return Err(Misfit),
        })
    }
}

fn line(text: &str) -> Zeroizing<String> {
    Zeroizing::new([text, "\n"].concat())
}

/// A `b64token` (RFC 6750 section 2.1), which means itself everywhere; but a leading `~` is a home directory to a shell.
fn is_plain(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    !text.is_empty() && !text.starts_with('~') && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::reader::written::Written;
    use crate::record::Gen;
    use crate::secret::Secret;
    use crate::time::Timestamp;

    fn acme() -> ClientId {
        ClientId::new("acme").expect("an id")
    }

    fn token(text: &str) -> AccessToken {
        AccessToken {
            secret: Secret::new(text).into(),
            token_type: Some("bearer".into()),
            scope: None,
            expires_at: Timestamp::from_secs(1000),
            refresh_at: None,
            stored_at: None,
            generation: Gen(7),
            written: Written::default(),
        }
    }

    #[test]
    fn each_form_says_no_more_than_it_should() {
        let content = |form: Form| form.content(&acme(), &token("a.b-c=")).expect("it fits").to_string();
        assert_eq!(content(Form::Token), "a.b-c=");
        assert_eq!(content(Form::Env), "ACCESS_TOKEN=a.b-c=\nTOKEN_TYPE=Bearer\nEXPIRES_AT=1000\n");
        let read: serde_json::Value = serde_json::from_str(&content(Form::Json)).expect("JSON");
        assert_eq!((&read["authorization"], &read["expires_at"]), (&json!("Bearer a.b-c="), &json!(1000)));
    }

    #[test]
    fn what_a_shell_would_read_as_something_else_is_no_variable() {
        for text in ["a$(id)", "a b", "a\nPATH=x", "'a'", "~root", "", "a#b", "a`b`", "\u{e9}"] {
            assert_eq!(Form::Env.content(&acme(), &token(text)), Err(Misfit), "{text:?}");
            assert!(Form::Json.content(&acme(), &token(text)).is_ok(), "{text:?}");
        }
    }
}
