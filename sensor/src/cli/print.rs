//! Text of the commands that print: tables for people, Markdown for the documentation, JSON for programs. Pure.

use std::fmt::Write;

use anyhow::{Context, Result};
use clap::ValueEnum;
use sensor_common::features::{COLUMNS, CONTRACT_VERSION, Column, FEATURES, Feature, by_name, contract_hash, hash_of};
use serde::Serialize;
use serde_json::json;

use crate::audit::rfc3339;
use crate::bpf::memory;
use crate::config::change::Change;
use crate::metrics::declared;
use crate::replay::View;
use crate::view::{ConfigState, FlowView, LastReload, LeaseState, ModelReload, PacketsView, ReloadView, StatusView};

/// Form of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Aligned columns.
    #[default]
    Table,
    /// For programs.
    Json,
    /// For documentation.
    Markdown,
}

/// Pretty JSON with a line feed.
pub(super) fn json(value: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(value).context("cannot write JSON")? + "\n")
}

/// The feature contract: all of it, or the features that are named, as models name them.
pub(super) fn features(format: Format, names: &[String]) -> Result<String> {
    let known = |name: &String| by_name(name).with_context(|| format!("there is no feature {name:?}"));
    let named: Vec<&Feature> = names.iter().map(known).collect::<Result<_>>()?;
    let (features, others, hash) = if names.is_empty() {
        (FEATURES.iter().collect(), COLUMNS, contract_hash())
    } else {
        let hash = hash_of(&named);
        (named, &[][..], hash)
    };
    let title = format!("Feature contract {CONTRACT_VERSION}, hash {hash}, {} features", features.len());
    let whole = |f: &Feature| if f.is_whole() { "itself" } else { f.form.words() };
    let rows = || features.iter().map(|f| [f.name, f.unit, f.group, f.missing(), whole(f), f.definition]);
    let columns = ["name", "unit", "group", "missing when", "whole number", "definition"];
    let other_columns = ["name", "unit", "group", "missing when", "definition"];
    let about =
        "Columns that are not for models: in exports they say which flow a row is of, when, and why it was written.";
    let unit = |column: &Column| if column.unit.is_empty() { column.kind.name() } else { column.unit };
    let other_rows = || others.iter().map(|c| [c.name, unit(c), c.group, c.missing, c.definition]);
    let rest = |list: String| if others.is_empty() { String::new() } else { format!("\n{about}\n\n{list}") };
    Ok(match format {
        Format::Table => {
            title + "\n\n" + &table(&columns, &[], rows()) + &rest(table(&other_columns, &[], other_rows()))
        }
        Format::Markdown => {
            format!("{title}\n\n{}{}", markdown(&columns, rows()), rest(markdown(&other_columns, other_rows())))
        }
        Format::Json => {
            let list: Vec<_> = features
                .iter()
                .map(|feature| {
                    json!({
                        "name": feature.name,
                        "unit": feature.unit,
                        "group": feature.group,
                        "definition": feature.definition,
                        "missing": feature.missing(),
                        "whole_number": whole(feature),
                        "hash": feature.hash(),
                    })
                })
                .collect();
            let others: Vec<_> = others
                .iter()
                .map(|column| {
                    json!({
                        "name": column.name,
                        "type": column.kind.name(),
                        "unit": column.unit,
                        "group": column.group,
                        "definition": column.definition,
                        "missing": column.missing,
                    })
                })
                .collect();
            let mut document = json!({ "version": CONTRACT_VERSION, "hash": hash, "features": list });
            if names.is_empty() {
                document["columns_not_for_models"] = others.into();
            }
            json(&document)?
        }
    })
}

/// The columns of a view of `sensor extract`.
pub(super) fn columns(view: View, format: Format) -> Result<String> {
    let list = view.columns();
    let rows = || list.iter().map(|c| [c.name, c.unit, c.definition, c.differs]);
    let columns = ["column", "unit", "value", "where it differs from the original's, and why"];
    Ok(match format {
        Format::Table => table(&columns, &[], rows()),
        Format::Markdown => markdown(&columns, rows()),
        Format::Json => {
            let list: Vec<_> = list
                .iter()
                .map(|column| {
                    json!({
                        "name": column.name,
                        "unit": column.unit,
                        "definition": column.definition,
                        "differs": column.differs,
                    })
                })
                .collect();
            json(&list)?
        }
    })
}

/// The declared metrics.
pub(super) fn metrics(format: Format) -> Result<String> {
    let rows = || {
        declared::ALL.iter().map(|metric| {
            let labels = metric.labels.join(", ");
            [
                metric.name.to_owned(),
                metric.kind.name().to_owned(),
                metric.unit.to_owned(),
                labels,
                metric.help.to_owned(),
            ]
        })
    };
    let columns = ["name", "type", "unit", "labels", "meaning"];
    Ok(match format {
        Format::Table => table(&columns, &[], rows()),
        Format::Markdown => markdown(&columns, rows()),
        Format::Json => {
            let list: Vec<_> = declared::ALL
                .iter()
                .map(|metric| {
                    json!({
                        "name": metric.name,
                        "type": metric.kind.name(),
                        "unit": metric.unit,
                        "labels": metric.labels,
                        "help": metric.help,
                    })
                })
                .collect();
            json(&list)?
        }
    })
}

/// A list of flows.
pub(super) fn flows(flows: &[FlowView]) -> String {
    let columns = ["initiator", "responder", "proto", "packets", "bytes", "age", "idle", "score", "label", "verdict"];
    let rows = flows.iter().map(|flow| {
        let verdict = match flow.would_verdict {
            Some(would) => format!("{} (would {would})", flow.verdict),
            None => flow.verdict.to_string(),
        };
        [
            endpoint(&flow.src, flow.sport),
            endpoint(&flow.dst, flow.dport),
            flow.protocol.clone(),
            format!("{}/{}", flow.initiator_packets, flow.responder_packets),
            format!("{}/{}", flow.initiator_bytes, flow.responder_bytes),
            format!("{:.1}s", flow.age_seconds),
            format!("{:.1}s", flow.idle_seconds),
            flow.score.map_or_else(|| "-".to_owned(), |score| format!("{score:.3}")),
            flow.label.clone().unwrap_or_else(|| "-".to_owned()),
            verdict,
        ]
    });
    table(&columns, &[3, 4, 5, 6, 7], rows)
}

fn endpoint(address: &str, port: u16) -> String {
    match (port, address.contains(':')) {
        (0, _) => address.to_owned(),
        (port, true) => format!("[{address}]:{port}"),
        (port, false) => format!("{address}:{port}"),
    }
}

/// What came of a reload.
pub(super) fn reload(view: &ReloadView) -> String {
    let ReloadView { file, hash: _, changed, restart, models } = view;
    let mut text = match file {
        Some(file) => format!("{file} is in force\n"),
        None => "there is no configuration file: the agent was started without --config\n".to_owned(),
    };
    // Writing to a string cannot fail.
    for Change { setting, from, to } in changed {
        let _ = writeln!(text, "changed   {setting}: {from} -> {to}");
    }
    if changed.is_empty() {
        text += "no setting has changed\n";
    }
    for Change { setting, from, to } in restart {
        let _ = writeln!(text, "restart   {setting}: {from} -> {to} (not in force before a restart)");
    }
    for ModelReload { role, path, refused } in models {
        let path = path.as_deref().unwrap_or("none");
        let _ = match refused {
            None => writeln!(text, "model     {role}: {path} is loaded"),
            Some(reason) => writeln!(text, "model     {role}: {path} REFUSED, the one before goes on: {reason}"),
        };
    }
    text
}

/// The agent's state.
pub(super) fn status(status: &StatusView) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:11} {value}");
    };
    line("agent", format!("sensor {}, pid {}, up {:.0} s", status.version, status.pid, status.uptime_seconds));
    line("config", config(&status.config));
    if let Some(problem) = &status.state_problem {
        line("state", format!("not on the disk, changes do not survive a restart: {problem}"));
    }
    let enforcement = &status.enforcement;
    let mut mode = status.mode.to_string();
    if let Some(doubt) = &status.state_doubt {
        let configured = enforcement.configured_mode;
        mode += &format!(" (the configuration says {configured}, but what was kept is damaged: {doubt})");
    } else if status.mode != enforcement.configured_mode {
        mode += &format!(" (set by command; the configuration says {})", enforcement.configured_mode);
    }
    if enforcement.ramp {
        mode += ", ramp: only the highest scores drop";
    }
    line("mode", mode);
    line(
        "breaker",
        match &enforcement.breaker.reason {
            None => "closed".to_owned(),
            Some(reason) => format!("OPEN, models tag and no more: {reason}; `sensor breaker reset` closes it"),
        },
    );
    if !enforcement.breaker.services.is_empty() {
        let services = enforcement.breaker.services.join(", ");
        line("held", format!("flows without a proven source are tagged and no more at {services}"));
    }
    if status.drift.as_ref().is_some_and(|drift| drift.fallback) {
        line("drift", "HIGH, models tag and no more (model.drift_fallback)".to_owned());
    }
    line(
        "in force",
        format!(
            "{} verdicts on flows, {} on sources, {} limits of services; {} packets withheld by mode or breaker",
            enforcement.flow_verdicts,
            enforcement.source_verdicts,
            enforcement.service_limits,
            enforcement.withheld_packets
        ),
    );
    let by: Vec<_> = enforcement.never_drop_by.iter().map(|(why, count)| format!("{why} {count}")).collect();
    line(
        "never drop",
        format!(
            "{} entries ({}); {} packets were kept from being dropped",
            enforcement.never_drop,
            by.join(", "),
            enforcement.protected_packets
        ),
    );
    if enforcement.audit_lost > 0 {
        line("audit", format!("{} lines were lost", enforcement.audit_lost));
    }
    line(
        "lease",
        match status.lease.state {
            LeaseState::Active => {
                format!("active, {:.1} of {} s left", status.lease.remaining_seconds, status.lease.seconds)
            }
            LeaseState::Expired => "expired: no verdict is obeyed until the next poll".to_owned(),
        },
    );
    let poll = &status.poll;
    line(
        "poll",
        format!(
            "every {:.0} ms, the last took {:.2} ms, {} late",
            poll.interval_seconds * 1e3,
            poll.last_seconds * 1e3,
            poll.overruns
        ),
    );
    line(
        "model",
        match &status.model {
            None => "none: flows are not scored".to_owned(),
            Some(model) => format!(
                "{} ({}), {} features, threshold {}, {}, sha256 {}",
                model.name,
                model.kind,
                model.features,
                model.threshold,
                model.path,
                model.hash.get(..12).unwrap_or(&model.hash)
            ),
        },
    );
    let table = &status.table;
    let share = if table.capacity == 0 { 0.0 } else { table.occupancy as f64 * 100.0 / table.capacity as f64 };
    line("table", format!("{} of {} flows ({share:.1} %)", table.occupancy, table.capacity));
    line(
        "memory",
        format!(
            "kernel maps {:.1} MiB, agent {:.1} MiB",
            memory::mib(table.memory_bytes),
            memory::mib(table.agent_bytes)
        ),
    );
    if let Some(context) = &status.context {
        line(
            "context",
            format!(
                "{} sources and {} services in the last minute, {} replaced, {} lost",
                context.sources, context.services, context.replaced, context.lost
            ),
        );
    }
    line(
        "flows",
        format!("{} created, {} ended, {} scores", status.flows.created, status.flows.ended, status.flows.scored),
    );
    line("packets", packets(&status.packets));
    for interface in &status.interfaces {
        let tag = interface.tag.as_deref().map_or_else(String::new, |tag| format!(", tag by {tag}"));
        line(
            "interface",
            format!(
                "{} (index {}): XDP {}, egress by {}{tag}; {}",
                interface.name,
                interface.ifindex,
                interface.xdp,
                interface.egress,
                packets(&interface.packets)
            ),
        );
    }
    for (name, counts) in [("verdicts", &status.verdicts.stored), ("withheld", &status.verdicts.withheld)] {
        for (action, labels) in counts {
            let labels: Vec<_> = labels.iter().map(|(label, count)| format!("{label} {count}")).collect();
            line(name, format!("{action}: {}", labels.join(", ")));
        }
    }
    for (stage, causes) in &status.loss {
        let causes: Vec<_> = causes.iter().map(|(cause, packets)| format!("{cause} {packets}")).collect();
        line("no record", format!("{stage}: {}", causes.join(", ")));
    }
    text
}

/// The configuration in the status.
fn config(state: &ConfigState) -> String {
    let ConfigState { file, hash, restart, last_reload } = state;
    let mut text = file.clone().unwrap_or_else(|| "no file".to_owned());
    text += &format!(", hash {}", hash.get(..12).unwrap_or(hash));
    match last_reload {
        Some(LastReload { unix_ms, by, error: None }) => text += &format!(", reloaded {} by {by}", rfc3339(*unix_ms)),
        Some(LastReload { unix_ms, by, error: Some(error) }) => {
            text += &format!("; RELOAD REFUSED {} ({by}), the one before is in force: {error}", rfc3339(*unix_ms));
        }
        None => {}
    }
    if !restart.is_empty() {
        let settings: Vec<_> = restart.iter().map(|change| change.setting.as_str()).collect();
        text += &format!("; a restart is needed for {}", settings.join(", "));
    }
    text
}

fn packets(view: &PacketsView) -> String {
    format!(
        "{} seen ({} bytes), {} recorded, {} tagged, {} limited, {} dropped",
        view.seen, view.bytes, view.recorded, view.tagged, view.limited, view.dropped
    )
}

/// Aligned columns; those in `right` to the right. The last one is not padded.
pub(super) fn table<const N: usize, T: AsRef<str>>(
    columns: &[&str; N],
    right: &[usize],
    rows: impl IntoIterator<Item = [T; N]>,
) -> String {
    let rows: Vec<_> = rows.into_iter().collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].as_ref().chars().count());
        cells.max().unwrap_or(0).max(columns[column].len())
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    let mut write = |cells: [&str; N]| {
        let mut line = String::new();
        for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
            let _ = if right.contains(&column) {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:<width$}  ")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    write(*columns);
    for row in &rows {
        write(std::array::from_fn(|column| row[column].as_ref()));
    }
    text
}

fn markdown<const N: usize, T: AsRef<str>>(columns: &[&str; N], rows: impl IntoIterator<Item = [T; N]>) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut text = line(columns.iter().map(|&cell| cell.to_owned()).collect());
    text += &line(vec!["---".to_owned(); N]);
    for row in rows {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let cell = cell.as_ref().replace('|', "\\|");
            if column == 0 { format!("`{cell}`") } else { cell }
        });
        text += &line(cells.collect());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::flow::tests::flow;

    #[test]
    fn lists_are_complete_in_every_form() {
        for format in [Format::Table, Format::Json, Format::Markdown] {
            let text = features(format, &[]).expect("text");
            assert!(FEATURES.iter().all(|feature| text.contains(feature.name)), "{text}");
            assert!(COLUMNS.iter().all(|column| text.contains(column.definition)), "{text}");
            assert!(text.contains(&contract_hash()));
            let text = features(format, &["protocol".to_owned()]).expect("text");
            assert!(!text.contains("not_for_models") && !text.contains("not for models"), "{text}");
            let text = metrics(format).expect("text");
            assert!(declared::ALL.iter().all(|metric| text.contains(metric.name)), "{text}");
        }
        let text = metrics(Format::Markdown).expect("text");
        assert!(text.lines().all(|line| line.matches(" | ").count() == 4), "five columns: {text}");
    }

    #[test]
    fn flows_as_a_table() {
        let text = flows(&[flow("1-1", 1_000_000, Some(0.25)), flow("2-1", 5, None)]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].contains("198.18.0.1:40000  [2001:db8::1]:443  tcp"), "{text}");
        assert!(lines[1].ends_with("0.250  scan   pass (would drop)") && lines[2].ends_with("pass"), "{text}");
        assert_eq!(endpoint("198.18.0.1", 0), "198.18.0.1");
    }
}
