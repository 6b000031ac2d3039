//! The first half hour of somebody who has only the docs: the page `first-steps.md` is run as it stands there, in an empty folder.
//!
//! What the commands print is `first_steps.txt`, with times, places and addresses masked; `RETIDE_BLESS=1` writes it anew.

use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use regex::Regex;

use crate::rig::Rig;
use crate::support::{PATIENCE, bootstrap};

/// What the page says.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/first-steps.md");

/// What its commands print.
const TRANSCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/process/first_steps.txt");

/// A block of the page.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    /// What it is, as the fence says.
    kind: String,
    /// What stands in it.
    text: String,
}

/// A command that goes on, in a terminal of its own; it ends with the test.
struct Terminal(Child);

impl Drop for Terminal {
    fn drop(&mut self) {
        // The shell and what it has started are one group.
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill")
            .args(["-TERM", "--", &group])
            .stderr(Stdio::null())
            .status();
        let _ = self.0.wait();
    }
}

/// The blocks of the page.
fn blocks() -> Vec<Block> {
    let page = fs::read_to_string(PAGE).unwrap();
    let mut blocks: Vec<Block> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        match line.strip_prefix("```") {
            Some(_) if inside => inside = false,
            Some(kind) => {
                inside = true;
                blocks.push(Block {
                    kind: kind.to_owned(),
                    text: String::new(),
                });
            }
            None if inside => writeln!(blocks.last_mut().unwrap().text, "{line}").unwrap(),
            None => {}
        }
    }
    blocks
}

/// A shell in the folder, as somebody has it whose `retide` is installed.
fn shell(rig: &Rig, script: &str) -> Command {
    let bin = Path::new(env!("CARGO_BIN_EXE_retide")).parent().unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("bash");
    command
        .args(["-e", "-c", script])
        .current_dir(rig.file("."))
        .env("PATH", format!("{}:{path}", bin.display()))
        // Beside other tests on the same broker.
        .env("RETIDE__TOPICS__PREFIX", &rig.prefix)
        .env("RETIDE__PROCESSOR__GROUP", &rig.prefix)
        .env_remove("RETIDE_LOG")
        .stdin(Stdio::null());
    command
}

/// Runs a command until it ends well, and gives what it prints.
fn patiently(rig: &Rig, script: &str, until: impl Fn(&str) -> bool) -> String {
    let start = Instant::now();
    loop {
        let output = shell(rig, script).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        if output.status.success() && until(&text) {
            return text;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(start.elapsed() < PATIENCE, "{script}\n{text}\n{said}");
        thread::park_timeout(Duration::from_millis(100));
    }
}

/// What is the same on each machine and in each run.
fn masked(rig: &Rig, port: u16, text: &str) -> String {
    let mut text = text
        .replace(&rig.prefix, "retry")
        .replace(&port.to_string(), "8000");
    for (what, mask) in [
        // Parts of lateness: which ones there are is a matter of microseconds.
        (r" · late by [^·\n]*?( ·|\n)", "$1"),
        (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
        (r"(?m)^\d\d:\d\d:\d\d\.\d{3}", "TIME"),
        (r"(retry\.[a-z0-9.-]+)/\d+/\d+", "$1/P/O"),
        (r"(?m)^( order-7 +retry\.tasks +)\d+ +\d+", "$1 P O"),
        (r"(?m) +$", ""),
        (r"(\S) {2,}", "$1  "),
    ] {
        text = Regex::new(what)
            .unwrap()
            .replace_all(&text, mask)
            .into_owned();
    }
    // Names of tiers look like durations.
    let durations = r"delay\.\w+|\+?\b\d+(h|ms|m|s)\b( \d+(h|ms|m|s)\b)*";
    let durations = Regex::new(durations).unwrap();
    let mask = |found: &regex::Captures<'_>| match &found[0] {
        tier if tier.starts_with("delay.") => tier.to_owned(),
        _ => "DURATION".to_owned(),
    };
    durations.replace_all(&text, mask).into_owned()
}

#[test]
fn the_first_steps_work_as_they_stand_there() {
    let rig = Rig::bare(bootstrap(), "");
    fs::remove_file(rig.file("retide.toml")).unwrap();
    let port = {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    let here = |text: &str| {
        text.replace("localhost:9092", &rig.bootstrap)
            .replace("localhost:8000", &format!("localhost:{port}"))
            .replace(
                "retide target",
                &format!("retide target --listen 127.0.0.1:{port}"),
            )
    };
    let (mut transcript, mut exports) = (String::new(), String::new());
    let mut terminals: Vec<(String, Terminal)> = Vec::new();
    let seen = rig.file("terminal-0");
    let target = || fs::read_to_string(&seen).unwrap_or_default();

    for Block { kind, text } in blocks() {
        match kind.as_str() {
            // Installs what is tested here.
            "" => {}
            "toml" => fs::write(rig.file("scenes.toml"), here(&text)).unwrap(),
            "sh background" => {
                let log = rig.file(&format!("terminal-{}", terminals.len()));
                let out = fs::File::create(&log).unwrap();
                let mut command = shell(&rig, &here(&text));
                std::os::unix::process::CommandExt::process_group(&mut command, 0);
                command.stdout(out.try_clone().unwrap()).stderr(out);
                terminals.push((text, Terminal(command.spawn().unwrap())));
            }
            "sh" => {
                for line in text.lines() {
                    writeln!(transcript, "$ {line}").unwrap();
                    let line = here(line);
                    if line.starts_with("export ") {
                        writeln!(exports, "{line}").unwrap();
                        continue;
                    }
                    let script = format!("{exports}{line}");
                    let printed = patiently(&rig, &script, |printed| match line.as_str() {
                        "retide explain order-7" => printed.contains("callback "),
                        "retide callbacks" => printed.contains("order-7"),
                        _ => true,
                    });
                    transcript.push_str(&printed);
                    transcript.push('\n');
                }
            }
            other => panic!("what is a block of {other}?"),
        }
    }

    assert_eq!(terminals.len(), 2, "the target and retide");
    let lines = target();
    let requests: Vec<&str> = lines.lines().filter(|line| line.contains("POST")).collect();
    assert_eq!(requests.len(), 3, "{lines}");
    write!(transcript, "$ {}{lines}", terminals[0].0).unwrap();
    let transcript = masked(&rig, port, &transcript);
    if std::env::var_os("RETIDE_BLESS").is_some() {
        fs::write(TRANSCRIPT, &transcript).unwrap();
    }
    let kept = fs::read_to_string(TRANSCRIPT).unwrap();
    assert_eq!(transcript, kept, "RETIDE_BLESS=1 writes {TRANSCRIPT} anew");
}
