//! Short slices of the processor, for threads that have little to do and are not to wait for it.
//!
//! Since 6.12, Linux lets a thread that wakes and wants a short slice run before one that is in the middle of a longer one (EEVDF). That needs no
//! permission, and gives a thread no larger share: it may be interrupted as much sooner. Invariant: nothing else of how a thread is scheduled
//! is changed, and where the system has nothing of the kind, nothing is.

use std::io;

/// The shortest slice that Linux gives, in nanoseconds. By itself it gives 3 ms.
#[cfg(target_os = "linux")]
const SHORTEST: u64 = 100_000;

/// Asks for the shortest slices for the calling thread, and for those that it starts from now on.
///
/// # Errors
/// If the system refuses it or knows nothing of it. The thread goes on as it was.
#[cfg(target_os = "linux")]
pub fn shorten() -> io::Result<()> {
    let mut attributes = own()?;
    // Somebody has decided how the process is scheduled: in real time, in the background.
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    attributes.sched_runtime = SHORTEST;
    // SAFETY: the kernel reads as many bytes of the attributes as they say that they have, and keeps no pointer.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Asks for the shortest slices for the calling thread, and for those that it starts from now on.
///
/// # Errors
/// Always: the system knows nothing of it.
#[cfg(not(target_os = "linux"))]
pub fn shorten() -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// How the calling thread is scheduled.
#[cfg(target_os = "linux")]
fn own() -> io::Result<libc::sched_attr> {
    let size = size_of::<libc::sched_attr>() as u32;
    let mut attributes = libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel writes no more bytes than it is told there are, and keeps no pointer.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if result == 0 {
        Ok(attributes)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_gets_the_shortest_slices_and_others_keep_theirs() {
        let before = own().unwrap();
        let inner = thread::spawn(|| {
            shorten().unwrap();
            own().unwrap()
        });
        let inner = inner.join().unwrap();

        assert_eq!(own().unwrap().sched_runtime, before.sched_runtime);
        assert_eq!(inner.sched_policy, before.sched_policy);
        assert_eq!(inner.sched_nice, before.sched_nice);
        // Linux before 6.12 says nothing of slices, and keeps none.
        if before.sched_runtime > 0 && before.sched_policy == libc::SCHED_OTHER as u32 {
            assert_eq!(inner.sched_runtime, SHORTEST);
        }
    }
}
