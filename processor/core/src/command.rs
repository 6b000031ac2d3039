//! Command lines that people paste into a shell.
//!
//! Invariant: each word reaches the program as it is, and a line about a cluster names the cluster that was meant.

use std::fmt::Write as _;
use std::path::PathBuf;

/// Where Kafka is when nobody says.
pub const BOOTSTRAP: &str = "localhost:9092";

/// The options with which retide was called that say which cluster and which topics are meant: a command that mends something needs them
/// again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Invocation {
    /// The configuration, if one was named.
    pub config: Option<PathBuf>,
    /// The address of Kafka, if it was named.
    pub bootstrap: Option<String>,
    /// The prefix of the topics, if it was named.
    pub prefix: Option<String>,
}

// === impl Invocation ===

impl Invocation {
    /// The line that calls `retide` with `words`, which a shell reads as they are, on the same cluster.
    pub fn line(&self, words: &str) -> String {
        let mut text = format!("retide {words}");
        let config = self
            .config
            .as_ref()
            .map(|config| config.display().to_string());
        for (option, value) in [
            ("--config", config.as_ref()),
            ("--bootstrap", self.bootstrap.as_ref()),
            ("--prefix", self.prefix.as_ref()),
        ] {
            if let Some(value) = value {
                let _ = write!(text, " {option} {}", word(value));
            }
        }
        text
    }
}

/// The words as a line for a shell.
pub fn line<S: AsRef<str>>(words: &[S]) -> String {
    let words: Vec<String> = words.iter().map(|text| word(text.as_ref())).collect();
    words.join(" ")
}

/// One word, in quotes where a shell would read more than its letters.
pub fn word(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:,=/@%+".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(
        clippy::disallowed_types,
        reason = "a shell knows best what it makes of words"
    )]
    fn a_word_reaches_a_program_as_it_is() {
        for text in [
            "",
            "a b",
            "it's",
            "$(x) `y` \\ \"",
            "*",
            "~",
            "plain.word-1",
            "a\nb",
        ] {
            let command = format!("printf %s {}", word(text));

            let output = std::process::Command::new("sh")
                .args(["-c", &command])
                .output()
                .unwrap();

            assert_eq!(String::from_utf8_lossy(&output.stdout), text);
        }
    }

    #[test]
    fn a_line_repeats_the_options_that_were_given() {
        let given = Invocation {
            config: Some(PathBuf::from("my retide.toml")),
            bootstrap: Some("a:9092,b:9092".to_owned()),
            prefix: None,
        };

        assert_eq!(Invocation::default().line("init"), "retide init");
        assert_eq!(
            given.line("scenes apply s.toml"),
            "retide scenes apply s.toml --config 'my retide.toml' --bootstrap a:9092,b:9092"
        );
    }
}
