//! Dead letters that lack their payloads: whether those are still there, where their tasks entered.
//!
//! What workers find there is what counts; this looks for a few, as they do. Invariant: no more than [`MOST`] records are fetched.

use serde::Serialize;

use retide_avro::{Arrival, Intake};
use retide_config::Config;
use retide_core::campaign::{Edit, Ineligible};
use retide_core::{Origin, with_causes};
use retide_kafka::client::client_config;
use retide_kafka::origins::{Fetched, Origins, is_denied};
use retide_shell::clock;

use crate::cli::output::say;
use crate::cli::reach::topics;

use super::find::{Found, NAME};

/// Looks for what dead letters lack.
pub(super) struct Lacking {
    /// Fetches it.
    origins: Origins,
    /// How records of the retry topic are read.
    intake: Intake,
    /// What was found.
    counts: Counts,
    /// Why it is not known of one whether it is there, if there is such a one: no other is looked for then.
    unknown: Option<String>,
}

/// How many dead letters lack what their replays need and workers fetch.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Counts {
    /// All of them.
    pub(super) count: u64,
    /// Those that were looked for.
    pub(super) looked: u64,
    /// Those of these whose payloads are there.
    pub(super) there: u64,
}

/// Whether a dead letter has what its replay needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whole {
    /// It has, maybe since it was fetched.
    Yes,
    /// It lacks it, and workers will fetch it if it is there.
    NotYet,
}

/// Most dead letters whose payloads are looked for: each takes some milliseconds, and may have megabytes.
const MOST: u64 = 5;

// === impl Lacking ===

impl Lacking {
    /// That of a cluster.
    pub(super) fn of(config: &Config) -> Self {
        let client = client_config(config.kafka.consumer());
        Self {
            origins: Origins::new(&client, NAME),
            intake: topics(config).intake,
            counts: Counts::default(),
            unknown: None,
        }
    }

    /// Puts what a dead letter lacks for a replay with this change into its record, if it is among the first. Fails if that cannot be
    /// found.
    pub(super) fn look(
        &mut self,
        found: &mut Found<'_>,
        edit: Option<&Edit>,
    ) -> Result<Whole, Ineligible> {
        if let Some(why) = found.letter.ineligible(edit) {
            return Err(why);
        }
        let Some(origin) = found.letter.fetched_from(edit) else {
            return Ok(Whole::Yes);
        };
        let origin = origin.clone();
        self.counts.count += 1;
        if self.counts.looked >= MOST || self.unknown.is_some() {
            return Ok(Whole::NotYet);
        }
        match self.fetch(found, &origin) {
            Ok(why) => {
                self.counts.looked += 1;
                self.counts.there += u64::from(why.is_none());
                why.map_or(Ok(Whole::Yes), Err)
            }
            Err(why) => {
                self.unknown = Some(format!("{origin}: {why}"));
                Ok(Whole::NotYet)
            }
        }
    }

    /// How many there were, if there were any.
    pub(super) fn counts(&self) -> Option<Counts> {
        (self.counts.count > 0).then_some(self.counts)
    }

    /// Says it.
    pub(super) fn tell(&self) {
        let Counts {
            count,
            looked,
            there,
        } = self.counts;
        if count == 0 {
            return;
        }
        let mut text = format!(
            "note: {count} of the dead letters lack their payloads, which workers fetch from where the tasks entered; {looked} were looked for, and {there} are there"
        );
        if let Some(why) = &self.unknown {
            text.push_str(". It is not known of ");
            text.push_str(why);
        }
        say(&text);
    }

    /// Fetches what a dead letter lacks. Tells what keeps it from being replayed, if something does; fails if nobody knows.
    fn fetch(
        &mut self,
        found: &mut Found<'_>,
        origin: &Origin,
    ) -> Result<Option<Ineligible>, String> {
        let (record, stamped) = match self.origins.fetch(origin, || false) {
            Ok(Fetched::Record { record, stamped }) => (record, stamped),
            Ok(Fetched::Headless | Fetched::Gone(_)) => return Ok(Some(Ineligible::OriginGone)),
            // Workers are others than whoever asks here.
            Err(error) if is_denied(&error) => {
                return Err(format!("you may not read {}", origin.topic));
            }
            Err(error) => return Err(with_causes(&error)),
        };
        if self.intake.asks(&record).is_some() {
            return Err(
                "the schema registry has to be asked what it is, and only workers do that"
                    .to_owned(),
            );
        }
        let arrival = Arrival::new(origin.clone(), stamped, clock::timestamp());
        let Found {
            letter, record: of, ..
        } = found;
        let is_its = letter.restore(of, (record, arrival), &self.intake);
        Ok((!is_its).then_some(Ineligible::OriginGone))
    }
}
