//! A client's story: what is the case, how it came to that, what comes next, and what can be done.

use serde::Serialize;

use crate::client::ClientId;

/// Something that an operator can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Remedy {
    /// What to type, or to edit.
    pub(super) command: String,
    /// What comes of it.
    pub(super) effect: String,
}

/// What there is to tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Story {
    pub(super) client: String,
    /// The state, in one word.
    pub(super) state: String,
    /// Whether there is such a client.
    #[serde(skip)]
    pub(super) found: bool,
    /// What is the case, and since when.
    pub(super) now: Vec<String>,
    /// What happened last.
    pub(super) before: Vec<String>,
    /// What will happen by itself.
    pub(super) next: Vec<String>,
    /// What can be done.
    pub(super) remedies: Vec<Remedy>,
}

impl Story {
    pub(super) fn new(id: &ClientId, state: &str) -> Self {
        Self {
            client: id.to_string(),
            state: state.to_owned(),
            found: true,
            now: Vec::new(),
            before: Vec::new(),
            next: Vec::new(),
            remedies: Vec::new(),
        }
    }

    pub(super) fn is(&mut self, sentence: impl Into<String>) {
        self.now.push(sentence.into());
    }

    pub(super) fn was(&mut self, sentence: impl Into<String>) {
        self.before.push(sentence.into());
    }

    pub(super) fn then(&mut self, sentence: impl Into<String>) {
        self.next.push(sentence.into());
    }

    pub(super) fn can(&mut self, command: impl Into<String>, effect: &str) {
        self.remedies.push(Remedy { command: command.into(), effect: effect.to_owned() });
    }

    pub(super) fn text(&self) -> String {
        let mut lines = vec![format!("{}: {}", self.client, self.state)];
        for (title, sentences) in [("Now", &self.now), ("Before", &self.before), ("Next", &self.next)] {
            lines.extend(
                sentences
                    .iter()
                    .enumerate()
                    .map(|(n, sentence)| format!("  {:<8}{sentence}", if n == 0 { title } else { "" })),
            );
        }
        lines.extend(self.remedies.iter().enumerate().map(|(n, remedy)| {
            let title = if n == 0 { "You can" } else { "" };
            format!("  {title:<8}{}\n          {}", remedy.command, remedy.effect)
        }));
        lines.join("\n")
    }
}
