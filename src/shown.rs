//! Texts of strangers, as people are shown them: they are read and not obeyed.
//!
//! Whatever comes from the table, from a file or from a provider may hold what moves a cursor, turns the direction of
//! writing, cannot be seen, or begins a line of its own. Such characters are spelt out, as `\u{1b}`.

/// On one line, whole.
pub fn spelt(text: &str) -> String {
    let mut spelt = String::with_capacity(text.len());
    for char in text.chars() {
        push(&mut spelt, char);
    }
    spelt
}

/// On one line, and no longer than so many characters as they were written.
pub fn clipped(text: &str, most: usize) -> String {
    let mut spelt: String = String::new();
    let mut chars = text.chars();
    for char in chars.by_ref().take(most) {
        push(&mut spelt, char);
    }
    if chars.next().is_some() {
        spelt.push_str("...");
    }
    spelt
}

/// As many lines as it has, tabs included.
pub fn lines(text: &str) -> String {
    let mut spelt = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '\n' | '\t' => spelt.push(char),
            other => push(&mut spelt, other),
        }
    }
    spelt
}

/// Whether a text may be shown as it is.
pub fn is_plain(char: char) -> bool {
    matches!(char, '"' | '\'' | '\\') || char.escape_debug().len() == 1
}

fn push(spelt: &mut String, char: char) {
    if is_plain(char) {
        spelt.push(char);
    } else {
        spelt.extend(char.escape_unicode());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_turns_or_hides_is_spelt_out() {
        assert_eq!(spelt("\u{1b}]0;owned\u{7} and \u{9b}2J"), "\\u{1b}]0;owned\\u{7} and \\u{9b}2J");
        assert_eq!(spelt("\u{202e}gpj.exe"), "\\u{202e}gpj.exe");
        assert_eq!(
            spelt("a\u{200b}b\u{feff}\u{2028}\u{e0041}\0"),
            "a\\u{200b}b\\u{feff}\\u{2028}\\u{e0041}\\u{0}"
        );
        assert_eq!(spelt("one\nanother\r\t"), "one\\u{a}another\\u{d}\\u{9}");
        assert_eq!(spelt("an é, \"漢\\字'"), "an é, \"漢\\字'");
    }

    #[test]
    fn what_is_long_is_cut_and_what_has_lines_keeps_them() {
        assert_eq!((clipped("abc", 3), clipped("abcd", 3)), ("abc".to_owned(), "abc...".to_owned()));
        assert_eq!(lines("two\tcells\nand\u{7}"), "two\tcells\nand\\u{7}");
    }
}
