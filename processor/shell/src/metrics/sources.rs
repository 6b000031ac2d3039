//! What sources copy, in numbers.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use retide_avro::foreign::Dialect;

use super::add;

/// The counters of sources.
pub(crate) struct SourceMetrics {
    /// Letters that were copied, by source and dialect.
    letters: Family<[(&'static str, String); 2], Counter>,
}

/// The word for a letter whose headers are nobody's.
const UNKNOWN: &str = "unknown";

// === impl SourceMetrics ===

impl SourceMetrics {
    /// Registers them.
    pub(super) fn register(r: &mut Registry) -> Self {
        let help = "Dead letters of others that were copied to the retry topic";
        Self {
            letters: add(r, ("source_letters", help), Family::default()),
        }
    }

    /// A letter was copied, durably.
    pub(crate) fn copied(&self, source: &str, dialect: Option<Dialect>) {
        let word = dialect.map_or(UNKNOWN, Dialect::word);
        let labels = [("source", source.to_owned()), ("dialect", word.to_owned())];
        self.letters.get_or_create_owned(&labels).inc();
    }
}
