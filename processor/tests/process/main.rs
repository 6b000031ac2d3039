//! What only real processes on a real broker can show: `retide run`, killed, stopped and joined by others; and every command.
//!
//! The broker is found as in the tests of `kafka`. Few at a time, see `beside`: they start processes, and some judge times.

#![allow(
    unreachable_pub,
    reason = "the support is shared with the tests of `kafka`"
)]

mod access;
/// Tests that judge times, and take long. The harness goes by names: these are the first.
mod about_time {
    mod breaker;
    mod concurrency;
    mod rate;
    mod rebalance;
    mod soon;
}
mod bad_input;
mod beside;
mod beside_headers;
mod bounded;
mod breakers;
mod callbacks;
mod campaigns;
mod cohort;
mod commands;
mod control;
mod cooldown;
mod crash;
mod dead_letters;
mod docs;
mod doctor;
mod duplicates;
mod envelopes;
mod exhausted;
mod explain;
mod gaps;
mod group;
mod hold;
mod http;
mod lag;
mod offsets;
mod omitted;
mod ordering;
mod outbound;
mod pending;
mod places;
mod promises;
mod replay;
mod republish;
mod retarget;
mod retention;
mod rig;
mod scenes;
mod schemas;
mod secrets;
mod secured;
mod shop;
mod source_faults;
mod sources;
mod standing;
mod supervision;
#[path = "../kafka/support.rs"]
#[allow(dead_code, reason = "the tests of `kafka` use the rest")]
mod support;
mod suspects;
mod tasks;
mod time;
mod unwritable;
mod watch;
