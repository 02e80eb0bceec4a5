//! Lines for whoever reads standard error or standard output, never waiting for them.
//!
//! A log pipe that nobody reads must not stop refreshes; a line that was written must not be lost with the process, and
//! one about a request stands there before the request leaves. So a line is written at once, where the reader has room
//! for it, and else is dropped and counted. A thread that writes would wait in our place, and take with it what it had
//! not written yet.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// What a pipe takes at once where poll(2) calls it writable: PIPE_BUF of pipe(7).
const PIECE: usize = 4096;
/// How long a reader that has just fallen behind is waited for, in nanoseconds: once, until it has caught up.
const PATIENCE_NS: i64 = 50_000_000;

/// A writer of lines. Clones share it.
pub struct Lines<W>(Arc<Shared<W>>);

struct Shared<W> {
    output: Mutex<Output<W>>,
    dropped: AtomicU64,
}

struct Output<W> {
    inner: W,
    /// The reader has fallen behind, and was waited for.
    behind: bool,
    /// A line was cut off: its end is owed.
    torn: bool,
}

impl<W> Clone for Lines<W> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<W: Write + AsFd> Lines<W> {
    /// Writes to a pipe, a terminal or a file.
    pub fn to(inner: W) -> Self {
        let output = Mutex::new(Output { inner, behind: false, torn: false });
        Self(Arc::new(Shared { output, dropped: AtomicU64::new(0) }))
    }

    /// Lines that nobody had room for.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

impl<W: Write + AsFd> Output<W> {
    fn line(&mut self, line: &[u8]) -> io::Result<bool> {
        if self.torn {
            if !self.has_room()? {
                return Ok(false);
            }
            self.inner.write_all(b"\n")?;
            self.torn = false;
        }
        for (number, piece) in line.chunks(PIECE).enumerate() {
            if !self.has_room()? {
                self.torn = number > 0;
                return Ok(false);
            }
            self.inner.write_all(piece)?;
        }
        self.inner.flush()?;
        Ok(true)
    }

    fn has_room(&mut self) -> io::Result<bool> {
        let patience = Timespec { tv_sec: 0, tv_nsec: if self.behind { 0 } else { PATIENCE_NS } };
        let mut asked = [PollFd::new(&self.inner, PollFlags::OUT)];
        let ready = match poll(&mut asked, Some(&patience)) {
            Err(Errno::INTR) => 0,
            other => other?,
        };
        self.behind = ready == 0;
        Ok(ready > 0)
    }
}

impl<W: Write + AsFd> Write for Lines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let written = self.0.output.lock().unwrap_or_else(PoisonError::into_inner).line(line);
        // A reader that has gone is none that could be told.
        if !matches!(written, Ok(true)) {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, PipeWriter, Read as _, pipe};

    use super::*;

    fn lines() -> (PipeReader, Lines<PipeWriter>) {
        let (reader, writer) = pipe().expect("a pipe");
        (reader, Lines::to(writer))
    }

    /// Fills the pipe with lines of so many bytes, and says how many it took.
    fn fill(lines: &mut Lines<PipeWriter>, bytes: usize) -> usize {
        let line = [vec![b'x'; bytes - 1], vec![b'\n']].concat();
        (0..).take_while(|_| lines.write_all(&line).is_ok() && lines.dropped() == 0).count()
    }

    #[test]
    fn a_line_is_there_when_the_call_returns() {
        let (mut reader, mut lines) = lines();
        lines.write_all(b"first\n").expect("never fails");
        let mut read = [0; 6];
        reader.read_exact(&mut read).expect("six bytes");
        assert_eq!((&read, lines.dropped()), (b"first\n", 0));
    }

    #[test]
    fn a_reader_that_does_not_read_costs_lines_and_no_wait() {
        let (mut reader, mut lines) = lines();
        let taken = fill(&mut lines, 100);
        assert!(taken > 500, "a pipe holds 64 KB: {taken}");
        for _ in 0..1000 {
            lines.write_all(b"unheard\n").expect("never fails");
        }
        assert_eq!(lines.dropped(), 1001);

        let mut read = vec![0; taken * 100];
        reader.read_exact(&mut read).expect("what it took");
        lines.write_all(b"heard\n").expect("never fails");
        let mut read = [0; 6];
        reader.read_exact(&mut read).expect("six bytes");
        assert_eq!((&read, lines.dropped()), (b"heard\n", 1001));
    }

    #[test]
    fn a_line_that_was_cut_off_ends_before_the_next_begins() {
        let (mut reader, mut lines) = lines();
        let taken = fill(&mut lines, 3 * PIECE);
        let whole = taken * 3 * PIECE;
        let mut read = vec![0; whole];
        reader.read_exact(&mut read).expect("the whole lines");
        lines.write_all(b"next\n").expect("never fails");
        drop(lines);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).expect("text");
        let rest: Vec<_> = rest.lines().collect();
        assert_eq!(rest.last(), Some(&"next"), "{} lines", rest.len());
    }

    #[test]
    fn a_reader_that_has_gone_is_no_error() {
        let (reader, mut lines) = lines();
        drop(reader);
        lines.write_all(b"unheard\n").expect("never fails");
        assert_eq!(lines.dropped(), 1);
    }
}
