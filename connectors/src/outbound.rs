//! The rules of a process for every connection out of it, whoever wrote the scene that wants it.

use std::sync::Arc;

use crate::secret::Secrets;
use crate::{egress, tls};

/// The rules of a process for connections to targets, shared by all of them.
#[derive(Clone, Debug, Default)]
pub struct Outbound {
    /// The rules of egress.
    pub egress: Arc<egress::Config>,
    /// The profiles of TLS.
    pub tls: Arc<tls::Profiles>,
    /// The secrets that scenes name and do not hold.
    pub secrets: Arc<Secrets>,
}
