//! The command: runs a campaign, then the checker, and exits with 1 if a promise was broken.

mod admin;
mod adversary;
mod broker;
mod campaign;
mod fleet;
mod generator;
mod holds;
mod ledger;
mod load;
mod options;
mod orders;
mod pace;
mod plan;
mod proxy;
mod replays;
mod target;
mod watch;

use std::process::ExitCode;

use clap::Parser;

use crate::campaign::Verdict;
use crate::options::Options;

/// Anything that ends a campaign before its verdict.
type Failed = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    match campaign::run(&Options::parse()).await {
        Ok(Verdict::Kept) => ExitCode::SUCCESS,
        Ok(Verdict::Broken) => ExitCode::from(1),
        Ok(Verdict::Interrupted) => ExitCode::from(130),
        Err(error) => {
            eprintln!("retide-chaos: {error}");
            ExitCode::from(2)
        }
    }
}
