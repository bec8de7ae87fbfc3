//! The engine of `sensor extract --kernel`: native code conducts, the programs in the kernel count.
//!
//! [`Pair`] gives each frame to both and hands over records in pairs; [`InKernel`] keeps the kernel's half. Called by
//! [`super::super::run`], and by the comparison of both halves in the project's tests.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};
use sensor_common::context::{DEFAULT_SERVICES, DEFAULT_SOURCES};
use sensor_common::counter::Cause;
use sensor_common::flow::FlowRecord;

use super::super::capture::Captured;
use super::super::engine::{Engine, Native, Sink, Stop};
use super::super::export::endpoints;
use super::super::table::{Reason, Table};
use super::{Fit, KernelReplay, Unfit};
use crate::bpf::load::ContextTables;
use crate::context::HostNotes;

/// Takes records in pairs: the kernel's, if it has one, and the host's.
pub type PairSink<'a> = dyn FnMut(Option<&FlowRecord>, &FlowRecord, Reason) -> Result<()> + 'a;

/// One capture through both.
pub struct Pair<'k> {
    kernel: &'k mut KernelReplay,
    host: Native,
    /// Frames that the programs were not given, by why; those that belong to a flow are in no record of the host either.
    not_run: HashMap<(Unfit, Option<Cause>), u64>,
    runs: u64,
    /// The programs' host context, kept here.
    notes: HostNotes,
    /// How much the kernel's clock is ahead of the host's, for tests of the comparison.
    skew_ns: u64,
}

impl<'k> Pair<'k> {
    /// Begins a capture. `table` is the host's.
    ///
    /// # Errors
    /// If the kernel's table cannot be cleared.
    pub fn begin(kernel: &'k mut KernelReplay, table: Table, skew_ns: u64) -> Result<Pair<'k>> {
        kernel.begin()?;
        let notes = HostNotes::new(kernel.seed(), DEFAULT_SOURCES, DEFAULT_SERVICES);
        let host = Native::with_parser(table, kernel.parser());
        Ok(Pair { kernel, host, not_run: HashMap::new(), runs: 0, notes, skew_ns })
    }

    /// Frames that the programs were given.
    pub fn runs(&self) -> u64 {
        self.runs
    }

    /// Frames that the programs were not given, by why and, where they belong to no flow, by the host's cause.
    pub fn not_run(&self) -> &HashMap<(Unfit, Option<Cause>), u64> {
        &self.not_run
    }

    /// The host context of both: the kernel's, and the host's.
    pub fn contexts(&self) -> (Option<&ContextTables>, &HostNotes) {
        (self.kernel.context(), &self.notes)
    }

    /// Frames that the host refused, by cause.
    pub fn refused_by_host(&self) -> [u64; Cause::COUNT] {
        self.with_not_run(self.host.refused())
    }

    /// Frames that the programs refused, by cause.
    ///
    /// # Errors
    /// If the kernel refuses to read its counters.
    pub fn refused(&self) -> Result<[u64; Cause::COUNT]> {
        let mut refused = [0; Cause::COUNT];
        refused.copy_from_slice(&self.kernel.refused()?[..Cause::COUNT]);
        Ok(self.with_not_run(refused))
    }

    /// Adds the frames that neither was given because they are in no flow.
    fn with_not_run(&self, mut refused: [u64; Cause::COUNT]) -> [u64; Cause::COUNT] {
        for ((_, cause), count) in &self.not_run {
            if let Some(cause) = cause {
                refused[*cause as usize] += count;
            }
        }
        refused
    }

    /// Takes the next frame of the capture.
    ///
    /// # Errors
    /// See [`Stop`].
    pub fn frame(&mut self, captured: &Captured<'_>, sink: &mut PairSink<'_>) -> Result<(), Stop> {
        let Pair { kernel, host, not_run, runs, notes, skew_ns } = self;
        let (parsed, unfit) = match kernel.fit(captured).map_err(Stop::Capture)? {
            Fit::Frame(_, parsed) => (parsed, None),
            Fit::Refused(cause, unfit) => (Err(cause), Some((unfit, Some(cause)))),
            Fit::Unfit(unfit) => {
                *not_run.entry((unfit, None)).or_default() += 1;
                return Ok(());
            }
        };
        if let Some(unfit) = unfit {
            *not_run.entry(unfit).or_default() += 1;
            return Ok(());
        }
        *runs += 1;
        let key = parsed.ok().map(|packet| packet.key);
        let mut turn = kernel.turn(captured.time_ns.saturating_add(*skew_ns), key);
        let (held, mut ended) = (host.flows(), 0);
        let mut both = |native: &FlowRecord, reason: Reason| {
            ended += (reason.is_end() && reason != Reason::Cut) as usize;
            sink(turn.fetch(native, reason)?.as_ref(), native, reason)
        };
        host.frame(captured, &mut both)?;
        host.pause(&mut both).map_err(Stop::Failed)?;
        if let Ok(packet) = &parsed
            && host.flows() + ended > held
        {
            notes.note(packet, captured.time_ns);
        }
        turn.finish().map_err(Stop::Failed)?;
        match kernel.next_given_up() {
            Some(record) => Err(Stop::Failed(anyhow::anyhow!(
                "the programs gave up the record of {} though there was room; please report this",
                name(&record)
            ))),
            None => Ok(()),
        }
    }

    /// The capture is over: ends every flow; the records that the kernel holds and the host does not, of which there
    /// should be none.
    ///
    /// # Errors
    /// Those of `sink`, or if the kernel's table cannot be read.
    pub fn finish(&mut self, sink: &mut PairSink<'_>) -> Result<Vec<FlowRecord>> {
        let mut turn = self.kernel.last_turn();
        let mut both = |native: &FlowRecord, reason| sink(turn.fetch(native, reason)?.as_ref(), native, reason);
        self.host.finish(&mut both)?;
        self.kernel.left().context("the kernel's table at the end of the capture")
    }
}

impl<F: FnMut(&FlowRecord, Reason) -> Result<()>> Sink for F {
    fn record(&mut self, record: &FlowRecord, reason: Reason) -> Result<()> {
        self(record, reason)
    }
}

/// The kernel's records.
pub struct InKernel<'k> {
    pair: Pair<'k>,
    refused: [u64; Cause::COUNT],
}

impl<'k> InKernel<'k> {
    /// An engine for one capture; `table` is the host's, which says when flows end.
    ///
    /// # Errors
    /// If the kernel's table cannot be cleared.
    pub fn new(kernel: &'k mut KernelReplay, table: Table) -> Result<InKernel<'k>> {
        Ok(InKernel { pair: Pair::begin(kernel, table, 0)?, refused: [0; Cause::COUNT] })
    }
}

/// The kernel's half of a pair, to `sink`.
fn kernels<'a>(sink: &'a mut dyn Sink) -> impl FnMut(Option<&FlowRecord>, &FlowRecord, Reason) -> Result<()> + use<'a> {
    |kernel, host, reason| {
        let lost = || format!("the programs have no record of {}; please report this", name(host));
        sink.record(kernel.with_context(lost)?, reason)
    }
}

impl Engine for InKernel<'_> {
    fn frame(&mut self, captured: &Captured<'_>, sink: &mut dyn Sink) -> Result<(), Stop> {
        self.pair.frame(captured, &mut kernels(sink))
    }

    /// Every frame is counted at once.
    fn pause(&mut self, _sink: &mut dyn Sink) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self, sink: &mut dyn Sink) -> Result<()> {
        let left = self.pair.finish(&mut kernels(sink))?;
        if let Some(record) = left.first() {
            let (more, flow) = (left.len(), name(record));
            bail!("the programs hold {more} records that native code does not make, first {flow}; please report this");
        }
        self.refused = self.pair.refused()?;
        Ok(())
    }

    fn refused(&self) -> [u64; Cause::COUNT] {
        self.refused
    }

    fn left_out(&self) -> Vec<(&'static str, u64)> {
        let in_flows = self.pair.not_run().iter().filter(|((_, cause), _)| cause.is_none());
        let mut left_out: Vec<_> = in_flows.map(|((unfit, _), count)| (unfit.name(), *count)).collect();
        left_out.sort_unstable();
        left_out
    }

    fn flows(&self) -> usize {
        self.pair.host.flows()
    }
}

/// A flow for people: endpoints and protocol.
pub fn name(record: &FlowRecord) -> String {
    let (source, destination) = endpoints(record);
    let [source, destination] = [source, destination].map(|end| std::net::SocketAddr::new(end.address, end.port));
    format!("{source} > {destination} protocol {}", record.key.protocol)
}
