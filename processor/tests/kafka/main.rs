//! What only a real broker can show.
//!
//! Needs one at `RETIDE_TEST_BOOTSTRAP`; without it, each test says so and does nothing, unless `RETIDE_REQUIRE_KAFKA=1` makes that a
//! failure.

mod ledger;
mod ownership;
mod support;
