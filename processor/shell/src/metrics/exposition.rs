//! The two forms in which metrics are read: Prometheus' text format 0.0.4, which everything reads, and `OpenMetrics` 1.0 for those who ask
//! for it.
//!
//! The library writes `OpenMetrics` only; the other form follows from it line by line. Invariant: both say the same, under the same names.

use std::fmt::Write as _;

/// A form in which metrics are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exposition {
    /// Prometheus' text format 0.0.4.
    #[default]
    Text,
    /// `OpenMetrics` 1.0.
    OpenMetrics,
}

/// The media type of `OpenMetrics`.
const OPEN_METRICS: &str = "application/openmetrics-text";

/// The media type of the text format.
const TEXT: &str = "text/plain";

// === impl Exposition ===

impl Exposition {
    /// The form that a reader wants whose header `accept` is this: the text format, unless it names the other one and not the text format
    /// before it.
    pub fn wanted(accept: &str) -> Self {
        let weight = |media: &str| {
            accept
                .split(',')
                .filter_map(|range| weight(range, media))
                .max()
        };
        match (weight(OPEN_METRICS), weight(TEXT)) {
            (Some(0) | None, _) => Self::Text,
            (Some(open), Some(text)) if text > open => Self::Text,
            (Some(_), _) => Self::OpenMetrics,
        }
    }

    /// The content type.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// This form of a text of `OpenMetrics`.
    pub(super) fn of(self, open: String) -> String {
        match self {
            Self::Text => plain(&open),
            Self::OpenMetrics => open,
        }
    }
}

/// The weight of `media` in a range of the header `accept`, in thousandths, if it is named there in a version that there is.
fn weight(range: &str, media: &str) -> Option<u32> {
    let mut parts = range.split(';').map(str::trim);
    let names = parts.next()?.eq_ignore_ascii_case(media);
    let mut weight = 1_000;
    for part in parts {
        let (name, value) = part.split_once('=')?;
        let value = value.trim().trim_matches('"');
        match name.trim().to_ascii_lowercase().as_str() {
            "q" => weight = (value.parse::<f64>().ok()?.clamp(0.0, 1.0) * 1_000.0) as u32,
            "version" if media == OPEN_METRICS && !value.starts_with("1.") => return None,
            _ => {}
        }
    }
    names.then_some(weight)
}

/// The text format of a text of `OpenMetrics`.
///
/// There, the family of a counter has its samples' name, an info is a gauge, and there are neither units nor an end.
fn plain(open: &str) -> String {
    let mut out = String::with_capacity(open.len());
    // The name of the family and its help, until its type is known.
    let mut help = ("", "");
    for line in open.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').unwrap_or((rest, ""));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "unknown"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            if help.0 == name {
                let _ = writeln!(out, "# HELP {name}{suffix} {}", help.1);
            }
            let _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_format_is_for_all_who_do_not_ask_for_the_other_one() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        for accept in [
            prometheus,
            "application/openmetrics-text",
            "Application/OpenMetrics-Text; version=1.0.0; charset=utf-8",
            "text/plain;q=0.5, application/openmetrics-text;q=0.9",
        ] {
            assert_eq!(
                Exposition::wanted(accept),
                Exposition::OpenMetrics,
                "{accept}"
            );
        }
        for accept in [
            "",
            "*/*",
            "text/plain",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;q=0.1,text/plain;version=0.0.4;q=0.9",
            "application/openmetrics-text;q=much",
            ";;,=",
        ] {
            assert_eq!(Exposition::wanted(accept), Exposition::Text, "{accept}");
        }
    }

    #[test]
    fn counters_and_infos_have_the_names_of_their_samples() {
        let open = "# HELP a_build Version.\n# TYPE a_build info\na_build_info{version=\"1\"} 1\n\
                    # HELP a_calls Calls made.\n# TYPE a_calls counter\n# UNIT a_calls seconds\na_calls_total{b=\"# TYPE x\"} 2\n\
                    # HELP a_now Now.\n# TYPE a_now gauge\na_now 3\n\
                    # TYPE a_odd unknown\na_odd 4\n# EOF\n";

        let expected = "# HELP a_build_info Version.\n# TYPE a_build_info gauge\na_build_info{version=\"1\"} 1\n\
                        # HELP a_calls_total Calls made.\n# TYPE a_calls_total counter\na_calls_total{b=\"# TYPE x\"} 2\n\
                        # HELP a_now Now.\n# TYPE a_now gauge\na_now 3\n\
                        # TYPE a_odd untyped\na_odd 4\n";
        assert_eq!(plain(open), expected);
    }
}
