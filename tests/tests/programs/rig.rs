//! The test rig: loaded programs beside an oracle that does on the host what they promise to do.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::OnceLock;

use sensor::bpf::load::{Hook, Kernel, LoadOptions, TestRunOptions, TestRunResult};
use sensor::bpf::sys::Slot;
use sensor_common::control::{Control, NO_DSCP};
use sensor_common::counter::{self, CAUSE_SLOTS, Cause, InterfaceCounters};
use sensor_common::flow::{FlowKey, FlowRecord};
use sensor_common::hash::{SEED_WORDS, Seed};
use sensor_common::packet::{self, Packet, Parser};
use sensor_common::table::{TICK_SHIFT, WAYS};
use sensor_common::tcp::{ACK, SYN};
use sensor_common::verdict::Action;
use sensor_tests::differences::differences;
use sensor_tests::frames::Frame;

/// Loopback: where the kernel says that the frames of test runs come from.
pub(crate) const IFINDEX: u32 = 1;
/// XDP_PASS.
pub(crate) const XDP_PASS: u32 = 2;
/// XDP_DROP.
pub(crate) const XDP_DROP: u32 = 1;
/// TCX_NEXT, which is also TC_ACT_UNSPEC.
pub(crate) const TC_NEXT: u32 = u32::MAX;
/// TC_ACT_SHOT.
pub(crate) const TC_SHOT: u32 = 2;
/// A second.
pub(crate) const SECOND_NS: u64 = 1_000_000_000;
/// Where the replay clock starts: any time but zero.
pub(crate) const START_NS: u64 = 1_000 * SECOND_NS;
/// Idle time after which a flow with history may be evicted, in ticks (about 10 s).
pub(crate) const EVICT_IDLE_TICKS: u32 = ((10 * SECOND_NS) >> TICK_SHIFT) as u32;

/// Offsets in `struct __sk_buff` (linux/bpf.h): stable, as all of that interface.
pub(crate) mod sk_buff {
    pub(crate) const SIZE: usize = 192;
    pub(crate) const MARK: usize = 8;
    pub(crate) const INGRESS_IFINDEX: usize = 36;
    pub(crate) const GSO_SEGS: usize = 164;
    pub(crate) const GSO_SIZE: usize = 176;
}

/// An address and port.
pub(crate) fn at(text: &str) -> SocketAddr {
    text.parse().expect("address:port")
}

/// Hash keys that are the same in every run.
pub(crate) fn seed() -> Seed {
    let mut rng = sensor_tests::rng::Rng::new(0x5eed);
    let mut seed = [0; SEED_WORDS];
    seed.fill_with(|| rng.next_u64());
    seed
}

/// Whether this kernel runs programs on frames of several buffers (5.18).
pub(crate) fn frags() -> bool {
    static FRAGS: OnceLock<bool> = OnceLock::new();
    *FRAGS.get_or_init(|| sensor::bpf::probe::kernel().xdp_frags)
}

/// What tests load: replay clock, fixed hash keys, the smallest table.
pub(crate) fn options() -> LoadOptions {
    LoadOptions { flows: 8192, frags: frags(), replay_clock: true, seed: Some(seed()), ..LoadOptions::default() }
}

/// Loaded programs, with the loopback interface watched.
pub(crate) fn load(options: &LoadOptions) -> Kernel {
    let mut kernel = Kernel::load(options).expect("programs load (as root, on kernel 6.1 or newer)");
    kernel.load_stack_ingress().expect("the program for TC's ingress loads");
    kernel.watch(IFINDEX).expect("watch loopback");
    kernel.control.set(&control());
    kernel.control.set_replay_clock(START_NS);
    kernel.verdicts.set_ceilings(|_| Action::Drop);
    kernel
}

/// The control page of tests.
pub(crate) fn control() -> Control {
    Control {
        replay_now_ns: START_NS,
        tag_dscp: NO_DSCP,
        evict_idle_ticks: EVICT_IDLE_TICKS,
        ..bytemuck::Zeroable::zeroed()
    }
}

/// One run; the program's return value.
pub(crate) fn run(kernel: &Kernel, hook: Hook, frame: &[u8]) -> u32 {
    run_with(kernel, hook, frame, &[]).return_value
}

/// A connection that both ends have built: handshake and one segment more.
pub(crate) fn establish(kernel: &Kernel, client: SocketAddr, server: SocketAddr) {
    let segment = |from, to, flags, seq, ack| Frame::tcp(from, to, flags).seq(seq, ack).build();
    run(kernel, Hook::Ingress, &segment(client, server, SYN, 1, 0));
    run(kernel, Hook::Egress, &segment(server, client, SYN | ACK, 1, 2));
    run(kernel, Hook::Ingress, &segment(client, server, ACK, 2, 2));
    run(kernel, Hook::Ingress, &segment(client, server, ACK, 2, 2));
}

/// One run with an input context.
pub(crate) fn run_with(kernel: &Kernel, hook: Hook, frame: &[u8], context: &[u8]) -> TestRunResult {
    let options = TestRunOptions {
        data_in: Some(frame),
        ctx_in: (!context.is_empty()).then_some(context),
        ..TestRunOptions::default()
    };
    kernel.runner().run(hook, options).expect("the kernel runs the program")
}

/// An input context with some 32-bit fields set.
pub(crate) fn context(fields: &[(usize, u32)]) -> Vec<u8> {
    let mut context = vec![0; sk_buff::SIZE];
    for (offset, value) in fields {
        context[*offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
    }
    context
}

/// Every live record of the table, with its slot.
pub(crate) fn records(kernel: &Kernel) -> Vec<(Slot, FlowRecord)> {
    let mut found = Vec::new();
    for number in 0..kernel.table.buckets() {
        let bucket = kernel.table.bucket(number);
        for way in (0..WAYS).filter(|way| bucket.tags[*way] != 0) {
            let slot = number * WAYS + way;
            found.push((slot, kernel.table.copy(slot).expect("nobody writes now")));
        }
    }
    found
}

/// The one record of a flow.
pub(crate) fn record(kernel: &Kernel, key: &FlowKey) -> Option<(Slot, FlowRecord)> {
    let mut found: Vec<_> = records(kernel).into_iter().filter(|(_, record)| record.key == *key).collect();
    assert!(found.len() < 2, "{} records of one flow: {key:?}", found.len());
    found.pop()
}

/// The key of a well-formed frame.
pub(crate) fn key(frame: &[u8]) -> FlowKey {
    packet::parse(frame).expect("well-formed").key
}

/// Counters of the loopback interface.
pub(crate) fn counters(kernel: &Kernel) -> InterfaceCounters {
    kernel.counters(IFINDEX).expect("watched")
}

/// Frames of both hooks and every action.
pub(crate) fn seen(counters: &InterfaceCounters) -> u64 {
    counters.seen.iter().flatten().map(|volume| volume.packets).sum()
}

/// Holds the counters to what was seen: each packet is in a record, or dropped, or counted by cause. For tables of which no
/// record was given up.
pub(crate) fn truth(kernel: &Kernel) {
    let counters = counters(kernel);
    assert_eq!(counters.evicted + counters.evicted_lost_flows, 0, "records were given up");
    let recorded: u64 = records(kernel).iter().map(|(_, record)| record.frames()).sum();
    let dropped: u64 = counters.seen.iter().map(|hook| hook[Action::Drop as usize].packets).sum();
    let lost: u64 = counters.unrecorded.iter().sum();
    assert_eq!(seen(&counters), recorded + dropped + lost, "packets in records, dropped, by cause");
    let withheld = counters.withheld[Action::Drop as usize].packets;
    assert_eq!(counters.drops_of.iter().sum::<u64>(), dropped + withheld, "each drop is somebody's");
    let in_records: u64 = records(kernel).iter().map(|(_, record)| record.dropped).sum();
    assert!(in_records + counters.dropped_new <= dropped, "{in_records} + {} of {dropped}", counters.dropped_new);
}

/// A frame as TC sees a super-packet of segmentation offload.
#[derive(Clone, Copy)]
pub(crate) struct Super<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) segments: u32,
    pub(crate) size: u32,
}

impl<'a> packet::Frame for Super<'a> {
    type Window = &'a [u8];
    fn window(self, offset: u32, len: u32) -> Option<&'a [u8]> {
        self.bytes.window(offset, len)
    }
    fn wire_len(self) -> u32 {
        self.bytes.len() as u32
    }
    fn segments(self) -> (u32, u32) {
        (self.segments, self.size)
    }
}

/// What the parser says of a frame, and the flow that it quotes if it is an ICMP error.
type Parsed = (Result<Packet, Cause>, Option<FlowKey>);

/// What the programs must have done, done on the host.
#[derive(Default)]
pub(crate) struct Oracle {
    flows: HashMap<FlowKey, FlowRecord>,
    ended: Vec<FlowRecord>,
    refused: [u64; CAUSE_SLOTS],
    frames: [u64; 2],
    bytes: [u64; 2],
    created: u64,
}

impl Oracle {
    fn offer(
        &mut self,
        hook: counter::Hook,
        parsed: Result<Packet, Cause>,
        quoted: Option<FlowKey>,
        len: usize,
        now_ns: u64,
    ) {
        self.frames[hook as usize] += 1;
        self.bytes[hook as usize] += len as u64;
        let packet = match parsed {
            Ok(packet) => packet,
            Err(cause) => {
                self.refused[cause as usize] += 1;
                return;
            }
        };
        let known = self.flows.get(&packet.key).is_some_and(|record| !record.is_reopened_by(&packet));
        if !known {
            let mut record = FlowRecord::zeroed();
            record.start(&packet, now_ns, IFINDEX, 1);
            self.ended.extend(self.flows.insert(packet.key, record));
            self.created += 1;
        }
        self.flows.get_mut(&packet.key).expect("just made").update(&packet, now_ns);
        if let Some(record) = quoted.and_then(|key| self.flows.get_mut(&key)) {
            record.quoted(packet.icmp_type, packet.icmp_code);
        }
    }
}

/// Programs and oracle, offered the same frames at the same times.
pub(crate) struct Rig {
    pub(crate) kernel: Kernel,
    oracle: Oracle,
    handed_over: Vec<FlowRecord>,
    parser: Parser,
    now_ns: u64,
}

impl Rig {
    pub(crate) fn new(options: &LoadOptions) -> Rig {
        let parser = Parser::new(options.parser, seed());
        Rig { kernel: load(options), oracle: Oracle::default(), handed_over: Vec::new(), parser, now_ns: START_NS }
    }

    /// Frames that were offered.
    pub(crate) fn frames(&self) -> u64 {
        self.oracle.frames.iter().sum()
    }

    /// Moves the packet clock on.
    pub(crate) fn wait(&mut self, ns: u64) {
        self.now_ns += ns;
    }

    /// The frame, and the flow that it quotes.
    fn parse<F: packet::Frame>(&mut self, frame: F) -> Parsed {
        let parsed = self.parser.parse(frame, self.now_ns);
        (parsed, parsed.ok().and_then(|packet| packet::quoted_key(frame, &packet)))
    }

    /// A received frame.
    pub(crate) fn ingress(&mut self, frame: &[u8]) {
        let parsed = self.parse(frame);
        self.offer(Hook::Ingress, parsed, frame, &[]);
    }

    /// A sent frame.
    pub(crate) fn egress(&mut self, frame: &[u8]) {
        let parsed = self.parse(frame);
        self.offer(Hook::Egress, parsed, frame, &[]);
    }

    /// A sent super-packet of `segments` segments with `size` payload bytes each but the last.
    pub(crate) fn egress_super(&mut self, frame: &[u8], segments: u32, size: u32) {
        let context = context(&[(sk_buff::GSO_SEGS, segments), (sk_buff::GSO_SIZE, size)]);
        let parsed = self.parse(Super { bytes: frame, segments, size });
        self.offer(Hook::Egress, parsed, frame, &context);
    }

    /// A frame received by way of the stack.
    pub(crate) fn stack_ingress(&mut self, frame: &[u8]) {
        let parsed = self.parse(frame);
        self.offer(Hook::StackIngress, parsed, frame, &[]);
    }

    /// A received super-packet, as receive offload makes it.
    pub(crate) fn stack_ingress_super(&mut self, frame: &[u8], segments: u32, size: u32) {
        let context = context(&[(sk_buff::GSO_SEGS, segments), (sk_buff::GSO_SIZE, size)]);
        let parsed = self.parse(Super { bytes: frame, segments, size });
        self.offer(Hook::StackIngress, parsed, frame, &context);
    }

    fn offer(&mut self, program: Hook, (parsed, quoted): Parsed, frame: &[u8], context: &[u8]) {
        self.kernel.control.set_replay_clock(self.now_ns);
        let (hook, pass) = match program {
            Hook::Ingress => (counter::Hook::Ingress, XDP_PASS),
            Hook::StackIngress => (counter::Hook::Ingress, TC_NEXT),
            _ => (counter::Hook::Egress, TC_NEXT),
        };
        let answer = run_with(&self.kernel, program, frame, context).return_value;
        assert_eq!(answer, pass, "{program:?} must pass {frame:02x?}");
        self.oracle.offer(hook, parsed, quoted, frame.len(), self.now_ns);
        while let Some(record) = self.kernel.next_evicted() {
            self.handed_over.push(record);
        }
    }

    /// Holds everything that the kernel kept against the oracle. `what`: for the message.
    pub(crate) fn compare(&self, what: &str) {
        let counters = counters(&self.kernel);
        for cause in Cause::ALL {
            let (kernel, host) = (counters.unrecorded[cause as usize], self.oracle.refused[cause as usize]);
            assert_eq!(kernel, host, "{what}: packets refused as {}", cause.name());
        }
        for hook in counter::Hook::ALL {
            let [passed, tagged, limited, dropped] = counters.seen[hook as usize];
            let host = (self.oracle.frames[hook as usize], self.oracle.bytes[hook as usize]);
            assert_eq!((passed.packets, passed.bytes), host, "{what}: frames and bytes of {hook:?}");
            let acted = [tagged, limited, dropped].map(|volume| volume.packets);
            assert_eq!(acted, [0; 3], "{what}: nothing has a verdict");
        }
        assert_eq!(counters.flows_created, self.oracle.created, "{what}: flows");
        let lost = (counters.evicted_lost_flows, counters.evicted_lost_packets, counters.lease_expired);
        assert_eq!(lost, (0, 0, 0), "{what}: nothing is lost");
        assert_eq!(self.handed_over.len(), self.oracle.ended.len(), "{what}: records handed over at port reuse");
        for (kernel, host) in self.handed_over.iter().zip(&self.oracle.ended) {
            same(what, kernel, host);
        }
        let live = records(&self.kernel);
        assert_eq!(live.len(), self.oracle.flows.len(), "{what}: live flows");
        for (_, kernel) in &live {
            let host = self.oracle.flows.get(&kernel.key);
            same(what, kernel, host.unwrap_or_else(|| panic!("{what}: a flow nobody sent: {:?}", kernel.key)));
        }
    }

    /// Frees every slot, so that the next capture finds an empty table; counters go on.
    pub(crate) fn clear(&mut self) {
        for (slot, record) in records(&self.kernel) {
            let released = self.kernel.table.release(slot, record.generation, record.last_ns);
            assert_eq!(released.map(|record| record.key), Some(record.key), "an untouched record is released");
        }
        self.oracle.flows.clear();
    }
}

fn same(what: &str, kernel: &FlowRecord, host: &FlowRecord) {
    let found = differences(kernel, host);
    assert!(found.is_empty(), "{what}: {:?}: kernel (left) and host (right) differ: {found:#?}", host.key);
}
