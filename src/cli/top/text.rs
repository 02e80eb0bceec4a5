//! Text as a terminal can take it.
//!
//! Whatever comes from the table may have been written by another tool: every text goes through [`clean`].

use ratatui::style::Style;
use ratatui::text::Span;

/// A text that a terminal shows and does not obey.
pub(super) use crate::shown::spelt as clean;

pub(super) fn styled(text: impl AsRef<str>, style: Style) -> Span<'static> {
    Span::styled(clean(text.as_ref()), style)
}

pub(super) fn plain(text: impl AsRef<str>) -> Span<'static> {
    styled(text, Style::new())
}

/// Breaks a line between words; what follows is indented by so much, and a word that is too long is cut.
pub(super) fn wrapped(line: &str, width: usize, hang: usize) -> Vec<String> {
    let indent = " ".repeat(hang.min(width / 2));
    let mut lines = vec![line.chars().take_while(|char| *char == ' ').take(width / 2).collect::<String>()];
    let mut begun = false;
    for word in line.trim_start().split(' ') {
        let mut rest = word;
        let last = lines.last_mut().expect("it begins with one");
        if begun && wide(last) + 1 + wide(word) > width {
            lines.push(indent.clone());
        } else if begun {
            last.push(' ');
        }
        begun = true;
        loop {
            let last = lines.last_mut().expect("it begins with one");
            let room = width.saturating_sub(wide(last));
            let cut = cut_at(rest, room);
            if cut == rest.len() || width == 0 {
                last.push_str(rest);
                break;
            }
            last.push_str(&rest[..cut]);
            rest = &rest[cut..];
            lines.push(indent.clone());
        }
    }
    lines
}

fn wide(text: &str) -> usize {
    Span::raw(text).width()
}

/// How many bytes of it are so wide at most; at least one character, or it would never end.
fn cut_at(text: &str, room: usize) -> usize {
    let fits = text
        .char_indices()
        .map(|(at, char)| at + char.len_utf8())
        .take_while(|at| wide(&text[..*at]) <= room);
    fits.last().unwrap_or_else(|| text.chars().next().map_or(0, char::len_utf8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_between_words_and_what_is_too_long_is_cut() {
        assert_eq!(wrapped("  ab cd ef", 8, 4), ["  ab cd", "    ef"]);
        assert_eq!(wrapped("abcdefgh i", 4, 0), ["abcd", "efgh", "i"]);
        assert_eq!(wrapped("漢字", 3, 0), ["漢", "字"]);
        assert_eq!(wrapped("漢", 1, 9), ["漢"]);
        assert_eq!(wrapped("", 9, 4), [""]);
        assert_eq!(wrapped("a b", 0, 4), ["a", "b"]);
    }
}
