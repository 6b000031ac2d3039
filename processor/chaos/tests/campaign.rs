//! A small campaign, as anyone's tests run it; `processor/chaos/run` runs larger ones.

mod support;

use std::process::Command;

use tempfile::TempDir;

#[test]
fn every_promise_is_kept_while_processes_die_and_replies_are_lost() {
    if support::jars().is_none() {
        return;
    }
    let root = TempDir::new().unwrap();
    let dir = root.path().join("campaign");

    let status = Command::new(env!("CARGO_BIN_EXE_retide-chaos"))
        .args(["--seed", "3", "--tasks", "2000", "--processes", "3"])
        .args(["--kills", "2", "--zombies", "1", "--lost-replies", "2"])
        .arg("--dir")
        .arg(&dir)
        .status()
        .unwrap();

    if !status.success() {
        // What is needed to find out why.
        eprintln!("kept: {}", root.keep().display());
    }
    assert!(status.success(), "{status}");
}
