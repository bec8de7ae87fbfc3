//! Any bytes as a frame: nothing panics, and a packet that comes out has lengths that fit each other and the frame.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sensor_common::flow::FlowKey;
use sensor_common::packet::{self, Captured, Packet};

/// What [`packet`] promises of every packet. `wire_len`: that of the frame.
fn check(packet: &Packet, wire_len: u32) {
    let Packet { key, frame_len, l3_offset, header_len, payload_len, segments, segment_size, .. } = *packet;
    assert_eq!(frame_len, wire_len);
    assert_eq!((segments, segment_size), (1, 0), "no frame here says that it is a super-packet");
    assert!(l3_offset as u64 + packet.l3_len() <= wire_len as u64, "the datagram ends inside the frame: {packet:?}");
    assert!(header_len >= 20 && header_len <= packet::MAX_HEADER_OFFSET + 60, "{packet:?}");
    assert_eq!(packet.last_segment(), payload_len);
    assert!(key.family == 4 || key.family == 6);
    assert!((key.low, key.low_port) <= (key.high, key.high_port), "the key is the same for both directions");
    assert_eq!(key, FlowKey { ..key });
}

fuzz_target!(|data: &[u8]| {
    // The first two bytes say how much longer the frame was on the wire than what was kept of it.
    let [high, low, bytes @ ..] = data else { return };
    let cut = u16::from_be_bytes([*high, *low]) as u32;
    if let Ok(packet) = packet::parse(bytes) {
        check(&packet, bytes.len() as u32);
    }
    let wire_len = bytes.len() as u32 + cut;
    if let Ok(packet) = packet::parse(Captured { bytes, wire_len }) {
        check(&packet, wire_len);
    }
});
