//! One set of frames over the wire: what native code makes of them meanwhile, and the comparison at the end.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use sensor::bpf::load::ContextTables;
use sensor::context::HostNotes;
use sensor::replay::capture::Captured;
use sensor::replay::kernel::engine::name;
use sensor::replay::kernel::{Fit, Unfit};
use sensor::replay::table::{Reason, Table, Timeouts};
use sensor_common::context::{DEFAULT_SERVICES, DEFAULT_SOURCES};
use sensor_common::counter::{Cause, InterfaceCounters};
use sensor_common::flow::{FlowKey, FlowRecord};
use sensor_common::packet;

use super::{Clock, Crossing, Way, Wire, seen};
use crate::differences::{Difference, context_differences, differences};

/// How long a frame may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same where the network stack may have dropped it before the hook.
const IMPATIENCE: Duration = Duration::from_millis(20);
/// Frames up to here are in one piece at TC. Of longer ones the programs read the first 128 bytes, behind which the headers
/// in a tunnel may lie: see docs/parity.md.
const ONE_PIECE: usize = 3500;
/// Differences that are kept.
const KEPT: usize = 50;

/// Frames under way.
pub(super) struct Run<'w> {
    wire: &'w mut Wire,
    table: Table,
    notes: HostNotes,
    refused: [u64; Cause::COUNT],
    before: InterfaceCounters,
    /// Time of the last frame, on the clock of the programs.
    now_ns: u64,
    /// Records that left the programs' table, and the host's.
    handed_over: Vec<FlowRecord>,
    reopened: Vec<FlowRecord>,
    crossing: Crossing,
}

impl<'w> Run<'w> {
    pub(super) fn begin(wire: &'w mut Wire) -> Result<Run<'w>> {
        // Flows of a live table end when the agent says so: here at the end.
        let never = Timeouts {
            idle_ns: u64::MAX,
            established_ns: u64::MAX,
            active_ns: u64::MAX,
            linger_ns: u64::MAX,
            ..Timeouts::default()
        };
        if wire.fitter.begin() {
            wire.kernel.forget_fragments()?;
        }
        if let Some(ContextTables { sources, services }) = &wire.kernel.context {
            sources.clear();
            services.clear();
        }
        let notes = HostNotes::new(wire.kernel.seed(), DEFAULT_SOURCES, DEFAULT_SERVICES);
        Ok(Run {
            before: wire.counters()?,
            now_ns: monotonic_ns(),
            wire,
            table: Table::new(never, Vec::new()).with_max_flows(1 << 20),
            notes,
            refused: [0; Cause::COUNT],
            handed_over: Vec::new(),
            reopened: Vec::new(),
            crossing: Crossing::default(),
        })
    }

    /// Sends one frame; why the capture cannot be read on, if it cannot.
    pub(super) fn frame(&mut self, captured: &Captured<'_>) -> Result<Option<String>> {
        let Run { wire, table, notes, refused, before, now_ns, handed_over, reopened, crossing } = self;
        let Wire { sender, kernel, fitter, way, clock, .. } = &mut **wire;
        let time_ns = if *clock == Clock::Replay { captured.time_ns } else { *now_ns };
        let parsed = match fitter.fit(&Captured { time_ns, ..*captured }) {
            Ok(Fit::Frame(_, parsed)) => parsed,
            Ok(Fit::Refused(_, unfit) | Fit::Unfit(unfit)) => {
                *crossing.not_crossed.entry(reason(unfit)).or_default() += 1;
                return Ok(None);
            }
            Err(error) => return Ok(Some(format!("{error:#}"))),
        };
        let at_tc = matches!(way, Way::Stack | Way::Egress);
        if at_tc && fitter.frame().len() > ONE_PIECE && parsed.is_ok_and(|packet| packet.key.encapsulation != 0) {
            *crossing.not_crossed.entry("in a tunnel and not in one piece at TC").or_default() += 1;
            return Ok(None);
        }
        kernel.control.set_replay_clock(time_ns);
        if !sender.send(fitter.frame())? {
            *crossing.not_crossed.entry("that the device does not take").or_default() += 1;
            return Ok(None);
        }
        let may_be_dropped = *way == Way::Stack && stack_may_drop(fitter.frame());
        let patience = if may_be_dropped { IMPATIENCE } else { PATIENCE };
        if !wire.wait_for(seen(before) + crossing.frames + 1, patience)? {
            if !may_be_dropped {
                let frame = wire.fitter.frame();
                bail!(
                    "a frame did not arrive ({:?}): {} bytes, {:02x?}",
                    wire.way,
                    frame.len(),
                    &frame[..64.min(frame.len())]
                );
            }
            *crossing.not_crossed.entry("that the stack drops before TC").or_default() += 1;
            return Ok(None);
        }
        crossing.frames += 1;
        while let Some(record) = wire.kernel.next_evicted() {
            handed_over.push(record);
        }
        let packet = match parsed {
            Ok(packet) => packet,
            Err(cause) => {
                refused[cause as usize] += 1;
                return Ok(None);
            }
        };
        *now_ns = match wire.clock {
            Clock::Replay => time_ns,
            // The frame was the last of its flow.
            Clock::Kernel => wire.find(&packet.key).map_or(*now_ns, |record| record.last_ns),
        };
        ensure!(
            wire.clock == Clock::Replay || (time_ns..=monotonic_ns()).contains(now_ns),
            "the kernel's clock says {now_ns} ns to a frame that was sent after {time_ns} ns"
        );
        let quoted = packet::quoted_key(wire.fitter.frame(), &packet);
        let (held, known) = (table.len(), reopened.len());
        table.packet_with_quote(&packet, quoted.as_ref(), *now_ns, &mut |record: &FlowRecord, reason| {
            ensure!(reason == Reason::Reopened, "{}: ended as {}", name(record), reason.name());
            reopened.push(*record);
            Ok(())
        })?;
        if table.len() + reopened.len() > held + known {
            notes.note(&packet, *now_ns);
        }
        Ok(None)
    }

    pub(super) fn finish(self) -> Result<Crossing> {
        let Run { wire, mut table, notes, refused, before, now_ns: _, handed_over, reopened, mut crossing } = self;
        let after = wire.counters()?;
        for cause in Cause::ALL {
            let kernel = after.unrecorded[cause as usize] - before.unrecorded[cause as usize];
            if kernel != refused[cause as usize] {
                crossing.differ("packets in no record", cause.name(), kernel, refused[cause as usize]);
            }
        }
        // The programs hand over what was reopened, and what had to go because its bucket was full; the rest is in the table.
        let mut kept: HashMap<(FlowKey, u64), FlowRecord> = handed_over
            .into_iter()
            .chain(wire.take_all()?)
            .map(|record| ((record.key, record.first_ns), record))
            .collect();
        let mut native = reopened;
        table.finish(&mut |record: &FlowRecord, _reason| {
            native.push(*record);
            anyhow::Ok(())
        })?;
        for native in &native {
            match kept.remove(&(native.key, native.first_ns)) {
                Some(kernel) => crossing.compare(&kernel, native, wire.attached.ifindex),
                None => crossing.differ(&name(native), "(record)", "absent", "present"),
            }
        }
        for kernel in kept.values() {
            crossing.differ(&name(kernel), "(record)", "present", "absent");
        }
        let (entries, different) = context_differences(wire.kernel.context.as_ref(), &notes);
        crossing.context_entries += entries;
        for Difference { field, left, right } in different {
            crossing.differ("host context", &field, left, right);
        }
        Ok(crossing)
    }
}

impl Crossing {
    fn compare(&mut self, kernel: &FlowRecord, native: &FlowRecord, ifindex: u32) {
        self.flows += 1;
        if kernel.ifindex != ifindex {
            self.differ(&name(kernel), "ifindex", kernel.ifindex, ifindex);
        }
        let kernel = FlowRecord { ifindex: native.ifindex, ..*kernel };
        for Difference { field, left, right } in differences(&kernel, native) {
            self.differ(&name(native), &field, left, right);
        }
    }

    fn differ(&mut self, flow: &str, field: &str, kernel: impl ToString, native: impl ToString) {
        if self.differences.len() < KEPT {
            let field = format!("{flow}: {field}");
            self.differences.push(Difference { field, left: kernel.to_string(), right: native.to_string() });
        }
    }
}

/// Why a frame is not put on the wire.
const fn reason(unfit: Unfit) -> &'static str {
    match unfit {
        Unfit::TooShort => "shorter than a link header",
        Unfit::TooLong => "longer than the device's MTU",
        Unfit::Cut => "cut by the capture where the programs read",
        Unfit::NoLength => "without the length that a network card fills in",
    }
}

/// Whether the stack may drop a received frame before TC's ingress: it takes VLAN tags off there, and what is none for it.
fn stack_may_drop(frame: &[u8]) -> bool {
    matches!(frame.get(12..14), Some([0x81, 0x00] | [0x88, 0xa8]))
}

fn monotonic_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
