//! What only a real broker can show.
//!
//! It runs on the cluster that `RETIDE_TEST_BOOTSTRAP` names, else on one that `docker/kafka/run` starts. Where neither can be had, each
//! test says so and does nothing, unless `RETIDE_REQUIRE_KAFKA=1` makes that a failure.

mod drive;
mod ledger;
mod ownership;
mod support;
