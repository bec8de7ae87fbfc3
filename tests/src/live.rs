//! The programs on a device of their own, against native code: frames cross a veth pair, one at a time, and what the
//! table holds afterwards is compared with what the host makes of the same frames.
//!
//! The packet clock is the test's ([`Clock::Replay`]), so every integer must be the same; or the kernel's, and then those
//! that depend on it are left out ([`depends_on_time`]). Needs root.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use sensor::bpf::attach::Attached;
use sensor::bpf::load::{Kernel, LoadOptions};
use sensor::bpf::probe;
use sensor::config::XdpMode;
use sensor::replay::kernel::engine::name;
use sensor::replay::table::{Reason, Table, Timeouts};
use sensor_common::control::{Control, NO_DSCP};
use sensor_common::counter::{Cause, Hook, InterfaceCounters};
use sensor_common::flow::FlowRecord;
use sensor_common::packet;
use sensor_common::table::WAYS;

use crate::differences::{Difference, differences};
use crate::netns::NetNs;
use crate::raw::RawSender;

/// The device that the programs are on, and its peer.
const DEVICE: &str = "eth0";
/// Jumbo frames fit.
const MTU: u32 = 9000;

/// How frames reach the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Received, XDP in the driver.
    Native,
    /// Received, XDP in the network stack.
    Generic,
    /// Sent by the device itself.
    Egress,
}

/// Who stamps packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The test: the times of the frames.
    Replay,
    /// The kernel.
    Kernel,
}

/// Loaded programs on one end of a veth pair, and whoever sends to them.
#[derive(Debug)]
pub struct Wire {
    sender: RawSender,
    kernel: Kernel,
    attached: Attached,
    way: Way,
    clock: Clock,
    // Namespaces go last: with them goes the device.
    _edge: NetNs,
    _peer: NetNs,
}

/// What came of a comparison.
#[derive(Clone, Debug, Default)]
pub struct Crossing {
    /// Frames that crossed.
    pub frames: u64,
    /// Frames that the device does not take: shorter than a link header, longer than its MTU.
    pub not_taken: u64,
    /// Flows that were compared.
    pub flows: u64,
    /// Values that may differ, because they are times of the kernel's clock, and do.
    pub times: u64,
    /// What differs: kernel on the left, native code on the right; the flow is in front of the field.
    pub differences: Vec<Difference>,
}

impl Wire {
    /// Builds the pair and attaches the programs.
    ///
    /// # Errors
    /// Without root, iproute2 or Python.
    pub fn new(way: Way, clock: Clock) -> Result<Wire> {
        let (peer, edge) = (NetNs::new("peer")?, NetNs::new("edge")?);
        for netns in [&peer, &edge] {
            // No frame comes but those of the test.
            netns.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        }
        peer.ip(&format!("link add {DEVICE} mtu {MTU} type veth peer name {DEVICE} mtu {MTU} netns {}", edge.name()))?;
        for netns in [&peer, &edge] {
            netns.ip(&format!("link set {DEVICE} up"))?;
        }
        let support = probe::kernel();
        let options =
            LoadOptions { frags: support.xdp_frags, replay_clock: clock == Clock::Replay, ..LoadOptions::default() };
        let mut kernel = Kernel::load(&options)?;
        kernel.control.set(&Control { tag_dscp: NO_DSCP, evict_idle_ticks: u32::MAX, ..bytemuck::Zeroable::zeroed() });
        let mode = if way == Way::Generic { XdpMode::Generic } else { XdpMode::Native };
        let attached = edge.within(|| kernel.attach(DEVICE, mode, support.tcx))??;
        let sender = RawSender::start(if way == Way::Egress { &edge } else { &peer }, DEVICE)?;
        Ok(Wire { sender, kernel, attached, way, clock, _edge: edge, _peer: peer })
    }

    /// Sends frames that arrive at times in ns, and compares what both sides hold then. The table is empty after.
    ///
    /// # Errors
    /// If a frame does not arrive.
    pub fn cross<'f>(&mut self, frames: impl IntoIterator<Item = (u64, &'f [u8])>) -> Result<Crossing> {
        let never = Timeouts { idle_ns: u64::MAX, active_ns: u64::MAX, linger_ns: u64::MAX, reopen: true };
        let mut table = Table::new(never, Vec::new());
        let mut refused = [0; Cause::COUNT];
        let mut parser = packet::Parser::new(packet::Options::NONE, self.kernel.seed());
        let before = self.counters()?;
        let start_ns = monotonic_ns();
        let mut crossing = Crossing::default();
        let (mut reopened, mut handed_over) = (Vec::new(), Vec::new());
        for (time_ns, frame) in frames {
            self.kernel.control.set_replay_clock(time_ns);
            if !self.sender.send(frame)? {
                crossing.not_taken += 1;
                continue;
            }
            crossing.frames += 1;
            self.wait_for(seen(&before) + crossing.frames)?;
            while let Some(record) = self.kernel.next_evicted() {
                handed_over.push(record);
            }
            match parser.parse(frame, time_ns) {
                Ok(packet) => {
                    let quoted = packet::quoted_key(frame, &packet);
                    table.packet_with_quote(
                        &packet,
                        quoted.as_ref(),
                        time_ns,
                        &mut |record: &FlowRecord, reason| {
                            ensure!(reason == Reason::Reopened, "{}: ended as {}", name(record), reason.name());
                            reopened.push(*record);
                            Ok(())
                        },
                    )?;
                }
                Err(cause) => refused[cause as usize] += 1,
            }
        }
        let after = self.counters()?;
        for cause in Cause::ALL {
            let kernel = after.unrecorded[cause as usize] - before.unrecorded[cause as usize];
            if kernel != refused[cause as usize] {
                crossing.differ("packets in no record", cause.name(), kernel, refused[cause as usize]);
            }
        }
        if handed_over.len() != reopened.len() {
            crossing.differ("records handed over", "number", handed_over.len(), reopened.len());
        }
        for (kernel, native) in handed_over.iter().zip(&reopened) {
            self.compare(kernel, native, start_ns, &mut crossing);
        }
        let mut held = self.take_all()?;
        table.finish(&mut |native: &FlowRecord, _reason| {
            match held.iter().position(|kernel| kernel.key == native.key) {
                Some(position) => self.compare(&held.swap_remove(position), native, start_ns, &mut crossing),
                None => crossing.differ(&name(native), "(record)", "absent", "present"),
            }
            anyhow::Ok(())
        })?;
        for kernel in &held {
            crossing.differ(&name(kernel), "(record)", "present", "absent");
        }
        Ok(crossing)
    }

    fn compare(&self, kernel: &FlowRecord, native: &FlowRecord, start_ns: u64, crossing: &mut Crossing) {
        crossing.flows += 1;
        if kernel.ifindex != self.attached.ifindex {
            crossing.differ(&name(kernel), "ifindex", kernel.ifindex, self.attached.ifindex);
        }
        let kernel = FlowRecord { ifindex: native.ifindex, ..*kernel };
        for Difference { field, left, right } in differences(&kernel, native) {
            if self.clock == Clock::Replay || !depends_on_time(&field) {
                crossing.differ(&name(native), &field, left, right);
            } else {
                crossing.times += 1;
            }
        }
        if self.clock == Clock::Kernel {
            let bounds = start_ns..=monotonic_ns();
            let (first, last) = (kernel.first_ns, kernel.last_ns);
            let inside = [kernel.forward()].into_iter().chain(kernel.reverse()).filter(|half| half.arrivals > 0);
            if !bounds.contains(&first)
                || !(first..=*bounds.end()).contains(&last)
                || inside.map(|half| half.last_ns).any(|time| !(first..=last).contains(&time))
            {
                crossing.differ(&name(native), "times", format!("{kernel:?}"), format!("inside of {bounds:?}"));
            }
        }
    }

    fn counters(&self) -> Result<InterfaceCounters> {
        self.kernel.counters(self.attached.ifindex)
    }

    /// A frame is received on a kernel thread's time: usually before its sender goes on, but not always.
    fn wait_for(&self, frames: u64) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match seen(&self.counters()?) {
                seen if seen == frames => return Ok(()),
                seen if seen > frames => bail!("{seen} frames on {DEVICE}, {frames} were sent: others send here"),
                seen if Instant::now() >= deadline => bail!("{seen} of {frames} frames arrived ({:?})", self.way),
                _ => std::thread::yield_now(),
            }
        }
    }

    /// Every record of the table, which is empty then.
    fn take_all(&self) -> Result<Vec<FlowRecord>> {
        let table = &self.kernel.table;
        let mut records = Vec::new();
        for number in 0..table.buckets() {
            let bucket = table.bucket(number);
            for slot in (0..WAYS).filter(|way| bucket.tags[*way] != 0).map(|way| number * WAYS + way) {
                let record = table.copy(slot).context("nobody writes now")?;
                records.extend(table.release(slot, record.generation, record.last_ns));
            }
        }
        Ok(records)
    }
}

impl Crossing {
    fn differ(&mut self, flow: &str, field: &str, kernel: impl ToString, native: impl ToString) {
        let field = format!("{flow}: {field}");
        self.differences.push(Difference { field, left: kernel.to_string(), right: native.to_string() });
    }
}

fn monotonic_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Frames that the programs saw at any hook.
fn seen(counters: &InterfaceCounters) -> u64 {
    Hook::ALL.iter().flat_map(|hook| &counters.seen[*hook as usize]).map(|volume| volume.packets).sum()
}

/// Whether a field of a record holds, or is made of, times.
#[must_use]
pub fn depends_on_time(field: &str) -> bool {
    ["_ns", "_us", "iat", "subflows", "idles", "bulk", "run_"].iter().any(|part| field.contains(part))
}
