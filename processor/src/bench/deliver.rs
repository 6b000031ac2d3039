//! Attempts that are records on a topic of the same cluster: part of the transaction that commits the offset. Beside a plain
//! transactional copy of the same tasks.

use serde::Serialize;

use retide_config::Config;

use crate::bench::dispatch::Tasks;
use crate::bench::{Error, Speed, Testbed, copy};

/// What was measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Deliver {
    /// Tasks.
    pub tasks: u64,
    /// Bytes of each payload.
    pub bytes: usize,
    /// Tasks delivered a second, by retide.
    pub retide: Speed,
    /// The plain transactional copy.
    pub transactional_copy: Speed,
    /// `retide` by `transactional_copy`.
    pub ratio: f64,
}

/// Measures deliveries to a topic on the cluster that `config` names; `say` is told what is going on.
///
/// # Errors
/// If a client fails, nothing moves for a minute, or what comes out is not what went in.
pub fn deliver(
    config: &Config,
    tasks: u64,
    bytes: usize,
    say: impl Fn(&str),
) -> Result<Deliver, Error> {
    let mut bed = Testbed::make(config)?;
    let target = bed.add("target");
    let measured = target.and_then(|target| measure(&bed, &target, (tasks, bytes), say));
    bed.remove();
    measured
}

/// Measures on topics that are there.
fn measure(
    bed: &Testbed,
    target: &str,
    (count, bytes): (u64, usize),
    say: impl Fn(&str),
) -> Result<Deliver, Error> {
    say(&format!("producing {count} tasks"));
    Tasks::new(bed, bytes)?.send_all(count)?;
    say("copying them in plain transactions");
    let copy = copy::transactional(bed, &bed.topics.tasks, count)?.speed(count);
    say("delivering them");
    let text = format!("scenes.bench.target = {{ kafka = {{ topic = '{target}' }} }}");
    let process = bed.run(text)?;
    let samples = bed.follow(&bed.topics.tasks, count);
    process.stop()?;
    let retide = samples?.speed(count);
    say("counting");
    for (what, topic) in [
        ("delivered tasks", target),
        ("callbacks", &*bed.topics.callbacks),
    ] {
        let found = bed.count(topic)?;
        if found != count {
            return Err(Error::Count {
                what,
                found,
                expected: count,
            });
        }
    }
    Ok(Deliver {
        tasks: count,
        bytes,
        retide,
        transactional_copy: copy,
        ratio: retide.per_second / copy.per_second,
    })
}
