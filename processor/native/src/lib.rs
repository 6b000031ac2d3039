//! The few calls of librdkafka that the rdkafka crate lacks, and one of Linux, each behind a safe function.
//!
//! The only crate with `unsafe`. Nothing is decided here. Invariant: what is handed out lives no longer than the message or client it
//! belongs to, and no call waits longer than it was told to.
//!
//! | file | what |
//! |---|---|
//! | [`admin`] | what may be done with topics, their settings, and creating them with the broker's words where it refuses; what a group has committed |
//! | [`brokers`] | the brokers that a client knows, and to give it some |
//! | [`headers`] | header names and values as bytes, read and written; headers that cannot be read are no empty list |
//! | [`membership`] | the place of a consumer in its group |
//! | [`positions`] | whether a consumer has no position in partitions |
//! | `request` | what all admin requests have in common |
//! | [`mod@slice`] | how soon a thread that wakes gets the processor, on Linux |
//! | [`topics`] | the ids of topics, and of the cluster |

pub mod admin;
pub mod brokers;
pub mod headers;
pub mod membership;
pub mod positions;
mod request;
pub mod slice;
pub mod topics;
