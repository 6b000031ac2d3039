//! The README and the pages of the docs, as a stranger reads them: what they link to is there, their configurations are read by retide, the
//! commands that they show exist, and those marked as runnable do on a broker what the pages show.
//!
//! How blocks are marked, by the words behind their three backticks:
//!
//! | block | what is done with it |
//! |---|---|
//! | `toml` | read by `retide config show` |
//! | `toml file=NAME` | read, and put into the folder of the commands as `NAME` |
//! | `json` | parsed, each line or the whole |
//! | `sh` | its commands of retide have to exist, with their options |
//! | `sh run` | run, line by line; what it prints is compared with the block `text output` behind it, if there is one |
//! | `sh background` | run in a terminal of its own until the end |
//! | `text output of COMMAND` | compared with what that terminal shows |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use regex::Regex;
use tempfile::TempDir;

use retide_core::Reason;

use crate::bounded;
use crate::rig::Rig;
use crate::support::{PATIENCE, bootstrap, free_port};

/// The most lines of the README: what does not fit is a page.
const README_LINES: usize = 150;

/// The pages beside those of `processor/docs`.
const FRONT: [&str; 4] = [
    "README.md",
    "avro/README.md",
    "connectors/README.md",
    "docker/README.md",
];

/// The page whose commands those of all other pages go on from.
const FIRST: &str = "processor/docs/first-steps.md";

/// Commands that change something: they are run once, whatever they print.
const CHANGES: [&str; 4] = [
    "retide init",
    "retide scenes apply",
    "retide scenes delete",
    "retide submit",
];

/// A page.
struct Page {
    /// Its path from the root of the repository.
    path: String,
    /// What stands there.
    text: String,
}

/// A fenced block of a page.
struct Block {
    /// The page and the line of its fence.
    place: (String, usize),
    /// What it is, as the fence says.
    kind: String,
    /// What stands in it.
    text: String,
}

/// A folder and a prefix in which the commands of some pages are run, one after the other.
struct Session {
    rig: Rig,
    /// Where the target of the pages listens here.
    port: u16,
    /// The variables that the pages have set.
    exports: String,
    /// What goes on, by its command, and where it writes to.
    terminals: BTreeMap<String, (Terminal, PathBuf)>,
}

/// A command that goes on, in a terminal of its own; it ends with the session.
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

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The page at a path from the root.
fn page(path: &str) -> Page {
    let text =
        fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    Page {
        path: path.to_owned(),
        text,
    }
}

/// Whether a file is a page.
fn is_page(name: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|extension| extension == "md")
}

/// The README, those of the folders, and the pages of the docs.
fn pages() -> Vec<Page> {
    let docs = fs::read_dir(root().join("processor/docs")).unwrap();
    let names = docs.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut docs: Vec<String> = names
        .filter(|name| is_page(name))
        .map(|name| format!("processor/docs/{name}"))
        .collect();
    docs.sort();
    let front = FRONT.map(str::to_owned);
    front.iter().chain(&docs).map(|path| page(path)).collect()
}

/// Every Markdown file of the repository, from its root.
fn files() -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = folder.join(&name);
            let is_hidden = name.starts_with('.') && name != ".github";
            if entry.file_type().unwrap().is_dir() {
                if !is_hidden && name != "target" && name != "node_modules" {
                    folders.push(path);
                }
            } else if is_page(&name) {
                files.push(path.to_str().unwrap().to_owned());
            }
        }
    }
    files
}

// === impl Page ===

impl Page {
    /// Its blocks.
    fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut inside = false;
        for (index, line) in self.text.lines().enumerate() {
            match line.trim_start().strip_prefix("```") {
                Some(_) if inside => inside = false,
                Some(kind) => {
                    inside = true;
                    blocks.push(Block {
                        place: (self.path.clone(), index + 1),
                        kind: kind.to_owned(),
                        text: String::new(),
                    });
                }
                None if inside => writeln!(blocks.last_mut().unwrap().text, "{line}").unwrap(),
                None => {}
            }
        }
        assert!(!inside, "{}: the last block has no end", self.path);
        blocks
    }

    /// Its lines outside of blocks, with their numbers.
    fn prose(&self) -> Vec<(usize, &str)> {
        let mut inside = false;
        let lines = self.text.lines().enumerate().filter(move |(_, line)| {
            let is_fence = line.trim_start().starts_with("```");
            inside ^= is_fence;
            !inside && !is_fence
        });
        lines.map(|(index, line)| (index + 1, line)).collect()
    }

    /// Its headings, with their lines.
    fn headings(&self) -> Vec<(usize, &str)> {
        let lines = self.prose().into_iter();
        let headings = lines.filter(|(_, line)| line.starts_with('#'));
        headings
            .map(|(line, text)| (line, text.trim_start_matches('#').trim()))
            .collect()
    }
}

/// The anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let letters = heading.to_lowercase();
    let kept = letters
        .chars()
        .filter(|letter| letter.is_alphanumeric() || "-_ ".contains(*letter));
    kept.collect::<String>().replace(' ', "-")
}

#[test]
fn the_readme_is_short_and_leads_to_every_page() {
    let readme = page("README.md");

    let lines = readme.text.lines().count();
    assert!(lines <= README_LINES, "README.md has {lines} lines");
    for page in pages() {
        let is_linked = readme.text.contains(&format!("]({})", page.path));
        assert!(
            is_linked || page.path == readme.path,
            "README.md does not link to {}",
            page.path
        );
    }
}

#[test]
fn a_heading_stands_on_one_page_only() {
    let pages = pages();
    let mut seen = BTreeMap::new();
    let mut twice = Vec::new();
    for page in &pages {
        for (line, heading) in page.headings() {
            let place = format!("{}:{line}", page.path);
            if let Some(first) = seen.insert(anchor(heading), place.clone()) {
                twice.push(format!("{place}: {heading:?} stands at {first}, too"));
            }
        }
    }
    assert!(twice.is_empty(), "{}", twice.join("\n"));
}

#[test]
fn links_and_anchors_lead_somewhere() {
    let link = Regex::new(r"\]\(([^()\s]+)\)").unwrap();
    let code = Regex::new(r"`[^`]*`").unwrap();
    let mut wrong = Vec::new();
    for path in files() {
        let page = page(&path);
        for (line, text) in page.prose() {
            let text = code.replace_all(text, "");
            for found in link.captures_iter(&text) {
                let to = &found[1];
                if to.contains("://") || to.starts_with("mailto:") {
                    continue;
                }
                let (file, fragment) = to
                    .split_once('#')
                    .map_or((to, None), |(file, fragment)| (file, Some(fragment)));
                let folder = Path::new(&path).parent().unwrap();
                let target = if file.is_empty() {
                    PathBuf::from(&path)
                } else {
                    folder.join(file)
                };
                if !root().join(&target).exists() {
                    wrong.push(format!(
                        "{path}:{line}: {to}: there is no {}",
                        target.display()
                    ));
                    continue;
                }
                let Some(fragment) = fragment else { continue };
                let target = self::page(target.to_str().unwrap());
                let anchors: BTreeSet<String> = target
                    .headings()
                    .into_iter()
                    .map(|(_, heading)| anchor(heading))
                    .collect();
                if !anchors.contains(fragment) {
                    wrong.push(format!(
                        "{path}:{line}: {to}: no heading there has this anchor"
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_inner_loop_has_all_tests_of_the_engine() {
    let recipes = fs::read_to_string(root().join(".justfile")).unwrap();
    let files = fs::read_dir(root().join("processor/core/tests")).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    let tests = files.filter(|path| path.extension().is_some_and(|of| of == "rs"));
    let tests = tests.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned());
    let tests: Vec<String> = tests.collect();

    let missing = tests
        .iter()
        .filter(|test| !recipes.contains(&format!("--test {test} ")));

    assert!(tests.len() > 9, "{tests:?}");
    assert_eq!(missing.collect::<Vec<_>>(), <[&str; 0]>::default());

    // cargo takes a name for the tests of all crates that have it: none of those that need a broker, or long.
    let (_, recipe) = recipes.split_once("test-fast *filter:").unwrap();
    let (recipe, _) = recipe.split_once("\n\n").unwrap();
    let slow = ["processor/chaos", "processor/sim", "processor"];
    for test in recipe.split("--test ").skip(1) {
        let test = test.split_whitespace().next().unwrap();
        let forms = [format!("tests/{test}.rs"), format!("tests/{test}/main.rs")];
        let files = slow
            .iter()
            .flat_map(|of| forms.iter().map(move |form| root().join(of).join(form)));
        let files: Vec<_> = files.filter(|file| file.exists()).collect();
        assert!(files.is_empty(), "{test}: {files:?}");
    }
}

#[test]
fn every_reason_of_a_bad_end_is_listed_and_no_other() {
    let page = page("processor/docs/callbacks.md");
    let (_, table) = page.text.split_once("| reason | why").unwrap();
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));

    let listed: BTreeSet<&str> = rows.map(|row| row.split('`').nth(1).unwrap()).collect();

    assert_eq!(
        listed,
        Reason::ALL.iter().map(|reason| reason.word()).collect()
    );
}

#[test]
fn every_configuration_that_is_shown_is_one() {
    let folder = TempDir::new().unwrap();
    // The files that configurations name.
    fs::write(
        folder.path().join("shop-task.avsc"),
        r#"{"type": "record", "name": "RetryTask", "fields": []}"#,
    )
    .unwrap();
    let mut wrong = Vec::new();
    let mut read = 0;
    for block in pages().iter().flat_map(Page::blocks) {
        let (path, line) = &block.place;
        match block.kind.split(' ').next().unwrap() {
            "toml" => {
                // Under the name of the page and at the line where it stands, so that errors name both.
                let file = folder.path().join(path);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(&file, format!("{}{}", "\n".repeat(*line), block.text)).unwrap();
                let mut retide = Command::new(env!("CARGO_BIN_EXE_retide"));
                retide
                    .args(["config", "show", "--config", path])
                    .current_dir(folder.path())
                    .env("HOSTNAME", "host-1")
                    .stdout(Stdio::null());
                let output = bounded::output(&mut retide);
                if !output.status.success() {
                    let said = String::from_utf8_lossy(&output.stderr);
                    wrong.push(format!("{path}:{line}: {said}"));
                }
                read += 1;
            }
            "json" => {
                let text: &str = &block.text;
                let mut stream =
                    serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>();
                if let Some(error) = stream.find_map(Result::err) {
                    wrong.push(format!("{path}:{line}: {error}"));
                }
            }
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(read > 20, "only {read} blocks were found");
}

#[test]
fn every_command_that_is_shown_exists_with_its_options() {
    let folder = TempDir::new().unwrap();
    let bin = folder.path().join("bin");
    fs::create_dir(&bin).unwrap();
    // In place of retide: asks it for help behind all the options, of which it refuses those that there are not.
    let asks = format!(
        "#!/bin/sh\n{} \"$@\" --help >/dev/null || echo \"retide $*\" >>refused\n",
        env!("CARGO_BIN_EXE_retide")
    );
    let retide = bin.join("retide");
    fs::write(&retide, asks).unwrap();
    fs::set_permissions(&retide, fs::Permissions::from_mode(0o755)).unwrap();
    // Nothing else is run.
    let quiet = "command_not_found_handle() { while read -r _; do :; done </dev/null; }\n";
    let inline = Regex::new("`(retide [^`]*)`").unwrap();
    let placeholder = Regex::new(r"\b[A-Z][A-Z_]*\b(:PORT)?").unwrap();
    let mut wrong = Vec::new();
    for page in pages() {
        let mut scripts: Vec<(usize, String)> = Vec::new();
        for block in page.blocks() {
            let is_shell = block.kind.split(' ').next() == Some("sh");
            if is_shell && block.text.contains("retide ") {
                scripts.push((block.place.1, block.text));
            }
        }
        for (line, text) in page.prose() {
            for found in inline.captures_iter(text) {
                let command = found[1].to_owned();
                if !command.contains('…') && !command.contains('=') {
                    scripts.push((line, placeholder.replace_all(&command, "1").into_owned()));
                }
            }
        }
        for (line, script) in scripts {
            let refused = folder.path().join("refused");
            let _ = fs::remove_file(&refused);
            let mut shell = Command::new("/bin/bash");
            let shell = shell
                .args(["-c", &format!("{quiet}{script}")])
                .current_dir(folder.path())
                .env("PATH", &bin)
                .stdin(Stdio::null());
            let output = bounded::output(shell);
            if let Ok(refused) = fs::read_to_string(&refused) {
                let said = String::from_utf8_lossy(&output.stderr);
                wrong.push(format!("{}:{line}: {refused}{said}", page.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_commands_of_the_readme_work_as_they_stand_there() {
    let mut session = Session::new();

    session.run(&page("README.md"));

    assert_eq!(session.terminals.len(), 2, "the target and retide");
}

#[test]
fn the_commands_of_the_pages_do_what_is_shown() {
    let mut session = Session::new();

    session.run(&page(FIRST));
    for page in pages() {
        if page.path.starts_with("processor/") && page.path != FIRST {
            session.run(&page);
        }
    }

    assert_eq!(session.terminals.len(), 2, "the target and retide");
}

// === impl Session ===

impl Session {
    /// In an empty folder.
    fn new() -> Self {
        let rig = Rig::bare(bootstrap(), "");
        fs::remove_file(rig.file("retide.toml")).unwrap();
        let port = free_port();
        Self {
            rig,
            port,
            exports: String::new(),
            terminals: BTreeMap::new(),
        }
    }

    /// Does what a page says.
    fn run(&mut self, page: &Page) {
        let blocks = page.blocks();
        for (index, block) in blocks.iter().enumerate() {
            let Block { place, kind, text } = block;
            let next = blocks.get(index + 1);
            let shown = next.filter(|next| next.kind == "text output");
            let shown = shown.map(|next| self.masked(&next.text));
            let terminal = kind.strip_prefix("text output of ");
            match (kind.as_str(), terminal) {
                (_, Some(command)) => {
                    let shown = self.masked(text);
                    self.see(place, command, &shown);
                }
                ("sh run", _) => self.block(place, text, shown.as_deref()),
                ("sh background", _) => self.start(text),
                (kind, _) => {
                    if let Some(file) = kind.strip_prefix("toml file=") {
                        fs::write(self.rig.file(file), self.here(text)).unwrap();
                    }
                }
            }
        }
    }

    /// Runs the commands of a block, and compares what they print with what is shown.
    fn block(&mut self, (page, line): &(String, usize), text: &str, shown: Option<&str>) {
        let commands = text.replace("\\\n", " ");
        let mut commands = commands.lines().peekable();
        let mut printed = String::new();
        while let Some(command) = commands.next() {
            let here = self.here(command);
            if command.starts_with("export ") {
                writeln!(self.exports, "{here}").unwrap();
                continue;
            }
            let is_last = commands.peek().is_none();
            let changes = CHANGES.iter().any(|change| command.contains(change));
            let script = format!("{}{here}", self.exports);
            let expected = shown.filter(|_| is_last && !changes);
            let before = printed.clone();
            let place = format!("{page}:{line}");
            printed += &self.patiently(&place, &script, |said| {
                expected.is_none_or(|shown| self.masked(&format!("{before}{said}")) == shown)
            });
        }
        if let Some(shown) = shown {
            let masked = self.masked(&printed);
            assert!(
                masked == shown,
                "{page}:{line}: prints\n{printed}\nwhich is\n{masked}\nand not as shown\n{shown}"
            );
        }
    }

    /// Starts a command that goes on.
    fn start(&mut self, text: &str) {
        let number = self.terminals.len();
        let log = self.rig.file(&format!("terminal-{number}"));
        let out = fs::File::create(&log).unwrap();
        let mut command = self.shell(&self.here(text));
        command.process_group(0);
        command.stdout(out.try_clone().unwrap()).stderr(out);
        let terminal = Terminal(command.spawn().unwrap());
        let name = text.lines().last().unwrap().to_owned();
        self.terminals.insert(name, (terminal, log));
    }

    /// Waits until a terminal shows this.
    fn see(&self, (page, line): &(String, usize), command: &str, shown: &str) {
        let (_, log) = &self.terminals[command];
        let start = Instant::now();
        loop {
            let said = fs::read_to_string(log).unwrap();
            let masked = self.masked(&said);
            if masked == shown {
                return;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{page}:{line}: {command} shows\n{said}\nwhich is\n{masked}\nand not\n{shown}"
            );
            thread::park_timeout(Duration::from_millis(100));
        }
    }

    /// What a page says, with the addresses that there are here.
    fn here(&self, text: &str) -> String {
        let port = self.port;
        text.replace("localhost:9092", &self.rig.bootstrap)
            .replace("localhost:8000", &format!("localhost:{port}"))
            .replace(
                "retide target",
                &format!("retide target --listen 127.0.0.1:{port}"),
            )
    }

    /// A shell in the folder, as somebody has it whose `retide` is installed.
    fn shell(&self, script: &str) -> Command {
        let bin = Path::new(env!("CARGO_BIN_EXE_retide")).parent().unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("bash");
        command
            .args(["-e", "-c", script])
            .current_dir(self.rig.file("."))
            .env("PATH", format!("{}:{path}", bin.display()))
            // Beside other tests on the same broker.
            .env("RETIDE__TOPICS__PREFIX", &self.rig.prefix)
            .env("RETIDE__PROCESSOR__GROUP", self.group())
            .env_remove("RETIDE_LOG")
            .stdin(Stdio::null());
        command
    }

    /// What the group is called here.
    fn group(&self) -> String {
        format!("group-of-{}", self.rig.prefix)
    }

    /// Runs a command until it ends well and prints what it should, and gives that; after some patience, whatever it prints.
    fn patiently(&self, place: &str, script: &str, until: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let output = bounded::output(&mut self.shell(script));
            let text = String::from_utf8(output.stdout).unwrap();
            let is_over = start.elapsed() >= PATIENCE;
            if output.status.success() && (until(&text) || is_over) {
                return text;
            }
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!is_over, "{place}: {script}\n{text}\n{said}");
            thread::park_timeout(Duration::from_millis(100));
        }
    }

    /// What is the same on each machine, in each run and on the pages.
    fn masked(&self, text: &str) -> String {
        let mut text = text
            .replace(&self.group(), "retide")
            .replace(&self.rig.prefix, "retry")
            .replace(&self.rig.bootstrap, "localhost:9092")
            .replace(&format!("localhost:{}", self.port), "localhost:8000")
            .replace(&format!("127.0.0.1:{}", self.port), "127.0.0.1:8000");
        for (what, mask) in [
            // Parts of lateness: which ones there are is a matter of microseconds.
            (r" · late by [^·\n]*?( ·|\n)", "$1"),
            (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
            (r"(?m)^\d\d:\d\d:\d\d\.\d{3}", "TIME"),
            (r"(retry\.[a-z0-9.-]+)/\d+/\d+", "$1/P/O"),
            (r"(?m)^( order-\d +retry\.tasks +)\d+ +\d+", "$1 P O"),
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
}
