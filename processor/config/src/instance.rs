//! What a process is called in its group from one start to the next, where that is written with variables.
//!
//! Invariant: what passes is a name that brokers take.

use std::fs;

use super::text;

/// Where the kernel says what the machine is called: in a container, as a rule, what its pod is.
const HOST: &str = "/proc/sys/kernel/hostname";

/// The variable that says the same, where there is one.
const VARIABLE: &str = "HOSTNAME";

/// Longest name: a member adds its number to it, and brokers take 249 characters.
const LONGEST: usize = 200;

/// Puts the values of variables in the place of `${NAME}`.
pub(super) fn expand(written: &str, variables: &[(String, String)]) -> Result<String, String> {
    let mut parts = written.split("${");
    let mut expanded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let Some((name, rest)) = part.split_once('}') else {
            return Err(format!("`${{{part}` has no end: expected `}}`"));
        };
        let value = variables.iter().find(|(known, _)| known == name);
        let value = value.map(|(_, value)| value.clone());
        let value = value.or_else(|| host().filter(|_| name == VARIABLE));
        let value = value.ok_or_else(|| format!("there is no variable {name}"))?;
        expanded.push_str(&value);
        expanded.push_str(rest);
    }
    if !is_name(&expanded) {
        return Err(format!(
            "`{expanded}`: expected 1 to {LONGEST} letters, digits, dots, underscores or dashes"
        ));
    }
    Ok(expanded)
}

/// What the machine is called, if it says so.
pub fn host() -> Option<String> {
    let name = fs::read_to_string(HOST).ok()?.trim().to_owned();
    (!name.is_empty()).then_some(name)
}

/// Whether a text may stand in the name of a member.
pub fn is_name(name: &str) -> bool {
    text::is_name(name, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_id_takes_in_variables_and_is_a_name() {
        let variables = [("POD".to_owned(), "shop-7".to_owned())];
        let expand = |written| expand(written, &variables);

        assert_eq!(expand("retide-0"), Ok("retide-0".to_owned()));
        assert_eq!(expand("a-${POD}.b"), Ok("a-shop-7.b".to_owned()));
        assert!(expand("${HOSTNAME}").is_ok());
        for (written, message) in [
            ("${NODE}", "there is no variable NODE"),
            ("x${POD", "`${POD` has no end: expected `}`"),
            (
                "a b",
                "`a b`: expected 1 to 200 letters, digits, dots, underscores or dashes",
            ),
        ] {
            assert_eq!(expand(written), Err(message.to_owned()));
        }
    }
}
