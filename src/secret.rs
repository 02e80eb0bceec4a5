//! A string that must never be printed: a token, a client secret.
//!
//! [`Secret`] has no `Display` and no `Serialize`, its `Debug` is redacted, and its memory is zeroized when it
//! is dropped. Whoever needs the text calls [`Secret::expose`], so that every such place can be found by name.

use std::sync::Arc;
use std::{fmt, io};

use serde::Serialize;
use zeroize::Zeroizing;

/// A secret string: redacted in `Debug`, zeroized on drop, compared by value.
#[derive(Clone)]
pub struct Secret {
    text: Zeroizing<String>,
    /// As it stands in the table, where that is not the text itself.
    sealed: Option<Arc<str>>,
}

impl Secret {
    /// Takes a string into custody.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: Zeroizing::new(text.into()), sealed: None }
    }

    /// The same, remembering how it stands in the table, for conditions on what stands there.
    #[must_use]
    pub fn sealed_as(self, sealed: &str) -> Self {
        Self { sealed: Some(sealed.into()), ..self }
    }

    /// What stands in the table.
    pub fn as_stored(&self) -> &str {
        self.sealed.as_deref().unwrap_or(&self.text)
    }

    /// The text itself: for the wire and for the table, never for a log.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.text.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }
}

/// A secret that is handed out again and again: clones share its memory, which is zeroized with the last of them.
#[derive(Clone)]
pub struct Shared(Arc<Zeroizing<String>>);

impl Shared {
    /// The text itself, as [`Secret::expose`].
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<Secret> for Shared {
    fn from(secret: Secret) -> Self {
        Self(Arc::new(secret.text))
    }
}

impl PartialEq for Shared {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Shared {}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared(redacted)")
    }
}

/// JSON with secrets in it. What grows while it is written leaves copies behind: its length is counted first.
pub fn json(value: &impl Serialize) -> Zeroizing<String> {
    const PLAIN: &str = "strings, numbers and lists of them are JSON";
    let mut length = Length(0);
    serde_json::to_writer(&mut length, value).expect(PLAIN);
    let mut out = Vec::with_capacity(length.0);
    serde_json::to_writer(&mut out, value).expect(PLAIN);
    Zeroizing::new(String::from_utf8(out).expect("JSON is UTF-8"))
}

/// Counts what is written.
struct Length(usize);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_fills_its_memory_exactly() {
        for text in ["", "plain", "q\"uo\\te", "new\nline\u{1}", "ü\u{2028}"] {
            let written = json(&[text]);
            assert_eq!(written.capacity(), written.len(), "{text:?}");
            assert_eq!(serde_json::from_str::<[String; 1]>(&written).expect("JSON"), [text]);
        }
    }

    #[test]
    fn debug_is_redacted_alone_and_inside_other_types() {
        let secret = Secret::new("hunter2");
        let inside = Some(vec![secret.clone()]);
        assert_eq!(format!("{secret:?}"), "Secret(redacted)");
        assert!(!format!("{inside:#?}").contains("hunter2"));
    }
}
