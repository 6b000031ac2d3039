//! What every connection out of a process goes by, whoever wrote the scene that wants it.

use std::sync::Arc;

use crate::secret::Secrets;
use crate::{egress, tls};

/// The rules of a process for connections to targets, shared by all of them.
#[derive(Clone, Debug, Default)]
pub struct Outbound {
    /// What is dialled.
    pub egress: Arc<egress::Config>,
    /// How TLS is spoken.
    pub tls: Arc<tls::Profiles>,
    /// What stands elsewhere than in a scene.
    pub secrets: Arc<Secrets>,
}
