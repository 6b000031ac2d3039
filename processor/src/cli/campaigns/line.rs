//! A campaign, for people and programs.
//!
//! Invariant: what programs get is the record as it stands on the commands topic.

use serde::{Serialize, Serializer};

use retide_avro::control::campaign;
use retide_core::campaign::{Campaign, Ineligible, State};
use retide_history::timeline::clock;

use crate::cli::output::{Failed, Output, Row, document, put};
use crate::cli::terminal;

/// A campaign.
pub(super) struct Line<'a>(&'a Campaign);

/// How many characters the names of rows have.
const NAMES: usize = 15;

// === impl Line ===

impl<'a> Line<'a> {
    /// A campaign as it is.
    pub(super) const fn of(campaign: &'a Campaign) -> Self {
        Self(campaign)
    }
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        campaign::value(self.0).serialize(serializer)
    }
}

impl Row for Line<'_> {
    const HEADINGS: &'static [&'static str] = &[
        "campaign",
        "state",
        "replayed",
        "out",
        "delivered",
        "dead again",
        "not replayed",
        "pace",
        "started",
        "by",
    ];

    fn cells(&self) -> Vec<String> {
        let Campaign {
            id,
            by,
            state,
            counts,
            ..
        } = self.0;
        vec![
            id.name.to_string(),
            state.word().to_owned(),
            counts.replayed.to_string(),
            self.0.out().to_string(),
            counts.said.delivered.to_string(),
            counts.said.dead.to_string(),
            counts.ineligible.iter().sum::<u64>().to_string(),
            pace(self.0),
            clock(id.place.at),
            by.to_string(),
        ]
    }
}

/// How fast a campaign takes letters now.
fn pace(campaign: &Campaign) -> String {
    let ramp = campaign.spec.ramp.pace(campaign.step);
    let rate = campaign.spec.rate.map(std::num::NonZeroU32::get);
    match (campaign.state, ramp, rate) {
        (State::Paused | State::Stopped | State::Aborted | State::Done, _, _) => "-".to_owned(),
        (State::Running, Some(ramp), Some(rate)) => format!("{}/s", ramp.min(rate)),
        (State::Running, Some(pace), None) | (State::Running, None, Some(pace)) => {
            format!("{pace}/s")
        }
        (State::Running, None, None) => "no limit".to_owned(),
    }
}

/// How a campaign is, in a line.
pub(super) fn words(campaign: &Campaign) -> String {
    let counts = &campaign.counts;
    let said = &counts.said;
    let mut words = vec![match campaign.state {
        State::Running => format!("running at {}", pace(campaign)),
        State::Paused | State::Stopped | State::Aborted | State::Done => {
            campaign.state.word().to_owned()
        }
    }];
    words.push(format!("{} replayed", counts.replayed));
    for (count, what) in [
        (campaign.out(), "out"),
        (said.delivered, "delivered"),
        (said.dead, "dead again"),
        (said.expired, "expired again"),
        (said.cancelled, "cancelled"),
    ] {
        if count > 0 {
            words.push(format!("{count} {what}"));
        }
    }
    if said.came_back > 0 {
        words.push(format!(
            "{} of {} attempts failed",
            said.failed, said.came_back
        ));
    }
    words.join(", ")
}

/// Prints all that is known of a campaign.
pub(super) fn print_whole(campaign: &Campaign, output: Output) -> Result<(), Failed> {
    if output != Output::Table {
        return document(&Line::of(campaign), output);
    }
    let rows = rows(campaign).into_iter();
    let rows = rows.map(|(name, value)| format!("{name:<NAMES$}{}", terminal::line(&value)));
    put(&rows.collect::<Vec<_>>().join("\n"))
}

/// The rows of it.
fn rows(campaign: &Campaign) -> Vec<(&'static str, String)> {
    let Campaign {
        id,
        spec,
        by,
        reason,
        state: _,
        parts,
        counts,
        step: _,
        counted_to: _,
        at,
        log,
    } = campaign;
    let mut rows = vec![
        ("campaign", id.name.to_string()),
        ("state", words(campaign)),
        ("started", clock(id.place.at)),
        ("as of", clock(*at)),
    ];
    for (name, text) in [("by", by), ("reason", reason)] {
        if !text.is_empty() {
            rows.push((name, text.to_string()));
        }
    }
    rows.push(("what", campaign::spec_value(spec).to_string()));
    for why in Ineligible::ALL {
        let count = counts.ineligible[why.index()];
        if count > 0 {
            rows.push(("not replayed", format!("{count} {}", why.word())));
        }
    }
    for (count, what) in [
        (counts.late, "that arrived after the start"),
        (counts.unread, "records that are no dead letters"),
    ] {
        if count > 0 {
            rows.push(("left alone", format!("{count} {what}")));
        }
    }
    let left: i64 = parts.iter().map(|part| (part.to - part.next).max(0)).sum();
    if left > 0 && !campaign.is_over() {
        rows.push(("to be read", format!("{left} offsets of dead letters")));
    }
    rows.extend(log.iter().map(|line| {
        let text = format!("{} {}", clock(line.at), line.text);
        ("log", text)
    }));
    rows
}
