//! Bytes, for people: JSON with each member on a line of its own, text, or a dump in hex.
//!
//! Not for programs, which get the bytes themselves. Invariants: nothing that is shown moves the cursor of a terminal or turns its text around;
//! no more is made than is shown; numbers and texts of JSON are shown as they are written.

use std::fmt::Write as _;
use std::str;

use serde::de::IgnoredAny;

use crate::cli::terminal::push;

/// What bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A document in JSON.
    Json,
    /// Text in UTF-8.
    Text,
    /// Something else.
    Binary,
}

/// How much of a payload is shown, in bytes of what is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room(pub(super) usize);

/// Bytes of a line of a dump.
const LINE: usize = 16;

/// Spaces by which a level of JSON is indented.
const INDENT: usize = 2;

/// Most spaces before a line: a document of many levels has no lines that grow with them.
const MOST_INDENT: usize = 64;

// === impl Form ===

impl Form {
    /// What these bytes are.
    pub(super) fn of(bytes: &[u8]) -> Self {
        match str::from_utf8(bytes) {
            Err(_) => Self::Binary,
            Ok(_) if serde_json::from_slice::<IgnoredAny>(bytes).is_ok() => Self::Json,
            // What no text has, and what serializers of numbers write.
            Ok(text) if text.contains('\0') => Self::Binary,
            Ok(_) => Self::Text,
        }
    }

    /// The word for it.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Text => "text",
            Self::Binary => "binary",
        }
    }
}

// === impl Room ===

impl Room {
    /// All of it.
    pub(super) const ALL: Self = Self(usize::MAX);

    /// Enough for a person to see what it is, and not more than a terminal keeps.
    pub(super) const SOME: Self = Self(16 * 1_024);
}

/// Bytes as text, and how many of them are not shown.
pub(super) fn pretty(bytes: &[u8], room: Room) -> (String, usize) {
    let (text, shown) = match (Form::of(bytes), str::from_utf8(bytes)) {
        (Form::Json, Ok(text)) => json(text, room),
        (Form::Text, Ok(text)) => plain(text, room),
        (Form::Json | Form::Text | Form::Binary, _) => dump(bytes, room),
    };
    (text, bytes.len() - shown)
}

/// Text as it is; gives how many bytes of it are shown.
fn plain(text: &str, Room(room): Room) -> (String, usize) {
    let mut out = String::new();
    for (at, letter) in text.char_indices() {
        if out.len() >= room {
            return (out, at);
        }
        match letter {
            '\n' | '\t' => out.push(letter),
            letter => push(letter, &mut out),
        }
    }
    (out, text.len())
}

/// A document, which is one, with each member and element on a line of its own.
fn json(text: &str, Room(room): Room) -> (String, usize) {
    let mut out = String::new();
    let (mut depth, mut in_text, mut is_escaped) = (0_usize, false, false);
    let mut letters = text.char_indices().peekable();
    let turn = |depth: usize, out: &mut String| {
        out.push('\n');
        let indent = (depth * INDENT).min(MOST_INDENT);
        out.extend(std::iter::repeat_n(' ', indent));
    };
    while let Some((at, letter)) = letters.next() {
        if out.len() >= room {
            return (out, at);
        }
        if in_text {
            push(letter, &mut out);
            in_text = is_escaped || letter != '"';
            is_escaped = !is_escaped && letter == '\\';
            continue;
        }
        match letter {
            ' ' | '\t' | '\n' | '\r' => {}
            '{' | '[' => {
                out.push(letter);
                while letters
                    .next_if(|(_, next)| next.is_ascii_whitespace())
                    .is_some()
                {}
                if let Some((_, end)) = letters.next_if(|(_, next)| matches!(next, '}' | ']')) {
                    out.push(end);
                } else {
                    depth += 1;
                    turn(depth, &mut out);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                turn(depth, &mut out);
                out.push(letter);
            }
            ',' => {
                out.push(letter);
                turn(depth, &mut out);
            }
            ':' => out.push_str(": "),
            '"' => {
                in_text = true;
                out.push(letter);
            }
            letter => push(letter, &mut out),
        }
    }
    (out, text.len())
}

/// Bytes by their numbers, sixteen a line, and beside them as text.
fn dump(bytes: &[u8], Room(room): Room) -> (String, usize) {
    let mut out = String::new();
    for (number, line) in bytes.chunks(LINE).enumerate() {
        if out.len() >= room {
            return (out, number * LINE);
        }
        if number > 0 {
            out.push('\n');
        }
        // Writing to a string cannot fail.
        let _ = write!(out, "{:08x} ", number * LINE);
        for at in 0..LINE {
            let _ = match line.get(at) {
                Some(byte) => write!(out, " {byte:02x}"),
                None => write!(out, "   "),
            };
        }
        out.push_str("  ");
        let letters = line.iter().map(|byte| match byte {
            b' '..=b'~' => char::from(*byte),
            _ => '.',
        });
        out.extend(letters);
    }
    (out, bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> String {
        let (text, left) = pretty(bytes, Room::ALL);
        assert_eq!(left, 0);
        text
    }

    #[test]
    fn json_has_a_line_for_each_member_and_its_numbers_and_texts_as_they_are_written() {
        let text = br#" {"a":1.10,"big":123456789012345678901234567890,"a":[ ],"b":[1,{"c":"x\",]:{\\"}],"d":{}}"#;

        let lines = [
            "{",
            r#"  "a": 1.10,"#,
            r#"  "big": 123456789012345678901234567890,"#,
            r#"  "a": [],"#,
            r#"  "b": ["#,
            "    1,",
            "    {",
            r#"      "c": "x\",]:{\\""#,
            "    }",
            "  ],",
            r#"  "d": {}"#,
            "}",
        ];
        assert_eq!(all(text), lines.join("\n"));
        assert_eq!(all(b"42"), "42");
        assert_eq!(Form::of(b"{\"a\":1}x"), Form::Text);
    }

    #[test]
    fn a_document_of_many_levels_has_no_long_lines() {
        let deep = "[".repeat(100_000) + "1" + &"]".repeat(100_000);

        let text = all(deep.as_bytes());

        assert_eq!(text.lines().count(), 200_001);
        assert!(text.lines().all(|line| line.len() <= MOST_INDENT + 1));
    }

    #[test]
    fn what_is_shown_does_nothing_to_a_terminal() {
        let text = "a\u{1b}[2J\r\u{7f}\u{9b}\u{202e}b\tc\nd\u{fc}\u{1f642}";

        assert_eq!(
            all(text.as_bytes()),
            "a\\u{1b}[2J\\u{d}\\u{7f}\\u{9b}\\u{202e}b\tc\nd\u{fc}\u{1f642}"
        );
        let json = "{\"a\":\"\u{9b}2J\u{202e}\"}";
        assert_eq!(
            all(json.as_bytes()),
            "{\n  \"a\": \"\\u{9b}2J\\u{202e}\"\n}"
        );
    }

    #[test]
    fn what_is_no_text_is_dumped() {
        let bytes: Vec<u8> = (0..18).chain(*b"Az~\xff").collect();

        let lines = [
            "00000000  00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f  ................",
            "00000010  10 11 41 7a 7e ff                                ..Az~.",
        ];
        assert_eq!(all(&bytes), lines.join("\n"));
        assert_eq!(Form::of(b"\0\0\0\x07"), Form::Binary);
        assert_eq!(all(b""), "");
    }

    #[test]
    fn no_more_is_made_than_is_shown() {
        let text = "\u{fc}".repeat(1_000_000);
        let json = format!("[{}1]", "1,".repeat(500_000));

        for bytes in [text.as_bytes(), json.as_bytes(), &vec![0xff; 1_000_000]] {
            let (shown, left) = pretty(bytes, Room(100));
            assert!(
                shown.len() <= 200 && left > 900_000,
                "{} {left}",
                shown.len()
            );
        }
    }
}
