//! Start, IP fields, ICMP, hints, health.

use super::build::{MS, each_ms, packet, record, udp};
use crate::flow::{FlowRecord, icmp_kind, ip_seen, state};
use crate::packet::{Packet, extension, mark, protocol};

#[test]
fn a_new_flow_shows_nothing_of_the_slots_last_one() {
    let record = record(&[(0, udp(false, 4))]);
    let mut clean = FlowRecord::zeroed();
    clean.start(&udp(false, 4), super::build::START, 3, 1);
    clean.born_among(5);
    clean.update(&udp(false, 4), super::build::START);
    clean.sequence = record.sequence;
    assert_eq!(record.normalized(), clean.normalized());
    assert_eq!((record.occupied_ways(), record.ifindex), (5, 3));
}

#[test]
fn smallest_and_largest_are_of_every_packet_once() {
    let record = each_ms(&[udp(false, 10), udp(false, 30), udp(false, 20)]);
    let half = record.forward();
    assert_eq!((half.payload_min, half.payload_max, half.l3_min, half.l3_max), (10, 30, 50, 70));
    assert_eq!((half.payload_bytes, half.l3_bytes, half.header_bytes(), half.payload_packets()), (60, 180, 120, 3));
    assert_eq!((half.payload_square, half.l3_square), (1_400, 2_500 + 4_900 + 3_600));
    let jumbo = each_ms(&[udp(false, 100_000)]);
    assert_eq!((jumbo.forward().payload_min, jumbo.forward().payload_max), (u16::MAX, 100_000));
}

#[test]
fn ip_fields_are_kept_as_masks_and_firsts() {
    let first = Packet { ttl: 60, traffic_class: 0x28, marks: mark::DONT_FRAGMENT, flow_label: 9, ..udp(false, 1) };
    let same_dscp = Packet { ttl: 64, traffic_class: 0x2a, ..first };
    let record = each_ms(&[first, same_dscp]);
    let seen = record.forward().ip_seen;
    assert_eq!(seen, ip_seen::DF_SET | ip_seen::ECN | ip_seen::ECN << 2);
    assert_eq!((record.forward().ttl_min, record.forward().ttl_max, record.forward().traffic_class), (60, 64, 0x28));
    assert_eq!((record.openings[0].ttl, record.openings[0].flow_label), (60, 9));
    let odd =
        Packet { marks: mark::IP_OPTIONS | mark::FRAGMENT, traffic_class: 0xfb, extensions: extension::AH, ..first };
    let record = each_ms(&[first, odd, odd]);
    assert_eq!(
        record.forward().ip_seen,
        ip_seen::DF_SET
            | ip_seen::DF_CLEAR
            | ip_seen::OPTIONS
            | ip_seen::DSCP_CHANGED
            | ip_seen::ECN
            | ip_seen::ECN << 3
    );
    assert_eq!((record.openings[0].fragments, record.openings[0].extensions), (2, extension::AH));
}

#[test]
fn icmp_packets_are_counted_by_kind() {
    let icmp = |back, icmp_type| Packet { icmp_type, icmp_code: 3, ..packet(protocol::ICMP, back, 56) };
    let error = Packet { marks: mark::ICMP_ERROR, ..icmp(true, 3) };
    let record = each_ms(&[icmp(false, 8), icmp(true, 0), icmp(false, 8), error, icmp(true, 13)]);
    let reverse = record.reverse().expect("answered");
    assert_eq!(record.forward().icmp(icmp_kind::ECHO_REQUEST), 2);
    assert_eq!(reverse.icmp(icmp_kind::ECHO_REPLY), 1);
    assert_eq!((reverse.icmp(icmp_kind::ERROR), reverse.icmp(icmp_kind::OTHER)), (1, 1));
    assert_eq!(record.icmp_message(), (8, 3));
}

#[test]
fn the_first_error_that_quotes_a_flow_is_kept() {
    let mut record = each_ms(&[udp(false, 1)]);
    record.quoted(3, 1);
    record.quoted(3, 4);
    assert_eq!((record.icmp_errors, record.error_type, record.error_code), (2, 3, 1));
}

#[test]
fn one_address_can_have_two_ends() {
    let local = |mut packet: Packet, from_low| {
        packet.key.high = packet.key.low;
        packet.from_low = from_low;
        packet
    };
    // Ports tell the ends apart …
    let record = each_ms(&[local(udp(false, 1), true), local(udp(true, 1), false)]);
    assert_eq!(record.reverse().map(|half| half.packets), Some(1));
    // … of an echo exchange only the type does …
    let echo = |icmp_type| {
        let mut packet = local(packet(protocol::ICMP, false, 8), true);
        (packet.key.low_port, packet.key.high_port, packet.icmp_type) = (7, 7, icmp_type);
        packet
    };
    let record = each_ms(&[echo(8), echo(0), echo(8), echo(0)]);
    assert_eq!((record.forward().packets, record.reverse().map(|half| half.packets)), (2, Some(2)));
    assert!(record.state & state::SELF != 0);
}

#[test]
fn the_first_payload_of_each_direction_gives_the_hint() {
    let hello = |back, sample, sample_len| Packet { sample, sample_len, ..udp(back, sample_len as u32) };
    let first = hello(false, [0xc300_0000, 0x0108_0102, 0, 0], 8);
    let second = hello(false, [0x4141_4141, 0, 0, 0], 4);
    let record =
        record(&[(0, udp(false, 0)), (MS, first), (2 * MS, second), (3 * MS, hello(true, [0x4142_4344, 0, 0, 0], 4))]);
    let (forward, reverse) = (record.openings[0], record.openings[1]);
    assert_eq!((forward.hint_len, forward.hint_text, forward.hint_high, forward.version), (8, 0, 1, 1));
    assert_eq!((reverse.hint_len, reverse.hint_text, reverse.hint_entropy), (4, 4, 64), "4 different bytes: 2 bits");
    let off = each_ms(&[udp(false, 4), second]);
    assert_eq!(off.openings[0].hint_len, 0, "the first payload came without a sample");
}
