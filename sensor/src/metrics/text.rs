//! OpenMetrics text to Prometheus text 0.0.4, for scrapers that do not ask for OpenMetrics, and the choice between.
//!
//! The two differ where it matters to a parser in this: OpenMetrics names a counter's family without `_total`, and has
//! `# UNIT` and `# EOF`.

use std::fmt::Write;

/// Media type of OpenMetrics text.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Media type of Prometheus text.
pub const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether an `Accept` header prefers OpenMetrics: it is named, not refused (`q=0`), and no less welcome than text.
pub fn accepts_open_metrics(accept: &str) -> bool {
    let quality = |kind: &str| {
        accept
            .split(',')
            .filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                let matches = parts.next()?.eq_ignore_ascii_case(kind);
                let quality = parts.find_map(|p| p.strip_prefix("q=")).and_then(|q| q.parse::<f32>().ok());
                matches.then_some(quality.unwrap_or(1.0))
            })
            .fold(0.0, f32::max)
    };
    let open = quality("application/openmetrics-text");
    open > 0.0 && open >= quality("text/plain")
}

/// Converts a complete OpenMetrics exposition.
pub fn prometheus(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + 1024);
    // HELP comes before TYPE, and needs the name that only TYPE settles.
    let mut help: Option<(&str, &str)> = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, help)) = help.take().filter(|(of, _)| *of == name) {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "# HELP {name}{suffix} {help}");
            }
            let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_header() {
        for (accept, open) in [
            ("", false),
            ("*/*", false),
            ("text/plain;version=0.0.4", false),
            ("application/openmetrics-text", true),
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                true,
            ),
            ("application/openmetrics-text;q=0, text/plain", false),
            ("application/openmetrics-text; q=0.3, text/plain; q=0.9", false),
        ] {
            assert_eq!(accepts_open_metrics(accept), open, "{accept}");
        }
    }

    #[test]
    fn counters_get_their_suffix() {
        let open = "# HELP a_seconds Time.\n# TYPE a_seconds counter\n# UNIT a_seconds seconds\na_seconds_total{x=\"# y\"} 1.0\n\
                    # HELP b Level.\n# TYPE b gauge\nb 2\n# EOF\n";
        let text = "# HELP a_seconds_total Time.\n# TYPE a_seconds_total counter\na_seconds_total{x=\"# y\"} 1.0\n\
                    # HELP b Level.\n# TYPE b gauge\nb 2\n";
        assert_eq!(prometheus(open), text);
    }
}
