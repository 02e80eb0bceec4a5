//! How far long work is: on a terminal, and nowhere else.

use std::io::{self, IsTerminal, Write as _};

/// A line on a terminal, rewritten as work goes on, and wiped at its end.
pub(super) struct Progress {
    what: &'static str,
    total: Option<usize>,
    done: usize,
    shown: bool,
}

impl Progress {
    /// Of a known number of things.
    pub(super) fn new(what: &'static str, total: usize) -> Self {
        Self { what, total: Some(total), done: 0, shown: io::stderr().is_terminal() }
    }

    /// Of nobody knows how many.
    pub(super) fn open(what: &'static str) -> Self {
        Self { what, total: None, done: 0, shown: io::stderr().is_terminal() }
    }

    /// One more is done.
    pub(super) fn step(&mut self) {
        self.done += 1;
        if self.shown {
            let text = match self.total {
                Some(total) => format!("{} {} of {total}", bar(self.done, total), self.done),
                None => self.done.to_string(),
            };
            // Without a terminal after all there is nobody to tell.
            drop(write!(io::stderr().lock(), "\r\x1b[K{text} {}", self.what));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            drop(write!(io::stderr().lock(), "\r\x1b[K"));
        }
    }
}

/// `[#####     ]`.
fn bar(done: usize, total: usize) -> String {
    const WIDTH: usize = 30;
    let filled = WIDTH * done.min(total) / total.max(1);
    format!("[{}{}]", "#".repeat(filled), " ".repeat(WIDTH - filled))
}

#[cfg(test)]
mod tests {
    use super::bar;

    #[test]
    fn a_bar_fills_and_never_overflows() {
        assert_eq!(bar(0, 10), format!("[{}]", " ".repeat(30)));
        assert_eq!(bar(5, 10).matches('#').count(), 15);
        assert_eq!(bar(11, 10), format!("[{}]", "#".repeat(30)));
        assert_eq!(bar(0, 0).len(), 32);
    }
}
