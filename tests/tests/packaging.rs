//! What is shipped beside the agent fits the agent: alerts and dashboards name metrics that it declares, with labels
//! that it gives, and the alerts fire when they should.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use sensor::metrics::declared::{ALL, Kind, Metric};
use serde_json::Value;

const RULES: &str = "packaging/prometheus/sensor.rules.yml";
const RULES_TEST: &str = "packaging/prometheus/sensor.rules.test.yml";
const DASHBOARD: &str = "packaging/grafana/sensor.json";

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(file)
}

fn read(file: &str) -> String {
    fs::read_to_string(path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Every expression of the dashboard's panels.
fn expressions() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).expect("the dashboard is JSON");
    let panels = dashboard["panels"].as_array().expect("panels").clone();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().cloned().unwrap_or_default());
    targets.map(|target| target["expr"].as_str().expect("an expression").to_owned()).collect()
}

/// The names of metrics in a text: words that begin as the agent's do.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("sensor_") || word.starts_with("process_")).collect()
}

/// What is declared under this name of a series.
fn declared(series: &str) -> Option<&'static Metric> {
    let exact = ALL.iter().copied().find(|metric| metric.name == series && metric.kind != Kind::Histogram);
    exact.or_else(|| {
        let base = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| series.strip_suffix(suffix))?;
        ALL.iter().copied().find(|metric| metric.name == base && metric.kind == Kind::Histogram)
    })
}

/// The label names that matchers (`name{label="…"}`) in a text use, by the series before them.
fn matchers(text: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    for (open, _) in text.match_indices('{') {
        let series = text[..open].rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
        if declared(series).is_none() {
            continue;
        }
        let inside = text[open + 1..].split('}').next().unwrap_or_default();
        let labels = inside.split(',').filter_map(|part| part.split(['=', '!']).next()).map(str::trim);
        found.extend(labels.filter(|label| !label.is_empty()).map(|label| (series, label)));
    }
    found
}

#[test]
fn alerts_and_dashboards_name_declared_metrics() {
    let mut looked_at = 0;
    for (file, text) in [(RULES, read(RULES)), (RULES_TEST, read(RULES_TEST)), (DASHBOARD, expressions().join("\n"))] {
        let names = names(&text);
        assert!(names.len() >= 10, "{file}: {names:?}");
        for name in names {
            assert!(declared(name).is_some(), "{file}: {name} is no metric of the agent");
        }
        for (series, label) in matchers(&text) {
            let labels = declared(series).map_or(&[][..], |metric| metric.labels);
            let known = labels.contains(&label) || ["instance", "job", "le"].contains(&label);
            assert!(known, "{file}: {series} has no label {label}, but {labels:?}");
            looked_at += 1;
        }
    }
    assert!(looked_at > 40, "{looked_at} labels");
}

#[test]
fn a_metric_that_is_gone_would_be_seen() {
    assert!(declared("sensor_poll_seconds_bucket").is_some());
    assert!(declared("sensor_poll_seconds").is_none(), "a histogram has no series of its own name");
    assert!(declared("sensor_polls_total").is_none());
    assert_eq!(
        names("rate(sensor_a_total[5m]) / on (instance) process_b"),
        BTreeSet::from(["process_b", "sensor_a_total"])
    );
    let found = matchers(r#"sum(sensor_loss_packets_total{stage!="parse", cause="x"}) + vector(1)"#);
    assert_eq!(found, [("sensor_loss_packets_total", "stage"), ("sensor_loss_packets_total", "cause")]);
}

#[test]
fn prometheus_takes_the_alerts_and_they_fire() {
    promtool(&["check", "rules", &path(RULES).to_string_lossy()]);
    promtool(&["test", "rules", &path(RULES_TEST).to_string_lossy()]);
}

#[test]
fn prometheus_takes_every_expression_of_the_dashboard() {
    let mut rules = String::from("groups:\n- name: dashboard\n  rules:\n");
    let expressions = expressions();
    for (number, expression) in expressions.iter().enumerate() {
        let expression = expression.replace("$__rate_interval", "1m").replace("$instance", ".*");
        rules.push_str(&format!("  - record: dashboard:panel:{number}\n    expr: {}\n", Value::from(expression)));
    }
    assert!(expressions.len() > 30, "{}", expressions.len());
    let folder = tempfile::TempDir::new().expect("a folder");
    let file = folder.path().join("dashboard.yml");
    fs::write(&file, rules).expect("write the rules");
    promtool(&["check", "rules", &file.to_string_lossy()]);
}

fn promtool(args: &[&str]) {
    let out = Command::new("promtool").args(args).output().expect("promtool (cargo xtask setup --tests)");
    let text = [out.stdout, out.stderr].concat();
    assert!(out.status.success(), "promtool {}: {}", args.join(" "), String::from_utf8_lossy(&text));
}
