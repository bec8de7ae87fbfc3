//! `sensor verdicts`, `sensor allow`, `sensor mode`, `sensor breaker`: enforcement by hand.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand, ValueEnum};

use super::print::{self, table};
use super::{Socket, say, wait};
use crate::allow::Entry;
use crate::allow::item::Item;
use crate::audit::rfc3339;
use crate::config::{ActionName, Mode};
use crate::control;
use crate::logging::complain;
use crate::verdicts::Rate;
use crate::view::{BatchView, Kept, MAX_BATCH, NewAllow, NewVerdict, NewVerdicts, VerdictList, VerdictView, Which};

#[derive(Debug, Subcommand)]
pub(super) enum VerdictsCommand {
    /// List the verdicts that hold, the newest first
    List {
        #[command(flatten)]
        socket: Socket,
        /// At most this many, 0 = all [default: 50, with --json all]
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show one verdict: why, by whom, until when
    Show {
        /// Its number
        id: u64,
        #[command(flatten)]
        socket: Socket,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Add a verdict: `sensor verdicts add drop 198.18.66.0/24 --for 1h`
    Add(Box<Add>),
    /// Take verdicts back; their packets pass from the next one on
    Remove {
        /// Their numbers, or what they are about
        #[arg(required_unless_present = "all")]
        which: Vec<String>,
        /// Every verdict, of models too
        #[arg(long, conflicts_with = "which")]
        all: bool,
        #[command(flatten)]
        socket: Socket,
        /// One JSON array
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// What mode enforce does with the packets
    #[arg(value_enum)]
    action: ActionName,
    /// An address (198.18.66.7) or a prefix (2001:db8:66::/48): all flows that they begin; a flow, by its id in `sensor flows
    /// --json` or as tcp,198.18.66.7:4444,198.18.0.10:80; a service (limit only), as tcp,198.18.0.10:80
    #[arg(required_unless_present = "from_file")]
    scope: Option<String>,
    /// One verdict for each line of this file ("-": standard input); #, ; or // begins a comment
    #[arg(long, value_name = "FILE", conflicts_with = "scope")]
    from_file: Option<PathBuf>,
    /// How long it holds
    #[arg(long = "for", value_name = "DUR", value_parser = humantime::parse_duration, default_value = "10m")]
    duration: Duration,
    /// For action limit: packets a second; of a service, half-open connections a second
    #[arg(long, value_name = "N")]
    pps: Option<u64>,
    /// For action limit: bytes a second
    #[arg(long, value_name = "N")]
    bps: Option<u64>,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,
    #[command(flatten)]
    socket: Socket,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum AllowCommand {
    /// List what is never dropped, and why
    List {
        #[command(flatten)]
        socket: Socket,
        /// One JSON array
        #[arg(long)]
        json: bool,
    },
    /// Never drop this from now on: an address, a prefix, a local port (tcp/22), an interface (dev:eth0), a flow
    Add {
        /// What
        item: Item,
        /// For how long [default: until it is removed]
        #[arg(long = "for", value_name = "DUR", value_parser = humantime::parse_duration)]
        duration: Option<Duration>,
        /// Why, for the audit
        #[arg(long, value_name = "TEXT", default_value = "")]
        note: String,
        #[command(flatten)]
        socket: Socket,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Take back what `sensor allow add` added
    Remove {
        /// What
        item: Item,
        #[command(flatten)]
        socket: Socket,
        /// One JSON string
        #[arg(long)]
        json: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum BreakerCommand {
    /// Close it: verdicts of models are obeyed again as far as the mode allows
    Reset,
}

pub(super) fn verdicts(command: VerdictsCommand) -> Result<ExitCode> {
    match command {
        VerdictsCommand::List { socket, limit, json } => {
            let limit = limit.unwrap_or(if json { 0 } else { 50 });
            let list = wait(control::get_verdicts(&socket.socket, limit))?;
            say(&if json { print::json(&list)? } else { list_text(&list) })?;
        }
        VerdictsCommand::Show { id, socket, json } => {
            let verdict = wait(control::get_verdict(&socket.socket, id))?;
            say(&if json { print::json(&verdict)? } else { verdict_text(&verdict) })?;
        }
        VerdictsCommand::Add(add) => {
            let Add { action, scope, from_file, duration, pps, bps, note, socket, json } = *add;
            // A part of a second counts as one: zero would be no verdict.
            let for_seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
            let (packets_per_second, bytes_per_second) = (pps.unwrap_or(0), bps.unwrap_or(0));
            let Some(scope) = scope else {
                let scopes = Vec::new();
                let new = NewVerdicts { scopes, action, for_seconds, packets_per_second, bytes_per_second, note };
                return add_list(&from_file.unwrap_or_default(), new, &socket, json);
            };
            let new = NewVerdict { scope, action, for_seconds, packets_per_second, bytes_per_second, note };
            let verdict = wait(control::add_verdict(&socket.socket, &new))?;
            say(&if json { print::json(&verdict)? } else { added_text(&verdict.value) })?;
            return Ok(kept_or_not(&verdict));
        }
        VerdictsCommand::Remove { which, all, socket, json } => {
            let one = |text: String| text.parse().map_or_else(|_| Which::Scope(text.clone()), Which::Id);
            let orders: Vec<Which> = if all { vec![Which::All] } else { which.into_iter().map(one).collect() };
            let mut all_gone = Kept { value: Vec::new(), not_kept: None };
            for one in orders {
                let Kept { value, not_kept } = wait(control::remove_verdicts(&socket.socket, one))?;
                all_gone.value.extend(value);
                all_gone.not_kept = not_kept.or(all_gone.not_kept);
            }
            let gone = &all_gone.value;
            if json {
                say(&print::json(gone)?)?;
            } else {
                let mut text = String::new();
                for verdict in gone {
                    // Writing to a string cannot fail.
                    let _ = writeln!(text, "verdict {} ({} {}) is gone", verdict.id, verdict.action, verdict.scope);
                }
                say(if gone.is_empty() { "there was no verdict\n" } else { &text })?;
            }
            return Ok(kept_or_not(&all_gone));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What each line of a list is about, without comments: `#`, `//` and `;`, which Spamhaus has behind each prefix.
fn scopes_of(list: &str) -> impl Iterator<Item = &str> {
    list.trim_start_matches('\u{feff}').lines().filter_map(|line| {
        let end = ["#", ";", "//"].into_iter().filter_map(|comment| line.find(comment)).min();
        let scope = line[..end.unwrap_or(line.len())].trim();
        (!scope.is_empty()).then_some(scope)
    })
}

/// One verdict for each line of a file; fails if one was refused.
fn add_list(path: &Path, new: NewVerdicts, socket: &Socket, json: bool) -> Result<ExitCode> {
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).context("cannot read standard input")?
    } else {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
    };
    let scopes: Vec<String> = scopes_of(&text).map(str::to_owned).collect();
    let mut kept = Kept { value: BatchView::default(), not_kept: None };
    for part in scopes.chunks(MAX_BATCH) {
        let new = NewVerdicts { scopes: part.to_vec(), ..new.clone() };
        let Kept { value: view, not_kept } = wait(control::add_verdicts(&socket.socket, &new))?;
        kept.value.added += view.added;
        kept.value.refused.extend(view.refused);
        kept.not_kept = not_kept.or(kept.not_kept);
    }
    let whole = &kept.value;
    if json {
        say(&print::json(&kept)?)?;
    } else {
        let mut text = format!("{} verdicts hold\n", whole.added);
        for (scope, reason) in &whole.refused {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{scope}: {reason}");
        }
        say(&text)?;
    }
    let all_kept = kept_or_not(&kept);
    Ok(if whole.refused.is_empty() { all_kept } else { ExitCode::FAILURE })
}

pub(super) fn allow(command: AllowCommand) -> Result<ExitCode> {
    match command {
        AllowCommand::List { socket, json } => {
            let entries = wait(control::get_allowed(&socket.socket))?;
            say(&if json { print::json(&entries)? } else { allowed_text(&entries) })?;
        }
        AllowCommand::Add { item, duration, note, socket, json } => {
            let for_seconds = duration.map(|duration| duration.as_secs().max(1));
            let kept = wait(control::add_allow(&socket.socket, &NewAllow { item, for_seconds, note }))?;
            let entry = &kept.value;
            let until =
                entry.until_unix_ms.map_or("until it is removed".to_owned(), |ms| format!("until {}", rfc3339(ms)));
            say(&if json { print::json(&kept)? } else { format!("{} is never dropped, {until}\n", entry.item) })?;
            return Ok(kept_or_not(&kept));
        }
        AllowCommand::Remove { item, socket, json } => {
            let kept = wait(control::remove_allow(&socket.socket, item))?;
            let text = format!("{} is off the never-drop list\n", kept.value);
            say(&if json { print::json(&kept)? } else { text })?;
            return Ok(kept_or_not(&kept));
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn mode(to: Option<Mode>, socket: &Socket, json: bool) -> Result<ExitCode> {
    let kept = wait(control::mode(&socket.socket, to))?;
    let view = &kept.value;
    let mut text = view.mode.to_string();
    if let Some(doubt) = &view.doubt {
        text += &format!(" (the configuration says {}, but what was kept is damaged: {doubt})", view.configured);
    } else if view.mode != view.configured {
        text += &format!(" (set by command; the configuration says {})", view.configured);
    }
    if view.ramp {
        text += ", ramp: only the highest scores drop";
    } else if to == Some(Mode::Enforce) {
        text += ", no ramp: every verdict is done (policy.ramp)";
    }
    say(&if json { print::json(&kept)? } else { text + "\n" })?;
    Ok(kept_or_not(&kept))
}

/// A change that a restart would undo is in force, and no success.
fn kept_or_not<T>(kept: &Kept<T>) -> ExitCode {
    let Some(reason) = &kept.not_kept else { return ExitCode::SUCCESS };
    complain(&format!("sensor: warning: not kept: it is in force, and a restart would undo it: {reason}"));
    ExitCode::FAILURE
}

pub(super) fn breaker(command: Option<BreakerCommand>, socket: &Socket, json: bool) -> Result<ExitCode> {
    let kept = wait(control::breaker(&socket.socket, command == Some(BreakerCommand::Reset)))?;
    let view = &kept.value;
    let mut text = match (&view.reason, &view.trip) {
        (Some(reason), Some(trip)) => format!("open since {}: {reason}\n", rfc3339(trip.unix_ms)),
        _ => "closed\n".to_owned(),
    };
    for service in &view.services {
        text += &format!("open for flows without a proven source to {service}\n");
    }
    say(&if json { print::json(&kept)? } else { text })?;
    Ok(kept_or_not(&kept))
}

fn rate(rate: Rate) -> String {
    let part = |count: u64, unit: &str| if count == 0 { String::new() } else { format!(" {count} {unit}") };
    part(rate.packets, "packets/s") + &part(rate.bytes, "bytes/s")
}

fn action(view: &VerdictView) -> String {
    let verdict = &view.verdict;
    let withheld = if view.done == verdict.action { String::new() } else { format!(" ({} now)", view.done) };
    format!("{}{}{withheld}", verdict.action, rate(verdict.rate))
}

fn left(seconds: f64) -> String {
    humantime::format_duration(Duration::from_secs(seconds.max(0.0).round() as u64)).to_string()
}

fn list_text(list: &VerdictList) -> String {
    let columns = ["id", "scope", "about", "action", "ends in", "packets", "score", "label", "by"];
    let rows = list.verdicts.iter().map(|view| {
        let verdict = &view.verdict;
        let evidence = &verdict.evidence;
        [
            verdict.id.to_string(),
            verdict.scope.kind().to_owned(),
            verdict.scope.to_string(),
            action(view),
            left(view.remaining_seconds),
            view.packets.to_string(),
            evidence.score.map_or_else(|| "-".to_owned(), |score| format!("{score:.3}")),
            evidence.label.clone().unwrap_or_else(|| "-".to_owned()),
            evidence.who.clone(),
        ]
    });
    let mut text = table(&columns, &[0, 5, 6], rows);
    let shown = list.verdicts.len() as u64;
    if shown < list.total {
        text += &format!("{} more; --limit 0 shows all\n", list.total - shown);
    }
    text
}

fn added_text(view: &VerdictView) -> String {
    let verdict = &view.verdict;
    let mut text = format!(
        "verdict {}: {} {} {}, until {}\n",
        verdict.id,
        verdict.action,
        verdict.scope.kind(),
        verdict.scope,
        rfc3339(verdict.until_unix_ms)
    );
    if view.done != verdict.action {
        text += &format!(
            "the mode allows {} and no more: its packets are counted, and `sensor mode enforce` makes it hold\n",
            view.done
        );
    }
    text
}

fn verdict_text(view: &VerdictView) -> String {
    let verdict = &view.verdict;
    let evidence = &verdict.evidence;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:9} {value}");
        }
    };
    line("verdict", format!("{} on {} {}", verdict.id, verdict.scope.kind(), verdict.scope));
    line("action", action(view));
    line("origin", format!("{}: {}", verdict.origin, evidence.who));
    line("note", evidence.note.clone());
    line("flow", evidence.flow.clone().unwrap_or_default());
    line("label", evidence.label.clone().unwrap_or_default());
    line("score", evidence.score.map(|score| format!("{score:.4}")).unwrap_or_default());
    line("model", evidence.model.clone().unwrap_or_default());
    for reason in &evidence.reasons {
        let value = reason.value.map_or("missing".to_owned(), |value| value.to_string());
        line("because", format!("{} = {value} ({:+.3})", reason.feature, reason.effect));
    }
    line("since", rfc3339(verdict.created_unix_ms));
    line("until", format!("{} (in {})", rfc3339(verdict.until_unix_ms), left(view.remaining_seconds)));
    line("packets", format!("{} ({} bytes) in the kernel's table of verdicts", view.packets, view.bytes));
    text
}

fn allowed_text(entries: &[Entry]) -> String {
    let columns = ["kind", "never dropped", "why", "until", "note"];
    let rows = entries.iter().map(|entry| {
        let note = [entry.who.as_str(), entry.note.as_str()].map(str::to_owned);
        let note: Vec<String> = note.into_iter().filter(|text| !text.is_empty()).collect();
        [
            entry.item.kind().to_owned(),
            entry.item.to_string(),
            entry.why.name().to_owned(),
            entry.until_unix_ms.map_or_else(|| "-".to_owned(), rfc3339),
            note.join(": "),
        ]
    });
    table(&columns, &[], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_with_their_comments() {
        let list = "\u{feff}; Spamhaus DROP List 2026/11/30 - (c) The Spamhaus Project SLU\r\n; Last-Modified: today\r\n\
                    198.18.16.0/20 ; SBL256894\r\n198.18.64.0/24;SBL1\r\n\r\n2001:db8:66::/48 # ours\n// two more\n\
                    198.18.66.7 // it\n  tcp,198.18.66.7:4444,198.18.0.10:80\t#; //\n";
        let found: Vec<&str> = scopes_of(list).collect();
        assert_eq!(
            found,
            [
                "198.18.16.0/20",
                "198.18.64.0/24",
                "2001:db8:66::/48",
                "198.18.66.7",
                "tcp,198.18.66.7:4444,198.18.0.10:80"
            ]
        );
    }
}
