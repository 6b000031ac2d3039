//! Kafka as retide uses it: its topics, its clients, and what a cluster has to be like.
//!
//! | module | what |
//! |---|---|
//! | [`topics`] | the catalogue of topics |
//! | [`cluster`] | which topics a cluster needs, what is wrong with those it has, and who may do what |
//! | [`client`] | what all clients share |
//! | [`failure`] | what errors mean |
//! | [`record`] | records to write, as the client takes them |
//! | [`producer`] | what producers are configured with, and waiting for them |
//! | [`publish`] | writing a few records, each acknowledged or with its error |
//! | [`scan`] | reading topics, from somewhere to their ends |
//! | [`ends`] | reading the last records of many topics at once |
//! | [`follow`] | following a topic of state for ever |
//! | [`offsets`] | where partitions begin and end |
//! | [`origins`] | fetching single records from where they stand |
//!
//! Not a worker: nothing here joins a group, commits an offset of one, or decides what becomes of a task. Invariant: no call waits without
//! a limit.

pub mod client;
pub mod cluster;
pub mod ends;
pub mod failure;
pub mod follow;
pub mod offsets;
pub mod origins;
pub mod producer;
pub mod publish;
pub mod record;
pub mod scan;
pub mod topics;
