//! Loaded programs under the replay clock: a host of which each packet is a program run.

use std::net::SocketAddr;

use sensor::bpf::load::{Hook, Kernel, LoadOptions, TestRunOptions};
use sensor_common::control::{Control, NO_DSCP};
use sensor_common::flow::{FlowKey, FlowRecord};
use sensor_common::hash::hash;
use sensor_common::packet;
use sensor_common::table::{TICK_SHIFT, WAYS, bucket_of};
use sensor_common::tcp::{ACK, PSH, SYN};
use sensor_common::verdict::Action;
use sensor_tests::frames::Frame;

/// Loopback: where the kernel says that the frames of test runs come from.
pub(crate) const IFINDEX: u32 = 1;
/// A second.
pub(crate) const SECOND_NS: u64 = 1_000_000_000;
/// XDP_DROP and XDP_PASS.
pub(crate) const DROP: u32 = 1;
/// See [`DROP`].
pub(crate) const PASS: u32 = 2;

/// The programs, and the time.
pub(crate) struct Host {
    pub(crate) kernel: Kernel,
    pub(crate) now_ns: u64,
}

impl Host {
    /// With a table of so many flows, in mode enforce, under an agent that never ends.
    pub(crate) fn new(flows: usize) -> Host {
        let options = LoadOptions { flows, replay_clock: true, ..LoadOptions::default() };
        let mut kernel = Kernel::load(&options).expect("programs load (as root, on kernel 5.15 or newer)");
        kernel.watch(IFINDEX).expect("watch loopback");
        let evict_idle_ticks = ((10 * SECOND_NS) >> TICK_SHIFT) as u32;
        kernel.control.set(&Control { tag_dscp: NO_DSCP, evict_idle_ticks, ..bytemuck::Zeroable::zeroed() });
        kernel.control.set_lease(u64::MAX);
        kernel.verdicts.set_ceilings(|_| Action::Drop);
        Host { kernel, now_ns: 1_000 * SECOND_NS }
    }

    /// One packet; what the program answers.
    pub(crate) fn run(&self, hook: Hook, frame: &Frame) -> u32 {
        self.kernel.control.set_replay_clock(self.now_ns);
        let frame = frame.build();
        let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::default() };
        self.kernel.runner().run(hook, options).expect("the kernel runs the program").return_value
    }

    /// A handshake and the first request of a connection from `client`.
    pub(crate) fn connect(&self, client: SocketAddr) {
        let segment = |from, to, flags, seq, ack| Frame::tcp(from, to, flags).seq(seq, ack);
        self.run(Hook::Ingress, &segment(client, server(), SYN, 1_000, 0));
        self.run(Hook::Egress, &segment(server(), client, SYN | ACK, 9_000, 1_001));
        self.run(Hook::Ingress, &segment(client, server(), ACK, 1_001, 9_001));
        self.request(client, 1_001);
    }

    /// 100 bytes of a connection that [`Host::connect`] began.
    pub(crate) fn request(&self, client: SocketAddr, seq: u32) -> u32 {
        self.run(Hook::Ingress, &Frame::tcp(client, server(), ACK | PSH).seq(seq, 9_001).payload(100))
    }

    /// Slot and record of a connection from `client`.
    pub(crate) fn slot(&self, client: SocketAddr) -> Option<(usize, FlowRecord)> {
        let (key, seed) = (key(client), self.kernel.seed());
        let number = bucket_of(hash(&key, |position| seed[position]), self.kernel.table.buckets() as u32) as usize;
        let taken = (0..WAYS).filter(|way| self.kernel.table.bucket(number).tags[*way] != 0);
        let mut slots = taken.map(|way| number * WAYS + way);
        slots.find_map(|slot| Some((slot, self.kernel.table.copy(slot).filter(|record| record.key == key)?)))
    }

    /// The record of a connection from `client`.
    pub(crate) fn record(&self, client: SocketAddr) -> Option<FlowRecord> {
        self.slot(client).map(|(_, record)| record)
    }
}

/// Whom all clients connect to.
pub(crate) fn server() -> SocketAddr {
    "198.19.0.1:80".parse().expect("an address")
}

/// The key of a connection from `client`.
pub(crate) fn key(client: SocketAddr) -> FlowKey {
    packet::parse(&Frame::tcp(client, server(), ACK).build()[..]).expect("well-formed").key
}
