//! A live table on a terminal, lines in a pipe.

use std::fmt::Write as _;

use perennial::time::{Clock, SystemClock, Timestamp};

use crate::observe::{Ledger, News};

const HOME_AND_CLEAR: &str = "\x1b[H\x1b[J";
const OTHER_SCREEN: &str = "\x1b[?1049h\x1b[?25l";
const FIRST_SCREEN: &str = "\x1b[?25h\x1b[?1049l";

pub(crate) struct View {
    live: bool,
    opened: bool,
}

impl View {
    pub(crate) fn new(live: bool) -> Self {
        Self { live, opened: false }
    }

    pub(crate) fn show(&mut self, ledger: &Ledger, news: &[News]) {
        if self.live { self.redraw(ledger) } else { lines(ledger, news) }
    }

    fn redraw(&mut self, ledger: &Ledger) {
        if !self.opened {
            print!("{OTHER_SCREEN}");
            self.opened = true;
        }
        println!("{HOME_AND_CLEAR}{}", table(ledger));
    }

    /// Gives the terminal back.
    pub(crate) fn close(&mut self) {
        if self.opened {
            print!("{FIRST_SCREEN}");
        }
    }
}

fn lines(ledger: &Ledger, news: &[News]) {
    let now = SystemClock.now();
    for News { id, result } in news {
        if let Some(row) = ledger.rows.get(id) {
            let left = row.expires_at.since(now).as_secs();
            println!("{now} {id:<14} generation={:<4} expires_in={left}s result={result}", row.generation);
        }
    }
}

fn table(ledger: &Ledger) -> String {
    let now = SystemClock.now();
    let mut text = format!(
        "Perennial keeps {} clients fresh: {} refreshes, {} failures. Ctrl-C ends it.\n\n{:<14} {:<19} {:>10} {:>13} {:>11}  {}\n",
        ledger.rows.len(),
        ledger.refreshes,
        ledger.failures,
        "CLIENT",
        "GRANT",
        "EXPIRES IN",
        "LAST REFRESH",
        "GENERATION",
        "RESULT"
    );
    for (id, row) in &ledger.rows {
        let left = row.expires_at.since(now).as_secs();
        let ago = match row.updated_at {
            Some(at) if row.expires_at != Timestamp::EPOCH => format!("{}s ago", now.since(at).as_secs()),
            _ => "-".to_owned(),
        };
        // Writing to a string cannot fail.
        let _ok = writeln!(
            text,
            "{id:<14} {:<19} {:>9}s {ago:>13} {:>11}  {}",
            row.grant, left, row.generation, row.result
        );
    }
    text
}
