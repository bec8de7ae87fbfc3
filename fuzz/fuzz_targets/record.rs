//! Any sequence of packets of one connection into a flow record: nothing panics, the sums are those of a simple model
//! beside it, and every feature is a number or missing, never infinite.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use sensor_common::features::{FEATURES, Sample};
use sensor_common::flow::{Direction, FlowRecord};
use sensor_common::packet::{self, Captured, Frame, Packet};

/// One frame to make.
#[derive(Arbitrary, Debug)]
struct Step {
    back: bool,
    /// Bits of the gap to the frame before: any size of gap, small ones often.
    gap_bits: u8,
    gap: u64,
    backwards: bool,
    flags: u8,
    window: u16,
    seq: u32,
    ack: u32,
    payload: u16,
    options: [u8; 8],
    ttl: u8,
    class: u8,
    fragment: u16,
    segments: u8,
    size: u16,
}

#[derive(Arbitrary, Debug)]
struct Input {
    udp: bool,
    start_ns: u64,
    same_address: bool,
    steps: Vec<Step>,
}

/// A frame whose payload is not there, and which may stand for several segments.
#[derive(Clone, Copy)]
struct Made<'a> {
    frame: Captured<'a>,
    segments: (u32, u32),
}

impl<'a> Frame for Made<'a> {
    type Window = &'a [u8];
    fn window(self, offset: u32, len: u32) -> Option<&'a [u8]> {
        self.frame.window(offset, len)
    }
    fn wire_len(self) -> u32 {
        self.frame.wire_len
    }
    fn segments(self) -> (u32, u32) {
        self.segments
    }
}

fn packet(input: &Input, step: &Step) -> Option<Packet> {
    let ends = [[198, 18, 0, 1], if input.same_address { [198, 18, 0, 1] } else { [198, 18, 0, 2] }];
    let ports = [[3, 232], [0, 80]];
    let (from, to) = (step.back as usize, !step.back as usize);
    let header = if input.udp { 8 } else { 28 };
    let total = 20 + header + step.payload.min(60_000);
    let mut frame = vec![0u8; 12];
    frame.extend([0x08, 0x00, 0x45, step.class]);
    frame.extend(total.to_be_bytes());
    // Whole datagrams and first fragments; what a later one is part of is not this target's question.
    frame.extend([0, 0, (step.fragment >> 8) as u8 & 0x60, 0]);
    frame.extend([step.ttl, if input.udp { 17 } else { 6 }, 0, 0]);
    frame.extend([ends[from], ends[to]].concat());
    frame.extend([ports[from], ports[to]].concat());
    if input.udp {
        frame.extend([0; 4]);
    } else {
        frame.extend(step.seq.to_be_bytes());
        frame.extend(step.ack.to_be_bytes());
        frame.extend([0x70, step.flags]);
        frame.extend(step.window.to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(step.options);
    }
    let frame = Captured { bytes: &frame, wire_len: 14 + total as u32 };
    packet::parse(Made { frame, segments: (step.segments as u32, step.size as u32) }).ok()
}

/// Sums as anyone would keep them.
#[derive(Default)]
struct Model {
    frames: u64,
    packets: u64,
    l3: u64,
    payload: u64,
    header: u64,
    sizes: Vec<u32>,
}

impl Model {
    fn add(&mut self, packet: &Packet) {
        self.frames += 1;
        self.packets += packet.segments as u64;
        self.l3 += packet.l3_len();
        self.payload += packet.payload_len as u64;
        self.header += packet.header_len as u64 * packet.segments as u64;
        self.sizes.extend((1..packet.segments).map(|_| packet.segment_size));
        self.sizes.push(packet.last_segment());
    }

    fn check(&self, half: Option<&Direction>) {
        let Some(half) = half.filter(|half| half.packets > 0) else {
            assert_eq!(self.frames, 0);
            return;
        };
        assert_eq!((half.arrivals(), half.packets), (self.frames, self.packets));
        assert_eq!((half.l3_bytes, half.payload_bytes), (self.l3, self.payload));
        assert_eq!(half.l3_bytes - half.payload_bytes, self.header);
        assert_eq!(half.size_bins.iter().map(|count| *count as u64).sum::<u64>(), self.packets);
        assert_eq!(half.payload_max, self.sizes.iter().copied().max().unwrap_or(0));
        assert_eq!(half.payload_square, self.sizes.iter().map(|size| *size as u64 * *size as u64).sum::<u64>());
        assert!(half.l3_min as u32 <= half.l3_max);
        assert!(half.flags.iter().all(|count| *count as u64 <= self.packets));
    }
}

fuzz_target!(|input: Input| {
    let mut record = FlowRecord::zeroed();
    let mut model = [Model::default(), Model::default()];
    // Ten years: what a clock can say.
    let mut now_ns = input.start_ns >> 5;
    let mut started = false;
    for step in &input.steps {
        let Some(packet) = packet(&input, step) else { continue };
        let gap_ns = step.gap >> (20 + step.gap_bits % 44);
        now_ns = if step.backwards { now_ns.saturating_sub(gap_ns) } else { now_ns.saturating_add(gap_ns) };
        if !started {
            record.start(&packet, now_ns, 1, 1);
            started = true;
        }
        let first_ns = record.first_ns;
        let side = record.direction_of(&packet);
        record.update(&packet, now_ns);
        model[side].add(&packet);
        assert_eq!(record.first_ns, first_ns);
        assert!(record.last_ns >= record.first_ns);
    }
    if !started {
        return;
    }
    model[0].check(Some(record.forward()));
    model[1].check(record.reverse());
    assert_eq!(record.frames(), model[0].frames + model[1].frames);
    for feature in FEATURES {
        let value = feature.value(&Sample::of(&record));
        assert!(!value.is_infinite(), "{} is {value}", feature.name);
        assert!(value.is_nan() || value >= 0.0 || feature.name.ends_with("_direction"), "{} is {value}", feature.name);
    }
});
