//! Where the time went, from due to seen by the target: what the metrics of a process say, and what is left.

use std::sync::Arc;

use serde::Serialize;

use retide_shell::metrics::Metrics;
use retide_shell::metrics::scenes::CAUSES;

use crate::bench::Error;
use crate::bench::remote::Remote;

/// What one cause had to do with it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cause {
    /// The cause, as in the metrics, and `connect`, from the start of a call to its target.
    pub cause: &'static str,
    /// On average over all attempts, in milliseconds.
    pub mean_ms: f64,
    /// 99 in 100 attempts lost at most so much by it, in milliseconds, as near as the metrics tell; not known of `connect`.
    pub p99_at_most_ms: Option<f64>,
}

/// A process and its target, looked at before and after.
pub(crate) struct Watch<'a> {
    /// The metrics of the process.
    metrics: &'a Arc<Metrics>,
    /// The target.
    target: &'a Remote,
    /// What they said before.
    before: Look,
}

/// What a process and its target say.
struct Look {
    /// What was lost by each cause, in the order of [`CAUSES`].
    lost: [Lost; CAUSES.len()],
    /// Requests at the target.
    requests: u64,
    /// How late they were together, in microseconds.
    late_micros: u64,
}

/// What the metrics say of one cause.
#[derive(Clone, Debug, Default, PartialEq)]
struct Lost {
    /// Seconds, over all attempts.
    sum: f64,
    /// Attempts.
    count: u64,
    /// How many attempts lost at most so many seconds, in rising order.
    buckets: Vec<(f64, u64)>,
}

/// The name of the metric.
const NAME: &str = "retide_lateness_by_cause_seconds_";

// === impl Watch ===

impl<'a> Watch<'a> {
    /// Looks for the first time.
    pub(crate) fn start(metrics: &'a Arc<Metrics>, target: &'a Remote) -> Result<Self, Error> {
        Ok(Self {
            metrics,
            target,
            before: Look::at(metrics, target)?,
        })
    }

    /// Looks again: what took how long since.
    pub(crate) fn causes(&self) -> Result<Vec<Cause>, Error> {
        let (before, now) = (&self.before, Look::at(self.metrics, self.target)?);
        let mut causes = Vec::new();
        let mut known = 0.0;
        for ((cause, now), before) in CAUSES.iter().zip(&now.lost).zip(&before.lost) {
            let lost = now.since(before);
            known += lost.mean_ms();
            causes.push(Cause {
                cause,
                mean_ms: lost.mean_ms(),
                p99_at_most_ms: lost.quantile_ms(0.99),
            });
        }
        let requests = (now.requests - before.requests).max(1) as f64;
        let late_ms = (now.late_micros - before.late_micros) as f64 / 1e3 / requests;
        causes.push(Cause {
            cause: "connect",
            // Those on their way at either look are counted on one side only.
            mean_ms: (late_ms - known).max(0.0),
            p99_at_most_ms: None,
        });
        Ok(causes)
    }
}

// === impl Look ===

impl Look {
    /// Looks at both.
    fn at(metrics: &Metrics, target: &Remote) -> Result<Self, Error> {
        let text = metrics.encode();
        let lost = CAUSES.map(|cause| Lost::read(&text, cause));
        let arrivals = target.arrivals()?;
        Ok(Self {
            lost,
            requests: arrivals.requests,
            late_micros: arrivals.late_micros,
        })
    }
}

// === impl Lost ===

impl Lost {
    /// What the metrics of a process say of `cause`.
    fn read(text: &str, cause: &str) -> Self {
        let label = format!("cause=\"{cause}\"");
        let mut lost = Self::default();
        for line in text.lines().filter_map(|line| line.strip_prefix(NAME)) {
            let (Some((name, _)), Some((_, value))) = (line.split_once('{'), line.rsplit_once(' '))
            else {
                continue;
            };
            if !line.contains(&label) {
                continue;
            }
            match name {
                "sum" => lost.sum = value.parse().unwrap_or_default(),
                "count" => lost.count = value.parse().unwrap_or_default(),
                _ => {
                    let bound = line.split_once("le=\"").map(|(_, rest)| rest);
                    let bound = bound.and_then(|rest| rest.split_once('"'));
                    let bound = bound.and_then(|(bound, _)| bound.parse().ok());
                    let bound = bound.unwrap_or(f64::INFINITY);
                    let count = value.parse().unwrap_or_default();
                    lost.buckets.push((bound, count));
                }
            }
        }
        lost
    }

    /// What was lost since `before`.
    fn since(&self, before: &Self) -> Self {
        let counts = before.buckets.iter().map(|(_, count)| *count);
        let buckets = self.buckets.iter().zip(counts);
        Self {
            sum: self.sum - before.sum,
            count: self.count - before.count,
            buckets: buckets
                .map(|((bound, count), before)| (*bound, count - before))
                .collect(),
        }
    }

    /// On average, in milliseconds.
    fn mean_ms(&self) -> f64 {
        self.sum * 1e3 / self.count.max(1) as f64
    }

    /// What this part of the attempts lost at most, in milliseconds, if the buckets tell.
    fn quantile_ms(&self, quantile: f64) -> Option<f64> {
        let wanted = self.count as f64 * quantile;
        let bucket = self
            .buckets
            .iter()
            .find(|(_, count)| *count as f64 >= wanted);
        bucket
            .map(|(bound, _)| bound * 1e3)
            .filter(|bound| bound.is_finite() && self.count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    use retide_core::wait::Waited;
    use retide_core::{Ladder, Scenes, Wait};

    #[test]
    fn what_was_lost_is_read_from_the_metrics() {
        let metrics = Metrics::new(&Ladder::default());
        let set = metrics.put_in_force(&Scenes::default());
        let late = |millis: u64| Wait {
            waited: Waited {
                rate: millis * 1_000,
                ..Waited::default()
            },
            ..Wait::default()
        };
        set.of("any").started(late(500), Duration::ZERO);
        let before = Lost::read(&metrics.encode(), "rate");
        for millis in [4, 6] {
            set.of("any").started(late(millis), Duration::ZERO);
        }

        let lost = Lost::read(&metrics.encode(), "rate").since(&before);
        let other = Lost::read(&metrics.encode(), "read");

        assert_eq!(lost.count, 2);
        assert!((lost.mean_ms() - 5.0).abs() < 1e-6, "{lost:?}");
        assert_eq!(lost.quantile_ms(0.5), Some(5.0));
        assert_eq!(lost.quantile_ms(0.99), Some(7.5));
        assert_eq!((other.count, other.mean_ms()), (3, 0.0));
        assert_eq!(other.quantile_ms(0.99), Some(0.5));
    }
}
