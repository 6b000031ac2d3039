//! Texts of others, on a terminal: ids, scenes, messages and headers are what producers and targets have written.
//!
//! Invariant: nothing that is shown moves the cursor, sets a title or turns text around. Programs get JSON, with everything as it is.

/// Text without what a terminal would take for a command, on one line.
pub(super) fn line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\n' | '\r' | '\t' => out.extend(letter.escape_default()),
            letter => push(letter, &mut out),
        }
    }
    out
}

/// The same on several lines: line feeds and tabs stay.
pub(super) fn lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\n' | '\t' => out.push(letter),
            letter => push(letter, &mut out),
        }
    }
    out
}

/// Adds a letter, or its number where it would do something.
pub(super) fn push(letter: char, out: &mut String) {
    let turns = matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if turns || letter.is_control() {
        out.extend(letter.escape_unicode());
    } else {
        out.push(letter);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_do_something_is_shown_by_its_number() {
        let text = "a\u{1b}[2J\r\u{7f}\u{9b}\u{202e}b\tc\nd\u{fc}\u{1f642}";

        assert_eq!(
            line(text),
            "a\\u{1b}[2J\\r\\u{7f}\\u{9b}\\u{202e}b\\tc\\nd\u{fc}\u{1f642}"
        );
        assert_eq!(
            lines(text),
            "a\\u{1b}[2J\\u{d}\\u{7f}\\u{9b}\\u{202e}b\tc\nd\u{fc}\u{1f642}"
        );
    }
}
