//! What only a real broker can show.
//!
//! It runs on the cluster that `RETIDE_TEST_BOOTSTRAP` names, else on one that `docker/kafka/run` starts, else on the embedded broker, and
//! says so; `RETIDE_REQUIRE_KAFKA=1` makes that a failure.

mod asked;
mod cluster;
mod drive;
mod ledger;
mod ownership;
mod positions;
mod support;
