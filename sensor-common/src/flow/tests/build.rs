//! Packets without frames: only what the record looks at.

use crate::flow::{Domain, FlowKey, FlowRecord};
use crate::packet::{NO_WSCALE, Packet, protocol};

pub(super) const MS: u64 = 1_000_000;
pub(super) const SECOND: u64 = 1_000 * MS;
/// Not 0, so that a time that was never set shows.
pub(super) const START: u64 = 7 * SECOND;

/// A packet of 20 + 20 header bytes from 198.18.0.1:1000 to 198.18.0.2:80, or back.
pub(super) fn packet(protocol: u8, back: bool, payload: u32) -> Packet {
    let (client, server) = ([0xc612_0001, 0, 0, 0], [0xc612_0002, 0, 0, 0]);
    let (client_port, server_port) = (1000, 80);
    let (src, dst, from, to) =
        if back { (server, client, server_port, client_port) } else { (client, server, client_port, server_port) };
    let (key, from_low) = FlowKey::canonical(src, dst, from, to, protocol, 4, Domain::default());
    Packet {
        key,
        from_low,
        frame_len: 54 + payload,
        l3_offset: 14,
        payload_offset: 54,
        header_len: 40,
        payload_len: payload,
        segments: 1,
        segment_size: 0,
        tcp_flags: 0,
        window: 500,
        seq: 0,
        ack: 0,
        ttl: 64,
        traffic_class: 0,
        icmp_type: 0,
        icmp_code: 0,
        marks: 0,
        mss: 0,
        wscale: NO_WSCALE,
        tcp_options: 0,
        extensions: 0,
        sample_len: 0,
        flow_label: 0,
        fragment_id: 0,
        sample: [0; 4],
    }
}

pub(super) fn udp(back: bool, payload: u32) -> Packet {
    packet(protocol::UDP, back, payload)
}

pub(super) fn tcp(back: bool, flags: u8, seq: u32, ack: u32, payload: u32) -> Packet {
    Packet { tcp_flags: flags, seq, ack, ..packet(protocol::TCP, back, payload) }
}

/// The record of packets that arrive at these times, ns after [`START`].
pub(super) fn record(packets: &[(u64, Packet)]) -> FlowRecord {
    let mut record = FlowRecord::zeroed();
    // What an earlier flow of the slot left behind must not show.
    bytemuck::bytes_of_mut(&mut record).fill(0xa5);
    for (number, (time, packet)) in packets.iter().enumerate() {
        if number == 0 {
            record.start(packet, START + time, 3, 1);
            record.born_among(5);
        }
        record.update(packet, START + time);
    }
    record
}

/// The same, one millisecond apart.
pub(super) fn each_ms(packets: &[Packet]) -> FlowRecord {
    let timed: Vec<_> = packets.iter().enumerate().map(|(number, packet)| (number as u64 * MS, *packet)).collect();
    record(&timed)
}
