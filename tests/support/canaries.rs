//! Secrets that must not show: those that a test has planted, and every token of the strict provider by its form.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// What must not be found in any output.
#[derive(Debug, Default)]
pub(crate) struct Canaries(Vec<String>);

impl Canaries {
    /// Plants a secret.
    pub(crate) fn add(&mut self, secret: impl Into<String>) {
        let secret = secret.into();
        self.0.push(BASE64_STANDARD.encode(&secret));
        self.0.push(secret);
    }

    /// Plants a client's credentials, which also travel as one Basic header.
    pub(crate) fn add_basic(&mut self, id: &str, secret: &str) {
        self.add(secret);
        self.0.push(BASE64_STANDARD.encode(format!("{id}:{secret}")));
    }

    /// # Panics
    /// When a secret is in the text; the message shows where, and not the secret.
    pub(crate) fn assert_absent(&self, what: &str, text: &str) {
        let planted = self.0.iter().filter_map(|secret| Some((text.find(secret)?, secret.len())));
        let issued = token_in(text);
        if let Some((at, len)) = planted.chain(issued).min() {
            let context: String = text[..at].chars().rev().take(300).collect();
            let context: String = context.chars().rev().collect();
            panic!("{what} shows a secret of {len} characters after:\n{context}");
        }
    }
}

/// A token of the strict provider: `rt-`, `at-` or `cc-`, numbers in hexadecimal, a dot, and a seal.
fn token_in(text: &str) -> Option<(usize, usize)> {
    let starts = ["rt-", "at-", "cc-"].into_iter().flat_map(|kind| text.match_indices(kind));
    let mut found = starts.filter_map(|(at, kind)| {
        let numbers = text[at + kind.len()..].split('.').next()?;
        let hex = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        let begins = !text[..at].ends_with(|before: char| before.is_ascii_alphanumeric());
        let is_token = begins && numbers.contains('-') && numbers.split('-').all(hex);
        is_token.then_some((at, kind.len() + numbers.len()))
    });
    found.next()
}
