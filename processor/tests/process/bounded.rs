//! Waiting for other processes, with a limit: one that hangs fails its test, and ends with it.

use std::io::{self, BufRead as _, BufReader, Read};
use std::net::TcpStream;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::PATIENCE;

/// Longest time of a command that ends by itself: Kafka's tools may have to be downloaded.
const COMMAND: Duration = Duration::from_mins(5);

/// A process that is killed when dropped.
pub(crate) struct Running(Child);

/// The lines that something writes, as they come.
pub(crate) struct Lines(Receiver<String>);

/// All that something writes, once it has ended.
struct Whole(Receiver<Vec<u8>>);

/// Runs a command to its end.
pub(crate) fn output(command: &mut Command) -> Output {
    try_output(command).unwrap()
}

/// Runs a command to its end, if it can be started.
pub(crate) fn try_output(command: &mut Command) -> io::Result<Output> {
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(Running::from(command.spawn()?).output())
}

/// A connection that gives up reading after a while.
pub(crate) fn connect(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

// === impl Running ===

impl Running {
    /// Waits for the end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            let pid = self.0.id();
            assert!(start.elapsed() < COMMAND, "process {pid} still runs");
            thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Waits for the end, and gives what was written to pipes.
    pub(crate) fn output(mut self) -> Output {
        drop(self.0.stdin.take());
        let stdout = self.0.stdout.take().map(Whole::of);
        let stderr = self.0.stderr.take().map(Whole::of);
        let status = self.wait();
        let whole = |whole: Option<Whole>| whole.map_or_else(Vec::new, Whole::wait);
        Output {
            status,
            stdout: whole(stdout),
            stderr: whole(stderr),
        }
    }

    /// The first line that it writes to its piped stdout, which is closed then.
    pub(crate) fn first_line(&mut self) -> String {
        let pipe = self.0.stdout.take().unwrap();
        let (sender, line) = channel();
        thread::spawn(move || {
            let mut line = String::new();
            let mut pipe = BufReader::new(pipe);
            let _ = pipe.read_line(&mut line);
            drop(pipe);
            let _ = sender.send(line);
        });
        line.recv_timeout(PATIENCE).expect("a line")
    }

    /// The lines that it writes to its piped stdout.
    pub(crate) fn lines(&mut self) -> Lines {
        Lines::of(self.0.stdout.take().unwrap())
    }
}

impl From<Child> for Running {
    fn from(child: Child) -> Self {
        Self(child)
    }
}

impl Deref for Running {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// === impl Lines ===

impl Lines {
    /// The lines of a pipe.
    pub(crate) fn of(pipe: impl Read + Send + 'static) -> Self {
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self(lines)
    }

    /// The next one; none if there are no more.
    pub(crate) fn next(&self) -> Option<String> {
        match self.0.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("never: another line"),
        }
    }
}

// === impl Whole ===

impl Whole {
    /// All of a pipe.
    fn of(mut pipe: impl Read + Send + 'static) -> Self {
        let (sender, whole) = channel();
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            let _ = sender.send(bytes);
        });
        Self(whole)
    }

    /// Waits for the end of it: others may hold the pipe as well.
    fn wait(self) -> Vec<u8> {
        let whole = self.0.recv_timeout(PATIENCE);
        whole.expect("an end of what a process that has ended writes")
    }
}

#[test]
fn a_process_that_writes_nothing_and_does_not_end_fails_its_test() {
    let mut command = Command::new("sleep");
    let mut sleeping = Running::from(command.arg("600").stdout(Stdio::piped()).spawn().unwrap());
    let pid = sleeping.id();
    let lines = sleeping.lines();

    assert!(lines.0.recv_timeout(Duration::from_millis(50)).is_err());
    drop(sleeping);

    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(lines.next(), None);
}
