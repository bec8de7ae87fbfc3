//! Native code against the programs in the kernel, record by record and integer by integer.
//!
//! Both are offered the same frames at the same times; every record that ends or reaches a snapshot, and every count of
//! refused packets, must be the same. What cannot be compared is counted with its reason, never left out in silence.
//! Used by `sensor-parity` (`cargo xtask parity`), by `tests/parity.rs` and by property tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sensor::bpf::load::ContextTables;
use sensor::context::HostNotes;
use sensor::replay::capture::Captured;
use sensor::replay::engine::Stop;
use sensor::replay::kernel::KernelReplay;
use sensor::replay::kernel::engine::{Pair, name};
use sensor::replay::table::{Reason, Table, Timeouts};
use sensor_common::counter::Cause;
use sensor_common::flow::FlowRecord;
use sensor_common::packet::Options;

use crate::differences::{Difference, context_differences, differences};

/// Packet counts at which records are compared before they end.
const SNAPSHOTS: [u64; 4] = [1, 4, 32, 256];
/// Flows that native code holds at once: more than any capture has.
const MAX_FLOWS: usize = 1 << 22;
/// What the parsers read, by name: as the agent is set by default, and all there is.
pub const SETTINGS: [(&str, Options); 2] =
    [("default settings", Options::NONE), ("tunnels and payload hints", Options::ALL)];
/// Mismatches that are described; all are counted.
const DESCRIBED: usize = 50;

/// Two values that should be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Flow, and why its record was handed over.
    pub flow: String,
    /// Field of the record.
    pub field: String,
    /// What the kernel has.
    pub kernel: String,
    /// What native code has.
    pub native: String,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Mismatch { flow, field, kernel, native } = self;
        write!(f, "{flow}: {field}: kernel {kernel}, native {native}")
    }
}

/// What came of the comparison of one capture, or of several.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Frames that were offered to both.
    pub packets: u64,
    /// Records that ended and were compared.
    pub flows: u64,
    /// Records that were compared at snapshots.
    pub snapshots: u64,
    /// Entries of the host context that were compared.
    pub context_entries: u64,
    /// Frames that were not compared, by reason.
    pub not_compared: BTreeMap<String, u64>,
    /// Values that differ.
    pub mismatches: u64,
    /// The first of them.
    pub described: Vec<Mismatch>,
    /// Why the capture was not read to its end, or at all.
    pub stopped: Option<String>,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Outcome { packets, flows, snapshots, context_entries, not_compared, mismatches, described: _, stopped: _ } =
            self;
        write!(
            f,
            "{packets} packets, {flows} flows, {snapshots} snapshots, {context_entries} context entries, {mismatches} mismatches"
        )?;
        for (reason, count) in not_compared {
            write!(f, "; not compared: {count} packets {reason}")?;
        }
        Ok(())
    }
}

impl Outcome {
    fn mismatch(&mut self, flow: impl Into<String>, field: &str, kernel: impl ToString, native: impl ToString) {
        self.mismatches += 1;
        if self.described.len() < DESCRIBED {
            let (kernel, native) = (kernel.to_string(), native.to_string());
            self.described.push(Mismatch { flow: flow.into(), field: field.to_owned(), kernel, native });
        }
    }

    /// Compares the host context after a capture.
    fn contexts(&mut self, (kernel, native): (Option<&ContextTables>, &HostNotes)) {
        let (entries, different) = context_differences(kernel, native);
        self.context_entries += entries;
        for Difference { field, left, right } in different {
            self.mismatch("host context", &field, left, right);
        }
    }

    /// Adds another capture's numbers, without its descriptions.
    pub fn add(&mut self, other: &Outcome) {
        let Outcome { packets, flows, snapshots, context_entries, not_compared, mismatches, described: _, stopped: _ } =
            other;
        self.packets += packets;
        self.flows += flows;
        self.snapshots += snapshots;
        self.context_entries += context_entries;
        self.mismatches += mismatches;
        for (reason, count) in not_compared {
            *self.not_compared.entry(reason.clone()).or_default() += count;
        }
    }
}

/// The programs, loaded once for any number of captures.
#[derive(Debug)]
pub struct Parity {
    kernel: KernelReplay,
    skew_ns: u64,
}

impl Parity {
    /// Loads the programs with a table of at least `flows` flows. `options`: what the parsers read.
    ///
    /// # Errors
    /// Without root.
    pub fn load(flows: usize, options: Options) -> Result<Parity> {
        Ok(Parity { kernel: KernelReplay::load(flows, options)?, skew_ns: 0 })
    }

    /// Puts the kernel's clock ahead of the host's, so that there is something to find.
    pub fn skew_ns(&mut self, skew_ns: u64) {
        self.skew_ns = skew_ns;
    }

    /// Compares a capture up to its end, or to where it cannot be read any more.
    ///
    /// # Errors
    /// If the kernel does not do what it is asked to. A file that is no capture is no error: see
    /// [`Outcome::stopped`].
    pub fn capture(&mut self, path: &Path) -> Result<Outcome> {
        let mut capture = match sensor::replay::open(path) {
            Ok(capture) => capture,
            Err(error) => return Ok(Outcome { stopped: Some(format!("{error:#}")), ..Outcome::default() }),
        };
        let mut run = Run::begin(self)?;
        loop {
            let captured = match capture.read() {
                Ok(Some(captured)) => captured,
                Ok(None) => break,
                Err(error) => {
                    run.outcome.stopped = Some(format!("{error:#}"));
                    break;
                }
            };
            if let Some(stopped) = run.frame(&captured)? {
                run.outcome.stopped = Some(stopped);
                break;
            }
        }
        run.finish()
    }

    /// Compares frames that arrived at times in ns.
    ///
    /// # Errors
    /// If the kernel does not do what it is asked to.
    pub fn frames<'f>(&mut self, frames: impl IntoIterator<Item = (u64, &'f [u8])>) -> Result<Outcome> {
        let mut run = Run::begin(self)?;
        for (time_ns, bytes) in frames {
            run.frame(&Captured { time_ns, link: 1, bytes, wire_len: bytes.len() as u32 })?;
        }
        run.finish()
    }
}

/// A comparison under way.
struct Run<'k> {
    pair: Pair<'k>,
    outcome: Outcome,
}

impl<'k> Run<'k> {
    fn begin(parity: &'k mut Parity) -> Result<Run<'k>> {
        let Parity { kernel, skew_ns } = parity;
        let table = Table::new(Timeouts::default(), SNAPSHOTS.to_vec()).with_max_flows(MAX_FLOWS);
        Ok(Run { pair: Pair::begin(kernel, table, *skew_ns)?, outcome: Outcome::default() })
    }

    /// Offers one frame to both; why the capture cannot be read, if it cannot.
    fn frame(&mut self, captured: &Captured<'_>) -> Result<Option<String>> {
        let Run { pair, outcome } = self;
        match pair.frame(captured, &mut |kernel, native, reason| {
            compare(kernel, native, reason, outcome);
            Ok(())
        }) {
            Ok(()) => Ok(None),
            Err(Stop::Capture(error)) => Ok(Some(format!("{error:#}"))),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    fn finish(self) -> Result<Outcome> {
        let Run { mut pair, mut outcome } = self;
        let left = pair.finish(&mut |kernel, native, reason| {
            compare(kernel, native, reason, &mut outcome);
            Ok(())
        })?;
        for record in left {
            outcome.mismatch(name(&record), "(record)", "present", "absent");
        }
        let (kernel, native) = (pair.refused()?, pair.refused_by_host());
        for cause in Cause::ALL {
            let (kernel, native) = (kernel[cause as usize], native[cause as usize]);
            if kernel != native {
                outcome.mismatch("packets in no record", cause.name(), kernel, native);
            }
        }
        outcome.contexts(pair.contexts());
        outcome.packets = pair.runs();
        for ((unfit, cause), count) in pair.not_run() {
            let reason = match cause {
                Some(cause) => format!("{} (natively {})", unfit.name(), cause.name()),
                None => unfit.name().to_owned(),
            };
            outcome.not_compared.insert(reason, *count);
        }
        Ok(outcome)
    }
}

fn compare(kernel: Option<&FlowRecord>, native: &FlowRecord, reason: Reason, outcome: &mut Outcome) {
    match reason {
        Reason::Snapshot(_) => outcome.snapshots += 1,
        _ => outcome.flows += 1,
    }
    let flow = || format!("{} ({} at packet {})", name(native), reason.name(), native.packets());
    let Some(kernel) = kernel else {
        outcome.mismatch(flow(), "(record)", "absent", "present");
        return;
    };
    for difference in differences(kernel, native) {
        outcome.mismatch(flow(), &difference.field, difference.left, difference.right);
    }
}

/// The files that are named, and those in the folders that are, in order.
///
/// # Errors
/// If a folder cannot be read.
pub fn captures(named: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in named {
        if path.is_dir() {
            let entries = std::fs::read_dir(path).with_context(|| format!("read the folder {}", path.display()))?;
            let mut inside: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            inside.sort();
            files.extend(captures(&inside)?);
        } else {
            files.push(path.clone());
        }
    }
    Ok(files)
}
