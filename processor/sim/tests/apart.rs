//! What takes a build of its own: thousands of histories, with optimization, and planted bugs.
//!
//! Bugs of the core are planted by the feature `planted`, with which nothing is released. Without a bug, such a build plays the same histories as
//! any other.

use std::path::Path;
use std::process::Command;

/// Tens of thousands of histories: 100 s of compiling save a quarter of an hour.
const OPTIMIZATION: &str = "2";

#[test]
fn promises_are_kept_and_every_planted_bug_is_noticed() {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("planted");
    let status = Command::new(env!("CARGO"))
        .args(["test", "--locked", "--no-fail-fast"])
        .args(["--features", "planted"])
        .args(["--test", "seeds", "--test", "planted", "--test", "checker"])
        .args([
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ])
        .arg("--target-dir")
        .arg(target)
        .args(["--", "--nocapture"])
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", OPTIMIZATION)
        .env("CARGO_PROFILE_TEST_OPT_LEVEL", OPTIMIZATION)
        .status()
        .unwrap();

    assert!(status.success());
}
