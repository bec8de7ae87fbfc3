//! Sequence numbers, handshake and close.

use super::build::{MS, START, each_ms, record, tcp};
use crate::flow::{FlowRecord, state};
use crate::packet::{Packet, mark, tcp_option};
use crate::tcp::{ACK, FIN, RST, SYN};

const PUSH: u8 = 0x08;

/// Retransmitted, out of order, duplicate ACKs, keep-alives.
fn counts(record: &FlowRecord, side: usize) -> (u32, u32, u32, u16) {
    let half = record.direction(side).expect("has packets");
    (half.retransmitted, half.out_of_order, half.duplicate_acks, half.keep_alives)
}

fn data(seq: u32, payload: u32) -> Packet {
    tcp(false, ACK | PUSH, seq, 1, payload)
}

fn answer(ack: u32) -> Packet {
    tcp(true, ACK, 1, ack, 0)
}

#[test]
fn a_clean_connection_repeats_nothing() {
    let record = each_ms(&[
        tcp(false, SYN, 99, 0, 0),
        tcp(true, SYN | ACK, 0, 100, 0),
        tcp(false, ACK, 100, 1, 0),
        data(100, 50),
        answer(150),
        tcp(true, ACK | PUSH, 1, 150, 30),
        tcp(false, ACK | FIN, 150, 31, 0),
        tcp(true, ACK | FIN, 31, 151, 0),
        tcp(false, ACK, 151, 32, 0),
    ]);
    assert_eq!((counts(&record, 0), counts(&record, 1)), ((0, 0, 0, 0), (0, 0, 0, 0)));
    assert!(record.state & state::GRACEFUL != 0 && record.state & state::CLOSED != 0);
    assert_eq!(record.state & (state::RST | state::FIN_REVERSE_FIRST), 0);
    assert_eq!(record.syn_ns(), Some(START));
    assert_eq!((record.syn_ack_ns, record.established_ns), (START + MS, START + 2 * MS));
}

#[test]
fn the_same_bytes_again_are_a_retransmission() {
    let record = each_ms(&[data(0, 100), data(100, 100), data(0, 100), data(100, 100), data(150, 50), data(200, 1)]);
    assert_eq!(counts(&record, 0), (3, 0, 0, 0));
    // A segment that brings new bytes behind old ones is none.
    assert_eq!(counts(&each_ms(&[data(0, 100), data(50, 100)]), 0), (0, 0, 0, 0));
}

#[test]
fn repeated_syn_and_fin_are_retransmissions() {
    let syn = tcp(false, SYN, 41, 0, 0);
    let record = each_ms(&[syn, syn, syn]);
    assert_eq!(counts(&record, 0), (2, 0, 0, 0));
    let fin = tcp(false, FIN | ACK, 200, 1, 0);
    assert_eq!(counts(&each_ms(&[data(100, 100), fin, fin]), 0), (1, 0, 0, 0));
    let record = each_ms(&[syn, tcp(false, SYN, 9_000, 0, 0), data(9_001, 10)]);
    assert_eq!(counts(&record, 0), (0, 0, 0, 0), "another initial number: tracked anew");
}

#[test]
fn a_late_segment_is_out_of_order_once() {
    let late = data(100, 100);
    let record = each_ms(&[data(0, 100), data(200, 100), data(300, 100), late, late]);
    assert_eq!(counts(&record, 0), (1, 1, 0, 0), "the second copy is a retransmission");
    // Two gaps, filled in any order; the segment between them is not one of theirs.
    let record = each_ms(&[data(0, 10), data(20, 10), data(40, 10), data(30, 10), data(10, 10), data(20, 10)]);
    assert_eq!(counts(&record, 0), (1, 2, 0, 0));
}

#[test]
fn what_the_receiver_has_acknowledged_is_no_gap() {
    // The observer lost 100..200; the receiver got it, so what comes again is a retransmission.
    let record = each_ms(&[data(0, 100), data(200, 100), answer(300), data(100, 100)]);
    assert_eq!(counts(&record, 0), (1, 0, 0, 0));
}

#[test]
fn sequence_numbers_wrap() {
    let near = u32::MAX - 49;
    let record = each_ms(&[data(near, 100), data(50, 100), data(near, 100), data(250, 10), data(150, 100)]);
    assert_eq!(counts(&record, 0), (1, 1, 0, 0));
    assert_eq!(record.forward().next, 260);
}

#[test]
fn keep_alives_are_neither_retransmissions_nor_duplicates() {
    let alive = |payload| data(99, payload);
    let record = each_ms(&[data(0, 100), answer(100), alive(0), answer(100), alive(1), answer(100), alive(1)]);
    assert_eq!(counts(&record, 0), (0, 0, 0, 3));
    assert_eq!(counts(&record, 1), (0, 0, 0, 0), "nothing is outstanding");
}

#[test]
fn duplicate_acks_are_those_of_rfc_5681() {
    let window = |packet: Packet, window| Packet { window, ..packet };
    let record = each_ms(&[
        data(0, 100),
        answer(100),
        data(200, 100),
        answer(100),
        data(300, 100),
        answer(100),
        window(answer(100), 400),
        answer(400),
        answer(400),
    ]);
    assert_eq!(counts(&record, 1), (0, 0, 2, 0), "not the window update, and not without outstanding bytes");
    let with_data = tcp(true, ACK, 1, 100, 5);
    assert_eq!(counts(&each_ms(&[data(0, 300), answer(100), with_data]), 1), (0, 0, 0, 0));
}

#[test]
fn super_packets_count_their_segments() {
    let large = Packet { segments: 3, segment_size: 100, ..data(0, 250) };
    let record = each_ms(&[large, large]);
    assert_eq!(counts(&record, 0), (3, 0, 0, 0));
    assert_eq!((record.forward().packets, record.forward().arrivals()), (6, 2));
    // 0–99 and 100–199 are old, 200–249 is new in part.
    let record = each_ms(&[data(0, 220), large]);
    assert_eq!(counts(&record, 0), (2, 0, 0, 0));
}

#[test]
fn resets_say_when_and_from_whom() {
    let bits = state::RST | state::RST_EARLY | state::RST_REVERSE | state::RST_AFTER_FIN | state::GRACEFUL;
    let syn = tcp(false, SYN, 0, 0, 0);
    let refused = each_ms(&[syn, tcp(true, RST | ACK, 0, 1, 0)]);
    assert_eq!(refused.state & bits, state::RST | state::RST_EARLY | state::RST_REVERSE);
    let fin = tcp(false, FIN | ACK, 10, 1, 0);
    let aborted = each_ms(&[data(0, 10), fin, tcp(true, RST, 1, 0, 0)]);
    assert_eq!(aborted.state & bits, state::RST | state::RST_REVERSE | state::RST_AFTER_FIN);
    let closed = [data(0, 10), fin, tcp(true, FIN | ACK, 1, 11, 0), tcp(false, ACK, 11, 2, 0)];
    let after = each_ms(&[&closed[..], &[tcp(false, RST, 11, 0, 0)]].concat());
    assert_eq!(after.state & bits, state::RST | state::RST_AFTER_FIN | state::GRACEFUL, "it had closed before");
    assert!(after.is_reopened_by(&syn));
}

#[test]
fn a_half_open_connection_stays_open() {
    let record = each_ms(&[data(0, 10), answer(10), tcp(true, FIN | ACK, 1, 10, 0), tcp(false, ACK, 10, 2, 0)]);
    assert_eq!(record.state & (state::CLOSED | state::FIN), 0);
    assert!(record.state & state::FIN << 1 != 0 && record.state & state::FIN_REVERSE_FIRST != 0);
    assert!(!record.is_reopened_by(&tcp(false, SYN, 0, 0, 0)));
}

#[test]
fn simultaneous_open_is_a_handshake() {
    let record = each_ms(&[
        tcp(false, SYN, 10, 0, 0),
        tcp(true, SYN, 20, 0, 0),
        tcp(false, SYN | ACK, 10, 21, 0),
        tcp(true, SYN | ACK, 20, 11, 0),
        data(11, 5),
    ]);
    assert!(record.state & state::ESTABLISHED != 0);
    assert_eq!(record.established_ns, START + 3 * MS);
    assert_eq!((record.forward().packets, record.reverse().map(|half| half.packets)), (3, Some(2)));
}

#[test]
fn a_syn_ack_first_still_names_the_initiator() {
    let record = each_ms(&[tcp(true, SYN | ACK, 0, 1, 0), tcp(false, ACK, 1, 1, 0)]);
    assert_eq!(record.reverse().map(|half| half.packets), Some(1));
    assert_eq!((record.first_ns_of(0), record.first_ns_of(1)), (Some(START + MS), Some(START)));
    assert_eq!(record.syn_ns(), None);
}

#[test]
fn windows_and_options_are_kept() {
    let syn = Packet {
        mss: 1460,
        wscale: 7,
        tcp_options: tcp_option::MSS | tcp_option::WSCALE | tcp_option::SACK_PERMITTED,
        ..tcp(false, SYN, 0, 0, 0)
    };
    let zero = Packet { window: 0, ..tcp(false, ACK, 1, 1, 0) };
    let reset = Packet { window: 0, ..tcp(false, RST, 1, 1, 0) };
    let record = each_ms(&[syn, zero, Packet { window: 900, ..data(1, 5) }, reset]);
    let (half, opening) = (record.forward(), record.opening(0).expect("it sent"));
    assert_eq!((opening.mss, opening.wscale, opening.tcp_options, opening.window), (1460, 7, 7, 500));
    assert_eq!((half.window_min, half.window_max, half.zero_windows), (0, 900, 1), "a reset's window is none");
}

#[test]
fn later_fragments_have_no_tcp_header() {
    let later = Packet { marks: mark::FRAGMENT | mark::LATER_FRAGMENT, window: 0, ..tcp(false, 0, 0, 0, 700) };
    let first = Packet { marks: mark::FRAGMENT, ..data(100, 1400) };
    let record = record(&[(0, first), (1, later)]);
    let half = record.forward();
    assert_eq!((half.window_min, half.zero_windows, half.next), (500, 0, 1500));
    assert_eq!((half.payload_bytes, record.openings[0].fragments), (2100, 2));
}
