//! The short way gives what the long way gives.

use proptest::prelude::*;

use super::build::{START, packet};
use crate::flow::{FIRST_N, FlowRecord, Quick};
use crate::packet::{Packet, extension, mark, protocol};
use crate::tcp::{ACK, FIN, PSH, RST, SYN};

/// What one packet of a conversation does.
#[derive(Clone, Copy, Debug)]
struct Step {
    back: bool,
    payload: u32,
    gap_ns: u64,
    window: u16,
    /// Which field is out of the ordinary, if it is one of those that [`conversation`] knows.
    odd: u8,
}

fn step() -> impl Strategy<Value = Step> {
    let payload = prop_oneof![3 => Just(0), 3 => Just(1400), 2 => 0..1500u32, 1 => 60_000..70_000u32];
    let gap_ns = prop_oneof![
        6 => 0..100_000u64,
        6 => 0..50_000_000u64,
        1 => 900_000_000..1_100_000_000u64,
        1 => (1u64 << 32) - 1000..(1u64 << 32) + 1000u64,
        1 => 4_900_000_000..6_000_000_000u64,
    ];
    let window = prop_oneof![6 => Just(500u16), 2 => 0..1000u16];
    (any::<bool>(), payload, gap_ns, window, 0..60u8).prop_map(|(back, payload, gap_ns, window, odd)| Step {
        back,
        payload,
        gap_ns,
        window,
        odd,
    })
}

/// A connection with a handshake, or UDP, in which most packets go on where the last one of their side ended.
fn conversation(steps: &[Step], transport: u8) -> Vec<(u64, Packet)> {
    let (mut next, mut now) = ([1u32, u32::MAX - 5000], START);
    let mut packets = Vec::new();
    let mut push = |now: u64, packet: Packet| packets.push((now, packet));
    let base = |back, payload| Packet { window: 500, ..packet(transport, back, payload) };
    if transport == protocol::TCP {
        let [client, server] = next.map(|next| next.wrapping_sub(1));
        push(now, Packet { tcp_flags: SYN, seq: client, ..base(false, 0) });
        push(now, Packet { tcp_flags: SYN | ACK, seq: server, ack: next[0], ..base(true, 0) });
        push(now, Packet { tcp_flags: ACK, seq: next[0], ack: next[1], ..base(false, 0) });
    }
    for (number, step) in steps.iter().enumerate() {
        let side = step.back as usize;
        now += step.gap_ns;
        let mut packet = base(step.back, step.payload);
        (packet.seq, packet.ack, packet.window) = (next[side], next[side ^ 1], step.window);
        packet.tcp_flags = if number % 3 == 0 { ACK | PSH } else { ACK };
        let mut at = now;
        match step.odd {
            0 => packet.tcp_flags |= FIN,
            1 => packet.tcp_flags = RST,
            2 => packet.tcp_flags = SYN,
            3 => packet.tcp_flags = 0,
            4 => packet.seq = packet.seq.wrapping_sub(1),
            5 => packet.seq = packet.seq.wrapping_add(3000),
            6 => packet.seq = packet.seq.wrapping_sub(3000),
            7 => packet.ack = packet.ack.wrapping_sub(100),
            8 => packet.ttl = 63,
            9 => packet.traffic_class = 0x2a,
            10 => packet.marks = mark::DONT_FRAGMENT,
            11 => packet.marks = mark::FRAGMENT,
            12 => packet.marks = mark::LATER_FRAGMENT | mark::FRAGMENT,
            13 => packet.extensions = extension::ROUTING,
            14 => (packet.segments, packet.segment_size) = (3, step.payload / 3),
            15 => at = now.saturating_sub(3_000_000),
            16 => packet.tcp_flags |= 0x40,
            17 => packet.ack = packet.ack.wrapping_add(3000),
            18 => packet.seq = packet.seq.wrapping_add(1 << 30),
            19 => packet.seq = packet.seq.wrapping_sub(1 << 30),
            20 => packet.tcp_flags = SYN | ACK,
            _ => {}
        }
        if transport != protocol::TCP {
            (packet.tcp_flags, packet.window, packet.seq, packet.ack) = (0, 0, 0, 0);
        }
        next[side] = packet.seq.wrapping_add(packet.payload_len);
        push(at, packet);
    }
    packets
}

/// The records of both ways, which must be the same after each packet, and how often the short way did.
fn compare(packets: &[(u64, Packet)]) -> usize {
    let (mut record, mut long) = (FlowRecord::zeroed(), FlowRecord::zeroed());
    let (first_ns, first) = packets[0];
    record.start(&first, first_ns, 1, 1);
    long.start(&first, first_ns, 1, 1);
    let mut taken = 0;
    for (now_ns, packet) in packets {
        let before = record;
        match record.quick(packet, *now_ns) {
            Quick::No => {
                assert_eq!(record, before, "it left its hands off");
                record.long(packet, *now_ns);
            }
            way => {
                taken += 1;
                let reached = record.packets().is_power_of_two();
                assert!(way == Quick::Stage || !reached, "{} packets went unnoticed", record.packets());
            }
        }
        long.long(packet, *now_ns);
        // The word that the short way compares is that of the last packet on the long way.
        for side in [0, 1] {
            long.directions[side].usual = record.directions[side].usual;
        }
        long.steady = record.steady;
        assert_eq!(record, long, "{packet:?}");
    }
    taken
}

proptest! {
    #[test]
    fn both_ways_make_the_same_record(steps in prop::collection::vec(step(), 1..120), tcp in any::<bool>()) {
        compare(&conversation(&steps, if tcp { protocol::TCP } else { protocol::UDP }));
    }
}

/// Without this, the test above could pass because nothing ever takes the short way.
#[test]
fn ordinary_packets_take_the_short_way() {
    let step = |back| Step { back, payload: if back { 1400 } else { 0 }, gap_ns: 10_000, window: 500, odd: 99 };
    let steps: Vec<_> = (0..400).map(|number| step(number % 3 != 0)).collect();
    for (transport, before) in [(protocol::TCP, FIRST_N), (protocol::UDP, FIRST_N)] {
        let packets = conversation(&steps, transport);
        let long = packets.len() - compare(&packets);
        assert!((before..before + 2).contains(&long), "protocol {transport}: {long} packets on the long way");
    }
}
