//! `sensor extract`: captures in, features out, without the kernel and without privileges.
//!
//! The frames go through the parser and the record update that the kernel programs run, so a model is trained on the
//! numbers that it is served. The identity `packets in = packets in records + Σ packets refused by cause` is checked for
//! every capture and printed.

pub mod capture;
pub mod engine;
mod export;
pub mod kernel;
pub mod labels;
pub mod link;
mod output;
mod progress;
mod reader;
mod rows;
pub mod score;
mod source;
pub mod table;
pub mod view;

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::collections::HashSet;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use sensor_common::context::HostContext;
use sensor_common::counter::Cause;
use sensor_common::features::Sample;
use sensor_common::flow::FlowRecord;
use sensor_common::packet;

use crate::context::REPLAY_SEED;

pub use export::{Endpoint, endpoints};
pub use rows::Format;
pub use view::View;

use capture::Capture;
use engine::{Engine, Native, Stop};
use export::Export;
use kernel::KernelReplay;
use kernel::engine::InKernel;
use labels::Labels;
use output::Output;
use progress::Progress;
use reader::{Next, Reader};
use source::Source;
use table::{DEFAULT_MAX_FLOWS, Reason, Table, Timeouts};

/// What to extract, and where to.
#[derive(Clone, Debug)]
pub struct ExtractOptions {
    /// Captures (pcap, pcapng; plain, gzip or zstd), each with a flow table of its own; `-` is standard input.
    pub captures: Vec<PathBuf>,
    /// File to write. `None` and `-`: standard output.
    pub output: Option<PathBuf>,
    /// Whether the file may exist, and is replaced then.
    pub force: bool,
    /// Form of the rows; `None`: by the ending of the output's name.
    pub format: Option<Format>,
    /// Columns of the rows.
    pub view: View,
    /// Packet counts at which a flow is written while it goes on; every flow is written when it ends.
    pub snapshots: Vec<u64>,
    /// Rules that label flows, see [`labels`].
    pub labels: Option<PathBuf>,
    /// A flow without packets for this long is over, unless it is an established TCP connection; `None`: as the view
    /// has it.
    pub idle_timeout: Option<Duration>,
    /// An established TCP connection without packets for this long is over; `None`: as the view has it.
    pub established_timeout: Option<Duration>,
    /// A flow this old is cut in two; `None`: as the view has it.
    pub active_timeout: Option<Duration>,
    /// Flows that are held at once.
    pub max_flows: usize,
    /// Tunnels whose inner flows are counted, and whether first payload bytes are looked at.
    pub parser: packet::Options,
    /// Whether the programs in the kernel count, see [`kernel`].
    pub kernel: bool,
    /// Whether a terminal sees a progress bar.
    pub progress: bool,
}

impl Default for ExtractOptions {
    fn default() -> ExtractOptions {
        ExtractOptions {
            captures: Vec::new(),
            output: None,
            force: false,
            format: None,
            view: View::default(),
            snapshots: Vec::new(),
            labels: None,
            idle_timeout: None,
            established_timeout: None,
            active_timeout: None,
            max_flows: DEFAULT_MAX_FLOWS,
            parser: packet::Options::NONE,
            kernel: false,
            progress: false,
        }
    }
}

impl ExtractOptions {
    /// Checks what can be checked before anything is read or written.
    fn check(&self) -> Result<()> {
        ensure!(!self.captures.is_empty(), "no captures were named");
        ensure!(!self.snapshots.contains(&0), "a snapshot at 0 packets does not exist: start from 1");
        ensure!(self.max_flows > 0, "at least one flow must be held");
        let given =
            [("idle", self.idle_timeout), ("established", self.established_timeout), ("active", self.active_timeout)];
        for (name, value) in given {
            ensure!(value != Some(Duration::ZERO), "an {name} timeout of 0 would make every packet a flow of its own");
        }
        ensure!(
            !self.kernel || self.timeouts().reopen,
            "--kernel: the programs begin a new record where this view goes on with a closed flow's; leave out --kernel, or \
             take the view sensor"
        );
        let mut seen = HashSet::new();
        for path in &self.captures {
            // A name that leads nowhere is reported when it is opened.
            let known = path.canonicalize().unwrap_or_else(|_| path.clone());
            ensure!(seen.insert(known), "{} is named twice: its flows would be written twice", path.display());
        }
        if let Some(output) = self.output.as_deref().filter(|output| output.is_file())
            && let Ok(known) = output.canonicalize()
        {
            ensure!(!seen.contains(&known), "{} is a capture that is read: name another output", output.display());
        }
        Ok(())
    }

    fn timeouts(&self) -> Timeouts {
        let mut timeouts = self.view.timeouts();
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        // A view that knows no second timeout has one for all flows.
        let one = timeouts.established_ns == timeouts.idle_ns;
        timeouts.idle_ns = self.idle_timeout.map_or(timeouts.idle_ns, ns);
        let established = if one { timeouts.idle_ns } else { timeouts.established_ns };
        timeouts.established_ns = self.established_timeout.map_or(established, ns).max(timeouts.idle_ns);
        timeouts.active_ns = self.active_timeout.map_or(timeouts.active_ns, ns);
        timeouts
    }

    /// The engine for one capture.
    ///
    /// `context` gets the host context of each record that is handed over, if the view shows it.
    fn engine<'k>(
        &self,
        kernel: Option<&'k mut KernelReplay>,
        context: &Rc<Cell<HostContext>>,
    ) -> Result<Box<dyn Engine + 'k>> {
        let mut table = Table::new(self.timeouts(), self.snapshots.clone()).with_max_flows(self.max_flows);
        if self.view == View::Sensor {
            table = table.with_context(REPLAY_SEED, Rc::clone(context));
        }
        Ok(match kernel {
            Some(kernel) => Box::new(InKernel::new(kernel, table)?),
            None => Box::new(Native::new(table).with_options(self.parser)),
        })
    }
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
    /// Packets that belong to a flow and could not be given to the programs in the kernel; 0 without them.
    pub left_out: u64,
}

impl Totals {
    /// Adds another capture's totals.
    fn add(&mut self, other: &Totals) {
        let Totals { packets, recorded, refused, flows, left_out } = other;
        self.packets += packets;
        self.left_out += left_out;
        self.recorded += recorded;
        self.flows += flows;
        for (sum, more) in self.refused.iter_mut().zip(refused) {
            *sum += more;
        }
    }

    /// Whether every packet is accounted for.
    pub fn balance(&self) -> bool {
        self.packets == self.recorded + self.refused.iter().sum::<u64>() + self.left_out
    }
}

/// Extracts features from captures, and reports totals on standard error.
///
/// # Errors
/// If the output exists or cannot be written: then there is no output. A capture that cannot be read (to its end) does
/// not stop the others: what was read of it is in the output, and the error that is returned at the end names each such
/// capture and packet.
pub fn extract(options: &ExtractOptions) -> Result<()> {
    options.check()?;
    let format = options.format.map_or_else(|| Format::of(options.output.as_deref()), Ok)?;
    let output = Output::open(options.output.as_deref(), options.force)?;
    let options = ExtractOptions { format: Some(format), ..options.clone() };
    match write(&options, Box::new(output.writer()?), &mut io::stderr().lock()) {
        Ok(Outcome { totals: _, failure }) => {
            output.commit()?;
            failure.map_or(Ok(()), Err)
        }
        Err(error) => {
            let left = output.abandon();
            let error = if is_broken_pipe(&error) { anyhow!("whoever read the rows stopped reading") } else { error };
            Err(error.context(left))
        }
    }
}

/// [`extract`] with explicit streams: rows go to `output`, one line per capture to `report`.
///
/// # Errors
/// As for [`extract`].
pub fn run(options: &ExtractOptions, output: Box<dyn Write + Send + '_>, report: &mut dyn Write) -> Result<Totals> {
    options.check()?;
    let Outcome { totals, failure } = write(options, output, report)?;
    failure.map_or(Ok(totals), Err)
}

/// What came out of a run whose output is good.
struct Outcome {
    totals: Totals,
    /// Captures that could not be read to their end.
    failure: Option<anyhow::Error>,
}

fn write(options: &ExtractOptions, output: Box<dyn Write + Send + '_>, report: &mut dyn Write) -> Result<Outcome> {
    let labels = options.labels.as_deref().map(Labels::read).transpose()?.unwrap_or_default();
    let mut export = Export::new(options.view, options.format.unwrap_or_default(), output, labels)?;
    let mut kernel = options.kernel.then(|| KernelReplay::load(kernel::DEFAULT_FLOWS, options.parser)).transpose()?;
    let mut all = Totals::default();
    let mut failures = Vec::new();
    for path in &options.captures {
        let (totals, outcome) = one(path, options, kernel.as_mut(), &mut export, report)?;
        ensure!(totals.balance(), "{}: packets are not accounted for ({totals:?}); please report this", path.display());
        all.add(&totals);
        // A report that nobody reads must not cost the rows.
        let _unread = writeln!(report, "{}: {}", path.display(), summary(&totals));
        if let Err(error) = outcome {
            let error = error.context(path.display().to_string());
            let _unread = writeln!(report, "error: {error:#}");
            failures.push(error);
        }
    }
    export.finish()?;
    let rows = export.rows();
    let _unread = writeln!(report, "total: {}, {rows} rows", summary(&all));
    Ok(Outcome { totals: all, failure: failure(failures, options.captures.len()) })
}

/// What is said at the end of those of `captures` that could not be read to their end; each error names its own.
fn failure(mut failures: Vec<anyhow::Error>, captures: usize) -> Option<anyhow::Error> {
    match failures.len() {
        0 => None,
        1 => failures.pop(),
        many => {
            let list: Vec<String> = failures.iter().map(|error| format!("{error:#}")).collect();
            Some(anyhow!("{many} of {captures} captures could not be read to their end:\n{}", list.join("\n")))
        }
    }
}

/// Opens a capture, plain or compressed; `-` is standard input.
///
/// # Errors
/// If it cannot be read, or is no capture.
pub fn open(path: &Path) -> Result<Capture<Box<dyn io::Read>>> {
    Capture::open(Source::open(path)?.input)
}

/// How long rows of a stream are collected at most before they are handed over.
const FLUSH: Duration = Duration::from_secs(1);

/// One capture. The outer error is about the output; the inner one about the capture, of which everything before the
/// error has been written.
fn one(
    path: &Path,
    options: &ExtractOptions,
    kernel: Option<&mut KernelReplay>,
    export: &mut Export<'_>,
    report: &mut dyn Write,
) -> Result<(Totals, Result<()>)> {
    let name = path.display().to_string();
    let file_name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let context = Rc::new(Cell::new(HostContext::NONE));
    let mut engine = options.engine(kernel, &context)?;
    let mut totals = Totals::default();
    let opened = Source::open(path).and_then(|source| {
        let Source { input, len, read } = source;
        Ok((Reader::new(Capture::open(input)?), len, read))
    });
    let (mut capture, len, read) = match opened {
        Ok(opened) => opened,
        Err(error) => return Ok((totals, Err(error))),
    };
    let progress = Progress::new(options.progress, &file_name, len);
    let mut flushed = Instant::now();
    let mut sink = Counting { export, capture: &name, file: &file_name, context: &context, flows: 0, recorded: 0 };
    let outcome = loop {
        // What follows may have to be waited for: whoever reads the rows need not wait with us.
        if len.is_none() && capture.is_drained() {
            engine.pause(&mut sink)?;
            if flushed.elapsed() >= FLUSH {
                sink.export.flush()?;
                flushed = Instant::now();
            }
        }
        match capture.next() {
            Ok(Next::Packet(captured)) => match engine.frame(&captured, &mut sink) {
                Ok(()) => {}
                Err(Stop::Capture(error)) => break Err(error.context(format!("packet {}", capture.packets()))),
                Err(Stop::Failed(error)) => return Err(error),
            },
            Ok(Next::Foreign) => {}
            Ok(Next::End) => break capture.check(),
            Err(error) => break Err(error),
        }
        totals.packets += 1;
        progress.packet(totals.packets, || (read.get(), engine.flows()));
    };
    engine.finish(&mut sink)?;
    totals.refused = engine.refused();
    totals.refused[Cause::NotIp as usize] += capture.foreign();
    for note in capture.notes() {
        let _unread = writeln!(report, "{name}: {note}");
    }
    for (why, count) in engine.left_out() {
        totals.left_out += count;
        let _unread = writeln!(report, "{name}: {count} packets are in no flow, because they are {why}");
    }
    totals.flows = sink.flows;
    totals.recorded = sink.recorded;
    Ok((totals, outcome))
}

/// Writes rows, and counts what is in them.
struct Counting<'a, 'b> {
    export: &'a mut Export<'b>,
    capture: &'a str,
    file: &'a str,
    /// That of the record.
    context: &'a Cell<HostContext>,
    /// Flows that ended.
    flows: u64,
    /// Frames in them.
    recorded: u64,
}

impl engine::Sink for Counting<'_, '_> {
    fn record(&mut self, record: &FlowRecord, reason: Reason) -> Result<()> {
        if reason.is_end() {
            self.flows += 1;
            self.recorded += arrivals(record);
        }
        let sample = Sample { record, context: &self.context.get() };
        self.export.row(self.capture, self.file, &sample, reason)
    }
}

/// Frames that a record holds.
fn arrivals(record: &FlowRecord) -> u64 {
    record.forward().arrivals() + record.reverse().map_or(0, |half| half.arrivals())
}

fn summary(totals: &Totals) -> String {
    let Totals { packets, recorded, refused, flows, left_out } = totals;
    let mut text = format!("{packets} packets = {recorded} in {flows} flows");
    for cause in Cause::ALL {
        let count = refused[cause as usize];
        if count > 0 {
            text += &format!(" + {count} {}", cause.name());
        }
    }
    if *left_out > 0 {
        text += &format!(" + {left_out} left out");
    }
    text
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe))
}
