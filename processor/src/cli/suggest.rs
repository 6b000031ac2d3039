//! "Did you mean": scenes that are named like one that does not exist.

use std::fmt::Write as _;

/// Scenes that are named where none is similar.
pub(super) const SHOWN: usize = 5;

/// What is said after "there is no scene NAME": the one that was probably meant, else some that there are.
pub(super) fn words<S: AsRef<str>>(name: &str, known: &[S]) -> String {
    let mut text = String::new();
    if let Some(closest) = closest(name, known) {
        let _ = write!(text, "; did you mean {closest}?");
    } else if known.is_empty() {
        text.push_str("; there is none at all yet");
    } else {
        let some: Vec<&str> = known.iter().map(AsRef::as_ref).take(SHOWN).collect();
        let known = match known.len() {
            1 => "the only one is",
            2..=SHOWN => "there are",
            _ => "there are for instance",
        };
        let _ = write!(text, "; {known} {}", some.join(", "));
    }
    text
}

/// The name that is most like this one, if one is.
fn closest<'a, S: AsRef<str>>(name: &str, known: &'a [S]) -> Option<&'a str> {
    let (lower, most) = (name.to_lowercase(), name.chars().count().max(3) / 3);
    let alike = known.iter().map(AsRef::as_ref).filter_map(|other: &str| {
        let distance = strsim::damerau_levenshtein(&lower, &other.to_lowercase());
        let begins = lower.len() >= 3 && other.to_lowercase().starts_with(&lower);
        (distance <= most || begins).then_some((distance, other))
    });
    alike.min().map(|(_, other)| other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scene_that_was_meant_is_named_or_some_that_there_are() {
        let known = ["payment", "mail", "refund"];

        assert_eq!(words("paymnt", &known), "; did you mean payment?");
        assert_eq!(words("Payment", &known), "; did you mean payment?");
        assert_eq!(words("ref", &known), "; did you mean refund?");
        assert_eq!(words("x", &known), "; there are payment, mail, refund");
        assert_eq!(words("x", &["payment"]), "; the only one is payment");
        assert_eq!(words::<&str>("x", &[]), "; there is none at all yet");
    }
}
