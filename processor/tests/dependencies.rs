//! Dependencies are as `.deny.toml` allows: licences, sources, duplicate versions. It needs Cargo and the crates that were built, no net.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::process::Command;

use serde::Deserialize;

/// The only registry.
const CRATES: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// What `cargo metadata` says of this platform.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

/// A crate.
#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// Where it comes from; nowhere if it is part of this workspace.
    source: Option<String>,
    /// What it depends on.
    dependencies: Vec<Dependency>,
}

/// A crate that another one depends on.
#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// What for: `dev` and `build`, or nothing if it is part of it.
    kind: Option<String>,
}

/// The crates of this workspace that are rooms of the program, each with what it may depend on among those, and what others may not be in it.
/// Arrows go upwards only: who is above does not know who is below.
const WALLS: [(&str, &[&str], &[&str]); 9] = [
    (
        "retide-core",
        &[],
        &["tokio", "rdkafka", "clap", "rand", "tracing"],
    ),
    ("retide-native", &[], &["tokio", "clap"]),
    (
        "retide-avro",
        &["retide-core"],
        &["tokio", "rdkafka", "clap"],
    ),
    ("retide-connectors", &["retide-core"], &["rdkafka", "clap"]),
    (
        "retide-config",
        &["retide-core", "retide-avro", "retide-connectors"],
        &["tokio", "rdkafka", "clap"],
    ),
    (
        "retide-kafka",
        &["retide-core", "retide-avro", "retide-native"],
        &["clap"],
    ),
    (
        "retide-history",
        &["retide-core", "retide-avro", "retide-kafka"],
        &["tokio", "clap"],
    ),
    (
        "retide-shell",
        &[
            "retide-core",
            "retide-avro",
            "retide-connectors",
            "retide-config",
            "retide-kafka",
            "retide-native",
        ],
        &["clap"],
    ),
    ("retide-embedded", &[], &["rdkafka", "clap"]),
];

/// What counts of `.deny.toml`.
#[derive(Deserialize)]
struct Rules {
    licenses: Licenses,
    bans: Bans,
}

/// Licences by their names in SPDX.
#[derive(Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

/// Versions that may be there beside another one of their crate.
#[derive(Deserialize)]
struct Bans {
    skip: Vec<Skip>,
}

/// One of them, as `NAME@VERSION`.
#[derive(Deserialize)]
struct Skip {
    #[serde(rename = "crate")]
    package: String,
}

/// Whether an expression of SPDX holds: `A OR (B AND C)`, of which `/` is an older form of `OR`.
fn allows(rules: &Rules, expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ");
    let spaced = spaced.replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = &words[..];
    let allowed = any(rules, &mut rest);
    assert!(rest.is_empty(), "{expression}");
    allowed
}

fn any(rules: &Rules, words: &mut &[&str]) -> bool {
    let mut allowed = all(rules, words);
    while let Some(("OR", rest)) = words.split_first().map(|(word, rest)| (*word, rest)) {
        *words = rest;
        allowed |= all(rules, words);
    }
    allowed
}

fn all(rules: &Rules, words: &mut &[&str]) -> bool {
    let mut allowed = one(rules, words);
    while let Some(("AND", rest)) = words.split_first().map(|(word, rest)| (*word, rest)) {
        *words = rest;
        allowed &= one(rules, words);
    }
    allowed
}

fn one(rules: &Rules, words: &mut &[&str]) -> bool {
    match **words {
        ["(", ref rest @ ..] => {
            *words = rest;
            let allowed = any(rules, words);
            *words = words.strip_prefix(&[")"]).expect("a parenthesis is closed");
            allowed
        }
        [license, "WITH", exception, ref rest @ ..] => {
            *words = rest;
            let whole = format!("{license} WITH {exception}");
            rules.licenses.allow.contains(&whole)
        }
        [license, ref rest @ ..] => {
            *words = rest;
            rules.licenses.allow.contains(license)
        }
        [] => panic!("a licence is missing"),
    }
}

/// What is depended on on this platform, and what `.deny.toml` says of it.
fn dependencies() -> (Vec<Package>, Rules) {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let version = Command::new(&cargo).arg("-vV").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .unwrap();
    let output = Command::new(cargo)
        .args(["metadata", "--offline", "--locked", "--format-version", "1"])
        .args(["--filter-platform", host])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let metadata: Metadata = serde_json::from_slice(&output.stdout).unwrap();
    let rules = fs::read_to_string(format!("{root}/.deny.toml")).unwrap();
    (metadata.packages, toml::from_str(&rules).unwrap())
}

#[test]
fn dependencies_have_licences_that_are_allowed_and_one_source() {
    let (packages, rules) = dependencies();

    for Package {
        name,
        license,
        source,
        ..
    } in &packages
    {
        let license = license.as_deref().unwrap_or_default();
        assert!(allows(&rules, license), "{name}: {license}");
        let source = source.as_deref();
        assert!(
            source.is_none_or(|source| source == CRATES),
            "{name}: {source:?}"
        );
    }
}

#[test]
fn the_walls_between_crates_stand() {
    let (packages, _) = dependencies();

    for (name, above, banned) in WALLS {
        let package = packages.iter().find(|package| package.name == name);
        let package = package.unwrap_or_else(|| panic!("no crate {name}"));
        let all = package.dependencies.iter();
        for Dependency { name: other, .. } in all.filter(|other| other.kind.is_none()) {
            let is_room = other.starts_with("retide");
            assert!(!is_room || above.contains(&&**other), "{name} uses {other}");
            assert!(!banned.contains(&&**other), "{name} uses {other}");
        }
    }
}

#[test]
fn a_crate_has_one_version_unless_a_second_one_has_its_reason() {
    let (packages, rules) = dependencies();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in &packages {
        let of = versions.entry(&package.name).or_default();
        of.insert(&package.version);
    }
    let skipped: BTreeSet<&str> = rules.bans.skip.iter().map(|skip| &*skip.package).collect();

    for (name, versions) in &versions {
        let kept = versions
            .iter()
            .filter(|version| !skipped.contains(&*format!("{name}@{version}")));
        let kept: Vec<_> = kept.collect();
        assert!(kept.len() < 2, "{name}: {kept:?}");
    }
    // What is no second version any more needs no reason.
    if cfg!(target_os = "linux") {
        for skip in skipped {
            let (name, version) = skip.split_once('@').unwrap();
            let versions = versions
                .get(name)
                .map(|versions| (versions.contains(version), versions.len()));
            assert!(
                matches!(versions, Some((true, 2..))),
                "{skip} is not needed"
            );
        }
    }
}

#[test]
fn an_expression_is_read_as_spdx_has_it() {
    let rules = |allow: &[&str]| Rules {
        licenses: Licenses {
            allow: allow.iter().map(|&name| name.to_owned()).collect(),
        },
        bans: Bans { skip: Vec::new() },
    };

    assert!(allows(&rules(&["A"]), "A OR B"));
    assert!(allows(&rules(&["A"]), "B/A"));
    assert!(!allows(&rules(&["A"]), "A AND B"));
    assert!(!allows(&rules(&["A"]), "(A OR B) AND C"));
    assert!(allows(&rules(&["A", "C"]), "(A OR B) AND C"));
    assert!(!allows(&rules(&["A"]), "A WITH E"));
    assert!(allows(&rules(&["A WITH E"]), "A WITH E"));
}
