//! `sensor extract`: captures in, features out, without the kernel and without privileges.
//!
//! The frames go through the parser and the record update that the kernel programs run, so a model is trained on the
//! numbers that it is served. The identity `packets in = packets in records + Σ packets refused by cause` is checked for
//! every capture and printed.

pub mod capture;
mod export;
pub mod kernel;
pub mod labels;
pub mod link;
pub mod table;

#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use sensor_common::counter::Cause;
use sensor_common::flow::FlowRecord;

pub use export::{Endpoint, endpoints};

use capture::Capture;
use export::Export;
use labels::Labels;
use table::{Reason, Table, Timeouts};

/// What to extract, and where to.
#[derive(Clone, Debug, Default)]
pub struct ExtractOptions {
    /// Captures (pcap, pcapng), each with a flow table of its own.
    pub captures: Vec<PathBuf>,
    /// CSV file to write; must not exist. `None`: standard output.
    pub output: Option<PathBuf>,
    /// Packet counts at which a flow is written while it goes on; every flow is written when it ends.
    pub snapshots: Vec<u64>,
    /// Rules that label flows, see [`labels`].
    pub labels: Option<PathBuf>,
}

/// What became of the packets of captures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets that were read.
    pub packets: u64,
    /// Packets in records that ended.
    pub recorded: u64,
    /// Packets in no record, by [`Cause`].
    pub refused: [u64; Cause::COUNT],
    /// Flows that ended.
    pub flows: u64,
}

impl Totals {
    /// Adds another capture's totals.
    fn add(&mut self, other: &Totals) {
        let Totals { packets, recorded, refused, flows } = other;
        self.packets += packets;
        self.recorded += recorded;
        self.flows += flows;
        for (sum, more) in self.refused.iter_mut().zip(refused) {
            *sum += more;
        }
    }

    /// Whether every packet is accounted for.
    pub fn balance(&self) -> bool {
        self.packets == self.recorded + self.refused.iter().sum::<u64>()
    }
}

/// Extracts features from captures into CSV, and reports totals on standard error.
///
/// # Errors
/// If the output exists or cannot be written. A capture that cannot be read (to its end) does not stop the others: what
/// was read of it is in the output, and the error that is returned at the end names each such capture and packet.
pub fn extract(options: &ExtractOptions) -> Result<()> {
    let output: Box<dyn Write> = match &options.output {
        Some(path) => Box::new(create(path)?),
        None => Box::new(io::stdout().lock()),
    };
    match run(options, output, &mut io::stderr().lock()) {
        // The reader of the pipe had enough (`sensor extract … | head`).
        Err(error) if options.output.is_none() && is_broken_pipe(&error) => Ok(()),
        result => result.map(|_totals| ()),
    }
}

/// [`extract`] with explicit streams: rows go to `output`, one line per capture to `report`.
///
/// # Errors
/// As for [`extract`].
pub fn run(options: &ExtractOptions, output: Box<dyn Write + '_>, report: &mut dyn Write) -> Result<Totals> {
    ensure!(!options.captures.is_empty(), "no captures were named");
    ensure!(!options.snapshots.contains(&0), "a snapshot at 0 packets does not exist: start from 1");
    let labels = options.labels.as_deref().map(Labels::read).transpose()?.unwrap_or_default();
    let mut export = Export::new(output, labels).context("write the header")?;
    let mut all = Totals::default();
    let mut failures = Vec::new();
    for path in &options.captures {
        let (totals, outcome) = one(path, &options.snapshots, &mut export)?;
        ensure!(totals.balance(), "{}: packets are not accounted for ({totals:?}); please report this", path.display());
        all.add(&totals);
        writeln!(report, "{}: {}", path.display(), summary(&totals))?;
        if let Err(error) = outcome {
            let error = error.context(path.display().to_string());
            writeln!(report, "error: {error:#}")?;
            failures.push(error);
        }
    }
    export.finish().context("write the rows")?;
    writeln!(report, "total: {}, {} rows", summary(&all), export.rows())?;
    match failures.len() {
        0 => Ok(all),
        1 => Err(failures.remove(0)),
        many => {
            let list: Vec<String> = failures.iter().map(|error| format!("{error:#}")).collect();
            Err(anyhow!(
                "{many} of {} captures could not be read to their end:\n{}",
                options.captures.len(),
                list.join("\n")
            ))
        }
    }
}

/// One capture. The outer error is about the output; the inner one about the capture, of which everything before the
/// error has been written.
fn one(path: &Path, snapshots: &[u64], export: &mut Export<'_>) -> Result<(Totals, Result<()>)> {
    let name = path.display().to_string();
    let file_name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut table = Table::new(Timeouts::default(), snapshots.to_vec());
    let mut totals = Totals::default();
    let mut flows = 0;
    let mut recorded = 0;
    let mut sink = |record: &FlowRecord, reason: Reason| -> Result<()> {
        if reason != Reason::Snapshot {
            flows += 1;
            recorded += arrivals(record);
        }
        export.row(&name, &file_name, record, reason)
    };
    let mut outcome = Ok(());
    match open(path) {
        Ok(mut capture) => loop {
            let captured = match capture.read() {
                Ok(Some(captured)) => captured,
                Ok(None) => break,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            };
            match link::parse(&captured) {
                Ok(parsed) => {
                    totals.packets += 1;
                    match parsed {
                        Ok(packet) => table.packet(&packet, captured.time_ns, &mut sink)?,
                        Err(cause) => totals.refused[cause as usize] += 1,
                    }
                }
                Err(error) => {
                    outcome = Err(error.context(format!("packet {}", totals.packets + 1)));
                    break;
                }
            }
        },
        Err(error) => outcome = Err(error),
    }
    table.finish(&mut sink)?;
    totals.flows = flows;
    totals.recorded = recorded;
    Ok((totals, outcome))
}

fn open(path: &Path) -> Result<Capture<io::BufReader<File>>> {
    let file = File::open(path).context("open the capture")?;
    Capture::open(io::BufReader::with_capacity(1 << 18, file))
}

/// Frames that a record holds.
fn arrivals(record: &FlowRecord) -> u64 {
    record.forward().arrivals as u64 + record.reverse().map_or(0, |half| half.arrivals as u64)
}

fn summary(totals: &Totals) -> String {
    let Totals { packets, recorded, refused, flows } = totals;
    let mut text = format!("{packets} packets = {recorded} in {flows} flows");
    for cause in Cause::ALL {
        let count = refused[cause as usize];
        if count > 0 {
            text += &format!(" + {count} {}", cause.name());
        }
    }
    text
}

fn create(path: &Path) -> Result<File> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(file) => Ok(file),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("{} exists: remove it or name another output", path.display())
        }
        Err(error) => Err(error).with_context(|| format!("create {}", path.display())),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
            || cause.downcast_ref::<csv::Error>().is_some_and(
                |error| matches!(error.kind(), csv::ErrorKind::Io(error) if error.kind() == ErrorKind::BrokenPipe),
            )
    })
}
