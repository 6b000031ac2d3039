//! The wall clock. Nobody else reads it (`.clippy.toml` sees to that): who decides is told the time, and who acts asks here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use retide_core::Timestamp;

/// The time.
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// The time since the epoch; none where the clock stands before it.
pub fn since_epoch() -> Duration {
    now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The time, as tasks have it.
pub fn timestamp() -> Timestamp {
    Timestamp::EPOCH + since_epoch()
}
