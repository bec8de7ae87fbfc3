//! The programs on a device of their own, against native code: frames cross a veth pair, one at a time, and what the
//! table holds afterwards is compared with what the host makes of the same frames.
//!
//! Nothing is left out: under the test's clock ([`Clock::Replay`]) both have the times of the frames; under the
//! kernel's ([`Clock::Kernel`]) the host is given the time that the frame's record says it arrived at. Needs root.

mod run;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use sensor::bpf::attach::Attached;
use sensor::bpf::load::{Kernel, LoadOptions};
use sensor::bpf::probe;
use sensor::config::XdpMode;
use sensor::context::REPLAY_SEED;
use sensor::replay::capture::Captured;
use sensor::replay::kernel::Fitter;
use sensor_common::control::{Control, NO_DSCP};
use sensor_common::counter::{Hook, InterfaceCounters};
use sensor_common::flow::{FlowKey, FlowRecord};
use sensor_common::hash::hash;
use sensor_common::packet::Options;
use sensor_common::table::{WAYS, bucket_of, tag_of};

use self::run::Run;
use crate::differences::Difference;
use crate::netns::NetNs;
use crate::raw::RawSender;

/// The device that the programs are on, and its peer.
const DEVICE: &str = "eth0";
/// Jumbo frames fit.
const MTU: u32 = 9000;
/// Frames that a device of this MTU takes: an Ethernet header, and what it may carry.
const LENGTHS: std::ops::RangeInclusive<usize> = 14..=14 + MTU as usize;

/// How frames reach the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Received, XDP in the driver.
    Native,
    /// Received, XDP in the network stack.
    Generic,
    /// Received, at TC's ingress.
    Stack,
    /// Sent by the device itself.
    Egress,
}

impl Way {
    /// All.
    pub const ALL: [Way; 4] = [Way::Native, Way::Generic, Way::Stack, Way::Egress];

    /// The name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Way::Native => "native XDP",
            Way::Generic => "generic XDP",
            Way::Stack => "TC ingress",
            Way::Egress => "TC egress",
        }
    }
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
    fitter: Fitter,
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
    /// Frames that did not, by reason: the device or the stack does not take them, or the capture lacks bytes of them.
    pub not_crossed: std::collections::BTreeMap<&'static str, u64>,
    /// Flows that were compared.
    pub flows: u64,
    /// Entries of the host context that were compared.
    pub context_entries: u64,
    /// What differs, the first of it: kernel on the left, native code on the right; the flow is in front of the field.
    pub differences: Vec<Difference>,
    /// Why the capture was not read to its end.
    pub stopped: Option<String>,
}

impl Crossing {
    /// Adds another one, without why it was stopped.
    pub fn add(&mut self, other: &Crossing) {
        let Crossing { frames, not_crossed, flows, context_entries, differences, stopped: _ } = other;
        self.frames += frames;
        self.flows += flows;
        self.context_entries += context_entries;
        self.differences.extend(differences.iter().cloned());
        for (reason, count) in not_crossed {
            *self.not_crossed.entry(reason).or_default() += count;
        }
    }
}

impl std::fmt::Display for Crossing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Crossing { frames, not_crossed, flows, context_entries, differences, stopped: _ } = self;
        write!(
            f,
            "{frames} frames, {flows} flows, {context_entries} context entries, {} differences",
            differences.len()
        )?;
        for (reason, count) in not_crossed {
            write!(f, "; not crossed: {count} frames {reason}")?;
        }
        Ok(())
    }
}

impl Wire {
    /// Builds the pair and attaches the programs, which read what `options` says.
    ///
    /// # Errors
    /// Without root, iproute2 or Python.
    pub fn new(way: Way, clock: Clock, options: Options) -> Result<Wire> {
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
        let mut kernel = Kernel::load(&LoadOptions {
            frags: support.xdp_frags,
            replay_clock: clock == Clock::Replay,
            // Which flows share a bucket does not differ from run to run.
            seed: Some(REPLAY_SEED),
            parser: options,
            ..LoadOptions::default()
        })?;
        kernel.control.set(&Control { tag_dscp: NO_DSCP, evict_idle_ticks: u32::MAX, ..bytemuck::Zeroable::zeroed() });
        let mode = match way {
            Way::Native | Way::Egress => XdpMode::Native,
            Way::Generic => XdpMode::Generic,
            Way::Stack => XdpMode::Tc,
        };
        let attached = edge.within(|| kernel.attach(DEVICE, mode, support.tcx))??;
        let sender = RawSender::start(if way == Way::Egress { &edge } else { &peer }, DEVICE)?;
        let fitter = Fitter::new(options, kernel.seed(), LENGTHS);
        Ok(Wire { sender, kernel, attached, fitter, way, clock, _edge: edge, _peer: peer })
    }

    /// Sends frames that arrive at times in ns, and compares what both sides hold then. The table is empty after.
    ///
    /// # Errors
    /// If a frame does not arrive.
    pub fn cross<'f>(&mut self, frames: impl IntoIterator<Item = (u64, &'f [u8])>) -> Result<Crossing> {
        let mut run = Run::begin(self)?;
        for (time_ns, bytes) in frames {
            run.frame(&Captured { time_ns, link: 1, bytes, wire_len: bytes.len() as u32 })?;
        }
        run.finish()
    }

    /// As [`Wire::cross`], for the first `most` frames of a capture.
    ///
    /// # Errors
    /// If a frame does not arrive. A file that is no capture is no error: see [`Crossing::stopped`].
    pub fn capture(&mut self, path: &Path, most: u64) -> Result<Crossing> {
        let mut capture = match sensor::replay::open(path) {
            Ok(capture) => capture,
            Err(error) => return Ok(Crossing { stopped: Some(format!("{error:#}")), ..Crossing::default() }),
        };
        let mut run = Run::begin(self)?;
        let mut stopped = None;
        for _ in 0..most {
            let captured = match capture.read() {
                Ok(Some(captured)) => captured,
                Ok(None) => break,
                Err(error) => {
                    stopped = Some(format!("{error:#}"));
                    break;
                }
            };
            if let Some(reason) = run.frame(&captured)? {
                stopped = Some(reason);
                break;
            }
        }
        Ok(Crossing { stopped, ..run.finish()? })
    }

    fn counters(&self) -> Result<InterfaceCounters> {
        self.kernel.counters(self.attached.ifindex)
    }

    /// Waits until so many frames were seen. A frame is received on a kernel thread's time: usually before its sender
    /// goes on, but not always. False if it does not come within `patience`.
    fn wait_for(&self, frames: u64, patience: Duration) -> Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            match seen(&self.counters()?) {
                seen if seen == frames => return Ok(true),
                seen if seen > frames => bail!("{seen} frames on {DEVICE}, {frames} were sent: others send here"),
                _ if Instant::now() >= deadline => return Ok(false),
                _ => std::thread::yield_now(),
            }
        }
    }

    /// The record that the table has of a flow.
    fn find(&self, key: &FlowKey) -> Option<FlowRecord> {
        let table = &self.kernel.table;
        let hash = hash(key, |position| self.kernel.seed()[position]);
        let number = bucket_of(hash, table.buckets() as u32) as usize;
        let bucket = table.bucket(number);
        let mut ways = (0..WAYS).filter(|way| bucket.tags[*way] == tag_of(hash));
        ways.find_map(|way| table.copy(number * WAYS + way).filter(|record| record.key == *key))
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

/// Frames that the programs saw at any hook.
fn seen(counters: &InterfaceCounters) -> u64 {
    Hook::ALL.iter().flat_map(|hook| &counters.seen[*hook as usize]).map(|volume| volume.packets).sum()
}

/// Whether a field of a record holds, or is made of, times: what differs where one side saw fewer, larger frames.
#[must_use]
pub fn depends_on_time(field: &str) -> bool {
    ["_ns", "_us", "iat", "subflows", "idles", "bulk", "run_"].iter().any(|part| field.contains(part))
}
