//! `sensor support`: one archive with what others need to see what is wrong. Works with and without an agent, as any
//! user.
//!
//! Invariants: an item that cannot be had costs no other, and the archive's MANIFEST says why it is not there; without
//! [`Wanted::addresses`] no address and no secret leaves this host ([`redact`]). Called by `cli`.

mod archive;
mod host;
pub mod redact;

use std::future::Future;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;

use self::archive::Archive;
use crate::config::{self, Config, Source};
use crate::control;
use crate::view::{SortKey, StatusView};

/// Flows and verdicts of an archive with addresses, at most.
const MOST: usize = 10_000;

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Control socket of the agent.
    pub socket: PathBuf,
    /// The configuration file, if it is named.
    pub file: Option<PathBuf>,
    /// Variables that are settings.
    pub environment: Vec<(String, String)>,
    /// Unit of the agent, for its log.
    pub unit: String,
    /// With addresses, flows and verdicts.
    pub addresses: bool,
}

/// What an archive came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Items in it.
    pub items: usize,
    /// Items that could not be had.
    pub missing: usize,
}

/// Collects everything and writes it to `path`, which must not exist yet, readable for its owner only.
///
/// # Errors
/// The archive itself cannot be written; then there is none.
pub async fn write(wanted: &Wanted, path: &Path) -> Result<Summary> {
    let mut archive = Archive::begin(path, !wanted.addresses)?;
    collect(wanted, &mut archive).await?;
    archive.end(path)
}

async fn collect(wanted: &Wanted, archive: &mut Archive) -> Result<()> {
    let socket = wanted.socket.as_path();
    archive.add("versions.txt", Ok(host::versions()))?;
    let status = control::get_status(socket).await;
    let agent = Agent { socket, refused: status.as_ref().err().map(|error| format!("{error:#}")) };
    let status = status.ok();
    archive.add("status.json", agent.had(&status).and_then(json))?;
    let effective = agent.ask(control::get_config(socket)).await;
    let found = status.as_ref().and_then(|status| status.config.file.clone()).map(PathBuf::from);
    configuration(wanted, found, effective.map(|view| view.toml), archive)?;
    archive.add("metrics.txt", agent.ask(control::get_metrics(socket)).await)?;
    archive.add("log-agent.txt", agent.ask(control::get_log(socket)).await)?;
    archive.add("log-journal.txt", host::journal(&wanted.unit))?;
    let names = status.as_ref().map(interfaces).unwrap_or_default();
    let (report, details) = host::doctor(names);
    archive.add("doctor.txt", Ok(crate::doctor::render(&report)))?;
    archive.add("interfaces.json", json(&details))?;
    // Of one that hangs, too: its socket says whose it is.
    let listener = control::listener(socket).await.ok().and_then(|(_, pid)| pid);
    let process = listener.ok_or_else(|| agent.why()).and_then(host::process);
    archive.add("process.txt", process)?;
    for (name, why) in [("flows.json", "flows"), ("verdicts.json", "verdicts"), ("allow.json", "the never-drop list")] {
        if !wanted.addresses {
            archive.add(name, Err(anyhow::anyhow!("{why}: only with --with-addresses")))?;
            continue;
        }
        let text = match name {
            "flows.json" => agent.ask(control::get_flows(socket, SortKey::Bytes, MOST)).await.and_then(|it| json(&it)),
            "verdicts.json" => agent.ask(control::get_verdicts(socket, MOST)).await.and_then(|it| json(&it)),
            _ => agent.ask(control::get_allowed(socket)).await.and_then(|it| json(&it)),
        };
        archive.add(name, text)?;
    }
    Ok(())
}

/// The file as it is, what it comes to, and whether it is right.
fn configuration(
    wanted: &Wanted,
    of_agent: Option<PathBuf>,
    effective: Result<String>,
    archive: &mut Archive,
) -> Result<()> {
    let system = || Some(PathBuf::from(config::SYSTEM_FILE)).filter(|file| file.exists());
    let file = wanted.file.clone().or(of_agent).or_else(system);
    archive.add("config-in-force.toml", effective)?;
    let text = match &file {
        Some(file) => config::read(file).map(|text| without_comments(&text)),
        None => {
            Err(anyhow::anyhow!("no file is known: the agent has none, or there is no agent; name one with --config"))
        }
    };
    archive.add("config-file.toml", text)?;
    let source = Source { file: file.clone(), environment: wanted.environment.clone(), flags: Vec::new() };
    let resolved = source.resolve();
    let name = file.map_or_else(|| "the defaults and the environment".to_owned(), |file| file.display().to_string());
    let check = match &resolved {
        Ok(_) => format!("{name}: right\n"),
        Err(wrong) => format!("{}\n", wrong.0.join("\n")),
    };
    archive.add("config-check.txt", Ok(check))?;
    let resolved = resolved.map_err(Into::into).and_then(|config: Config| config.to_toml());
    archive.add("config-resolved.toml", resolved)
}

/// The file's settings. What people write into comments is nobody else's.
fn without_comments(text: &str) -> String {
    match text.parse::<toml::Table>() {
        Ok(table) => table.to_string(),
        // It cannot be told what of a wrong file is a comment: config-check.txt says what is wrong.
        Err(_) => "(the file is no TOML and is left out; see config-check.txt)\n".to_owned(),
    }
}

fn interfaces(status: &StatusView) -> Vec<String> {
    status.interfaces.iter().map(|interface| interface.name.clone()).collect()
}

fn json(value: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(value).context("cannot write JSON")? + "\n")
}

/// The agent, if it answers.
struct Agent<'a> {
    socket: &'a Path,
    refused: Option<String>,
}

impl Agent<'_> {
    /// An answer. An agent that did not answer once is not waited for again.
    async fn ask<T>(&self, answer: impl Future<Output = Result<T>>) -> Result<T> {
        match &self.refused {
            None => answer.await,
            Some(_) => Err(self.why()),
        }
    }

    /// What the status told.
    fn had<'b, T>(&self, value: &'b Option<T>) -> Result<&'b T> {
        value.as_ref().ok_or_else(|| self.why())
    }

    fn why(&self) -> anyhow::Error {
        let socket = self.socket.display();
        let refused = self.refused.clone().unwrap_or_else(|| format!("the agent at {socket} did not answer"));
        anyhow::anyhow!(refused)
    }
}
