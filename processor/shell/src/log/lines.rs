//! What a line of the log looks like: for people, or as one JSON object.
//!
//! Every line of a process names its host, its process and the thread that wrote it, which begins with the worker's name. Invariant: a
//! line in JSON is one valid object, whatever its fields hold.

use std::fmt;
use std::process;
use std::sync::Arc;
use std::thread;

use serde::Serialize;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{self, Full, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::Format;
use super::repeats::{Repeats, Telling};

/// Whose lines they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaker {
    /// A command: whoever typed it reads them.
    Command,
    /// A process: each line names it and the thread, since lines of many end up in one place.
    Process,
}

/// How lines are written, and whether.
pub(crate) struct Lines {
    /// How.
    format: Format,
    /// Lines for people.
    text: format::Format<Full, Stamp>,
    /// Who writes.
    stamp: Stamp,
    /// What was said before.
    repeats: Arc<Repeats>,
}

/// Which process writes.
#[derive(Clone)]
struct Stamp {
    /// The name of its machine, as other machines know it.
    host: Arc<str>,
    /// Its number there.
    pid: u32,
    /// Whether lines for people say so.
    speaker: Speaker,
}

/// A line in JSON.
#[derive(Serialize)]
struct JsonLine<'a> {
    /// When it was written.
    timestamp: String,
    /// How bad it is.
    level: &'a str,
    /// What happened, as `message`, and to whom.
    fields: Map<String, Value>,
    /// The part of the program that says so.
    target: &'a str,
    /// The machine.
    host: &'a str,
    /// The process.
    pid: u32,
    /// The thread.
    thread: &'a str,
    /// The worker whose thread it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<&'a str>,
    /// How many lines that said the same were left out before this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    repeated: Option<u64>,
}

/// Collects the fields of a line.
struct Fields(Map<String, Value>);

// === impl Lines ===

impl Lines {
    /// Lines in this form.
    pub(crate) fn new(format: Format, speaker: Speaker, repeats: Arc<Repeats>) -> Self {
        let stamp = Stamp {
            host: host().into(),
            pid: process::id(),
            speaker,
        };
        Self {
            format,
            text: format::format()
                .with_timer(stamp.clone())
                .with_thread_names(speaker == Speaker::Process),
            stamp,
            repeats,
        }
    }

    /// A line in JSON.
    fn json(&self, event: &Event<'_>, before: u64) -> Result<String, fmt::Error> {
        let metadata = event.metadata();
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        let thread = thread::current();
        let thread = thread.name().unwrap_or_default();
        let line = JsonLine {
            timestamp,
            level: metadata.level().as_str(),
            fields: fields.0,
            target: metadata.target(),
            host: &self.stamp.host,
            pid: self.stamp.pid,
            thread,
            worker: worker(thread),
            repeated: (before > 0).then_some(before),
        };
        serde_json::to_string(&line).map_err(|_| fmt::Error)
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let before = match self.repeats.tell(event) {
            Telling::Written(before) => before,
            Telling::LeftOut => return Ok(()),
        };
        match self.format {
            Format::Text if before == 0 => self.text.format_event(context, writer, event),
            Format::Text => {
                let mut line = String::new();
                self.text
                    .format_event(context, Writer::new(&mut line), event)?;
                writeln!(writer, "{} repeated={before}", line.trim_end())
            }
            Format::Json => writeln!(writer, "{}", self.json(event, before)?),
        }
    }
}

// === impl Stamp ===

impl FormatTime for Stamp {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        SystemTime.format_time(writer)?;
        match self.speaker {
            Speaker::Command => Ok(()),
            Speaker::Process => write!(writer, " {}[{}]", self.host, self.pid),
        }
    }
}

// === impl Fields ===

impl Visit for Fields {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        // Shards are a list, which a field cannot be.
        let list = text.starts_with('[').then(|| serde_json::from_str(&text));
        let list: Option<Vec<i64>> = list.and_then(Result::ok);
        let value = list.map_or_else(|| Value::String(text), Value::from);
        self.0.insert(field.name().to_owned(), value);
    }
}

/// The worker whose thread this is.
fn worker(thread: &str) -> Option<&str> {
    let number = thread.strip_prefix("worker-")?;
    let end = number.find('-').unwrap_or(number.len());
    Some(&thread[..thread.len() - number.len() + end])
}

/// The name of this machine; a pod's is its pod's.
pub(crate) fn host() -> String {
    #[cfg(target_os = "linux")]
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    #[cfg(not(target_os = "linux"))]
    let name = std::env::var("HOSTNAME").unwrap_or_default();
    if name.is_empty() {
        "localhost".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::Mutex;

    use serde_json::json;
    use tracing::{info, warn};
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    /// A log in memory.
    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Memory {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    /// What `body` logs on a thread of this name, line by line.
    fn lines(format: Format, name: &str, body: impl FnOnce() + Send) -> Vec<String> {
        let memory = Memory::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(memory.clone())
            .with_ansi(false)
            .event_format(Lines::new(format, Speaker::Process, Arc::default()));
        let subscriber = subscriber.finish();
        thread::scope(|scope| {
            let logged = || tracing::subscriber::with_default(subscriber, body);
            let thread = thread::Builder::new().name(name.to_owned());
            let thread = thread.spawn_scoped(scope, logged).expect("a thread");
            thread.join().expect("no panic");
        });
        let bytes = memory.0.lock().expect("not poisoned").clone();
        let text = String::from_utf8(bytes).expect("text");
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_line_in_json_names_who_wrote_it_and_holds_lists_as_lists() {
        let lines = lines(Format::Json, "worker-7-feed", || {
            info!(shards = ?[0, 12], took = ?[1.5], text = "\"\n", "shards assigned");
        });

        let [line] = &*lines else {
            panic!("{lines:?}");
        };
        let line: Value = serde_json::from_str(line).expect("JSON");
        let fields = json!({
            "message": "shards assigned", "shards": [0, 12], "took": "[1.5]", "text": "\"\n",
        });
        assert_eq!(line["fields"], fields);
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["thread"], "worker-7-feed");
        assert_eq!(line["worker"], "worker-7");
        assert_eq!(line["pid"], process::id());
        assert_eq!(line["host"], host());
    }

    #[test]
    fn a_line_for_people_names_who_wrote_it() {
        let lines = lines(Format::Text, "worker-0", || info!(rules = 3, "changed"));

        let stamp = format!("{}[{}]", host(), process::id());
        let [line] = &*lines else {
            panic!("{lines:?}");
        };
        assert!(line.contains(&stamp), "{line}");
        assert!(line.contains("INFO worker-0 "), "{line}");
        assert!(line.ends_with("changed rules=3"), "{line}");
    }

    #[test]
    fn what_differs_by_numbers_only_is_the_same_from_a_library() {
        let lines = lines(Format::Text, "main", || {
            for number in 0..5 {
                warn!(target: "librdkafka", "after {number}0 ms in state CONNECT");
                warn!(number, "ours");
                warn!("ours, without a number");
            }
        });

        let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
        assert_eq!(count("after"), 1, "{lines:#?}");
        assert_eq!(count("ours number="), 5, "{lines:#?}");
        assert_eq!(count("without"), 1, "{lines:#?}");
    }

    #[test]
    fn a_thread_of_a_worker_names_it() {
        for (thread, of) in [
            ("worker-0", Some("worker-0")),
            ("worker-12-ledger-1", Some("worker-12")),
            ("scenes", None),
        ] {
            assert_eq!(worker(thread), of, "{thread}");
        }
    }
}
