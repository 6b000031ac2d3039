//! `retide bench storm`.

use std::time::Duration;

use clap::Args;

use crate::bench::{self, Scenario};
use crate::cli::bench::late;

/// What `storm` takes.
#[derive(Debug, Args)]
pub(in crate::cli) struct Options {
    /// New tasks a second of the healthy scene, and of the one that is rejected
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    rate: u64,
    /// Seconds without the storm, and then in it
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Tasks of the flooded scene, all due when the storm begins
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    flood: u64,
    /// Measure on a broker in this process
    #[arg(long)]
    pub(super) embedded: bool,
}

// === impl Options ===

impl Options {
    /// What is to be measured.
    pub(super) const fn scenario(&self) -> Scenario {
        Scenario {
            rate: self.rate,
            time: Duration::from_secs(self.seconds),
            flood: self.flood,
        }
    }
}

/// The table of a measurement.
pub(super) fn table(measured: &bench::Storm) -> String {
    let bench::Storm {
        rate,
        calm,
        storm,
        p99_ratio,
        throughput_ratio,
        delivered,
        hung,
        rejected,
        flooded,
    } = measured;
    format!(
        "{rate} new tasks a second of a healthy scene, {delivered} delivered\n\
         {}\n{}\n\
         attempts of the others: {hung} without an answer, {rejected} rejected, {flooded} flooded\n\
         without the storm {:>9.1} /s   1.00\n\
         in the storm      {:>9.1} /s   {throughput_ratio:.2}      late by p99 {p99_ratio:.2} times as much",
        late("calm", &calm.lateness_ms),
        late("storm", &storm.lateness_ms),
        calm.per_second,
        storm.per_second,
    )
}
