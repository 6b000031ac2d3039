//! A Kafka broker in this process, for the demo and for quick tests: no Java, no Docker, nothing left behind.
//!
//! It is not a place to keep data and no proof of anything: all is in memory, there is one node and no replication, and what
//! retide claims is proved on real Kafka. The log, the groups and the transactions are noida-db's; what stands in front of them
//! here is what its engine leaves to others: waiting for data, cutting batches, noticing the dead, and mistrusting the wire.
//!
//! | module | what |
//! |---|---|
//! | `wire` | frames and requests, checked before they are decoded |
//! | `front` | from a request to its response |
//! | `batches` | cutting and reading record batches |
//! | `watch` | who has been silent, and which transactions are overdue |
//! | `notify` | waking those that wait for data or for the end |
//!
//! Invariant: it listens on the loopback interface only, and nothing that a connection sends ends more than that connection,
//! but for bodies that are made up on purpose: see [`Broker`].

mod batches;
mod front;
mod notify;
#[cfg(test)]
mod tests;
mod watch;
mod wire;

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle, sleep};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use front::Front;

/// Most connections at a time: a demo has a few dozen, and each of them is a thread.
const CONNECTION_LIMIT: usize = 256;
/// How often silence is looked for: well below the shortest session, which is six seconds.
const TICK: Duration = Duration::from_millis(250);
/// Ticks between two runs of the log cleaner, which makes one second: a demo shows compaction and retention as they happen.
const TICKS_PER_CLEANING: u32 = 4;
/// Pause after a failed accept: without it, a process out of file descriptors would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Longest wait for connections to end; those that wait in the engine look up every 20 ms.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Time between two looks at the connections that have not ended yet.
const STOP_STEP: Duration = Duration::from_millis(5);
/// Longest wait for the own listener when it is woken to see the end; on loopback it takes microseconds.
const WAKE_PATIENCE: Duration = Duration::from_secs(1);

/// A running broker on a random port of the loopback interface; dropping it stops it.
///
/// Do not let others at it: a frame is checked for its length and its header, but a body that is made up on purpose can still
/// ask the decoder for more memory than there is.
#[derive(Debug)]
pub struct Broker {
    /// Where the listener is.
    address: SocketAddr,
    /// The same, as clients want it.
    bootstrap: String,
    /// What answers the requests, shared with every thread.
    front: Arc<Front>,
    /// The accepting and the watching thread, until they are told to end.
    threads: Vec<JoinHandle<()>>,
}

/// One client's connection, as the accepting thread knows it.
struct Connection {
    /// A second handle of the socket, to close it from outside.
    stream: TcpStream,
    /// The thread that serves it.
    thread: JoinHandle<()>,
}

/// Closes a connection for good when its thread ends, however it ends: the accepting thread still holds a handle.
struct Closing(TcpStream);

// === impl Broker ===

impl Broker {
    /// Starts an empty broker. It serves as soon as this returns.
    pub fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        // Built before its threads: if one cannot be had, dropping the broker ends the other.
        let mut broker = Self {
            address,
            bootstrap: address.to_string(),
            front: Arc::new(Front::new(address)),
            threads: Vec::new(),
        };

        let front = Arc::clone(&broker.front);
        let watching = named("embedded-watch").spawn(move || watch_over(&front))?;
        broker.threads.push(watching);
        let front = Arc::clone(&broker.front);
        let accepting = named("embedded-accept").spawn(move || accept(listener, &front))?;
        broker.threads.push(accepting);
        Ok(broker)
    }

    /// The address to give to clients as `bootstrap.servers`: `127.0.0.1:PORT`.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Closes the listener and every connection and waits for their threads, a few seconds at most. All data is gone.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.front.notify().stop();
        // The listener sees the end when it is next woken. If it cannot be reached, it has most likely ended already.
        if let Err(error) = TcpStream::connect_timeout(&self.address, WAKE_PATIENCE) {
            debug!(%error, "embedded broker does not reach its listener");
        }
        let deadline = Instant::now() + STOP_PATIENCE + WAKE_PATIENCE;
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && Instant::now() < deadline {
                sleep(STOP_STEP);
            }
            if !thread.is_finished() {
                warn!("embedded broker leaves a thread behind");
            } else if thread.join().is_err() {
                warn!("a thread of the embedded broker panicked");
            }
        }
    }
}

// === impl Connection ===

impl Connection {
    /// Serves `stream` on a thread of its own.
    fn spawn(stream: TcpStream, front: &Arc<Front>) -> io::Result<Self> {
        let served = Closing(stream.try_clone()?);
        let front = Arc::clone(front);
        let thread = named("embedded-client").spawn(move || {
            if let Err(error) = serve(&served.0, &front) {
                debug!(%error, "embedded broker closes a connection");
            }
        })?;
        Ok(Self { stream, thread })
    }
}

// === impl Closing ===

impl Drop for Closing {
    fn drop(&mut self) {
        // An error means that it is closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

fn named(name: &str) -> Builder {
    Builder::new().name(name.to_owned())
}

/// Serves connections until the end, then ends them.
fn accept(listener: TcpListener, front: &Arc<Front>) {
    let mut connections: Vec<Connection> = Vec::new();
    for stream in listener.incoming() {
        if front.notify().is_stopped() {
            break;
        }
        connections.retain(|connection| !connection.thread.is_finished());
        if connections.len() >= CONNECTION_LIMIT {
            warn!(
                limit = CONNECTION_LIMIT,
                "embedded broker refuses a connection"
            );
            continue;
        }
        if let Err(error) = stream.and_then(|stream| {
            connections.push(Connection::spawn(stream, front)?);
            Ok(())
        }) {
            warn!(%error, "embedded broker cannot accept a connection");
            front.notify().stopped_within(ACCEPT_PAUSE);
        }
    }

    drop(listener);
    end(&connections, front);
}

/// Closes what is open and waits until nobody is served any more.
fn end(connections: &[Connection], front: &Front) {
    for connection in connections {
        // An error means that it is closed already.
        let _ = connection.stream.shutdown(Shutdown::Both);
    }

    let deadline = Instant::now() + STOP_PATIENCE;
    let serving = || {
        connections
            .iter()
            .filter(|c| !c.thread.is_finished())
            .count()
    };
    while serving() > 0 && Instant::now() < deadline {
        // A join waits in the engine for as long as its member exists. Again and again: one may just have been joining.
        front.evict_everyone();
        sleep(STOP_STEP);
    }
    let left = serving();
    if left > 0 {
        warn!(left, "embedded broker leaves connections behind");
    }
}

/// Answers one connection's requests, one at a time and in order, until it closes.
fn serve(stream: &TcpStream, front: &Front) -> Result<(), wire::Error> {
    stream.set_nodelay(true)?;
    let mut stream = stream;
    while let Some(frame) = wire::read_frame(&mut stream)? {
        let request = wire::Request::parse(frame, front.versions())?;
        if let Some(response) = front.answer(&request)? {
            wire::write_frame(&mut stream, &response)?;
        }
    }
    Ok(())
}

/// Does what a broker does on its own: evicting, timing out, cleaning.
fn watch_over(front: &Front) {
    let mut ticks = 0_u32;
    while !front.notify().stopped_within(TICK) {
        front.reap(Instant::now());
        ticks = ticks.wrapping_add(1);
        if ticks.is_multiple_of(TICKS_PER_CLEANING) {
            front.clean();
        }
    }
}
