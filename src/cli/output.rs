//! stdout for results, stderr for messages.
//!
//! The reader of a pipe may leave at any time: that is a quiet end and no panic, which `println!` would make of it.

use std::fmt::Display;
use std::io::{self, BufRead, ErrorKind, IsTerminal, Write};

use serde::Serialize;

use crate::shown;

/// Nobody reads our output any more.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the output was closed")]
pub(super) struct Closed;

/// Prints a line of the result.
pub(super) fn line(text: impl Display) -> anyhow::Result<()> {
    raw(format!("{}\n", shown::lines(&text.to_string())).as_bytes())
}

/// Prints a line that holds texts of the table: another tool may have written them, and they get no line of their own.
pub(super) fn row(text: impl Display) -> anyhow::Result<()> {
    raw(format!("{}\n", shown::spelt(&text.to_string())).as_bytes())
}

/// Prints a part of the result as it is.
pub(super) fn raw(text: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
        written => Ok(written?),
    }
}

/// Prints what was written to the table. That nobody reads it is no reason to stop between two writes.
pub(super) fn told(text: impl Display) {
    match line(text) {
        Err(error) if !error.is::<Closed>() => {
            note(format_args!("note: the result cannot be printed: {error}"))
        }
        _ => {}
    }
}

/// Prints a line of the result as JSON.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    raw(format!("{}\n", plain_json(&serde_json::to_string(value)?)).as_bytes())
}

/// The same object, in characters that a terminal does not obey. JSON itself spells out no more than those below 0x20.
fn plain_json(json: &str) -> String {
    let mut plain = String::with_capacity(json.len());
    for char in json.chars() {
        if shown::is_plain(char) {
            plain.push(char);
        } else {
            let units = char
                .encode_utf16(&mut [0; 2])
                .iter()
                .map(|unit| format!("\\u{unit:04x}"))
                .collect::<String>();
            plain.push_str(&units);
        }
    }
    plain
}

/// Prints a message.
pub(super) fn note(text: impl Display) {
    // Without a stderr there is nobody to tell.
    drop(writeln!(io::stderr().lock(), "{}", shown::lines(&text.to_string())));
}

/// Prints a message that holds texts of the table: on one line.
pub(super) fn concern(text: impl Display) {
    note(shown::spelt(&text.to_string()));
}

/// Prints that something of the table is passed over, and why.
pub(super) fn skipped(what: impl Display) {
    concern(format_args!("skipped: {what}"));
}

/// Asks on the terminal; none where there is none.
pub(super) fn ask(question: &str) -> io::Result<Option<String>> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Ok(None);
    }
    let mut stderr = io::stderr().lock();
    write!(stderr, "{question}")?;
    stderr.flush()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(Some(answer))
}

#[cfg(test)]
mod tests {
    use super::plain_json;

    #[test]
    fn json_is_the_same_object_and_tells_a_terminal_nothing() {
        let hostile = serde_json::json!({ "\u{9b}2J": ["\u{202e}a\u{e0041}\u{7f}", "\u{1b}[m\n\"\\", "é"] });
        let plain = plain_json(&hostile.to_string());
        assert_eq!(serde_json::from_str::<serde_json::Value>(&plain).expect("JSON"), hostile);
        assert!(plain.chars().all(crate::shown::is_plain), "{plain}");
    }
}
