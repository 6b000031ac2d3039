//! Where attempts go.

use std::sync::Arc;

use async_trait::async_trait;
use retide_core::{Outcome, Task};

/// Makes one attempt of a task. One of the four seams.
///
/// An implementation never panics on what the other side says, bounds its own time, and holds no state of a task.
#[async_trait]
pub trait Target: Send + Sync {
    /// Makes the attempt and says how it went.
    async fn attempt(&self, task: Arc<Task>) -> Outcome;
}
