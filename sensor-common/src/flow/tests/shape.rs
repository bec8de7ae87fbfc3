//! Bulks, bursts, subflows, active and idle periods, inter-arrival bins.

use super::build::{MS, SECOND, START, record, tcp, udp};
use crate::features::{Sample, by_name};
use crate::flow::{FlowRecord, Periods};
use crate::packet::Packet;
use crate::tcp::ACK;

/// Bulks, packets, bytes, ns of a direction.
fn bulks(record: &FlowRecord, side: usize) -> (u32, u32, u64, u64) {
    let half = record.direction(side).expect("has packets");
    (half.bulks, half.bulk_packets, half.bulk_bytes, half.bulk_ns)
}

#[test]
fn four_packets_with_payload_make_a_bulk() {
    let every = |count: u64, gap: u64| (0..count).map(|n| (n * gap, udp(false, 100))).collect::<Vec<_>>();
    assert_eq!(bulks(&record(&every(3, MS)), 0), (0, 0, 0, 0));
    assert_eq!(bulks(&record(&every(4, MS)), 0), (1, 4, 400, 3 * MS));
    assert_eq!(bulks(&record(&every(6, SECOND)), 0), (1, 6, 600, 5 * SECOND), "a gap of 1 s is not too long");
    assert_eq!(bulks(&record(&every(6, SECOND + 1)), 0), (0, 0, 0, 0));
}

#[test]
fn only_payload_of_the_other_side_ends_a_bulk() {
    let data = |time: u64| (time * MS, tcp(false, ACK, 0, 0, 10));
    let empty = |time: u64| (time * MS, tcp(true, ACK, 0, 0, 0));
    let full = |time: u64| (time * MS, tcp(true, ACK, 0, 0, 7));
    let acknowledged = record(&[data(0), data(1), empty(2), data(3), empty(4), data(5), data(6)]);
    assert_eq!(bulks(&acknowledged, 0), (1, 5, 50, 6 * MS));
    let interrupted = record(&[data(0), data(1), data(2), full(3), data(4), data(5), data(6)]);
    assert_eq!(bulks(&interrupted, 0), (0, 0, 0, 0));
    let twice = record(&[data(0), data(1), data(2), data(3), full(4), data(5), data(6), data(7), data(9)]);
    assert_eq!(bulks(&twice, 0), (2, 8, 80, 7 * MS));
    assert_eq!(bulks(&twice, 1), (0, 0, 0, 0));
    let back = record(&[data(0), full(1), full(2), full(3), full(4)]);
    assert_eq!(bulks(&back, 1), (1, 4, 28, 3 * MS));
}

#[test]
fn a_super_packet_is_a_bulk_of_its_own() {
    let large = Packet { segments: 5, segment_size: 100, ..udp(false, 450) };
    assert_eq!(bulks(&record(&[(0, large)]), 0), (1, 5, 450, 0));
    assert_eq!(bulks(&record(&[(0, udp(false, 1)), (MS, large), (2 * MS, large)]), 0), (1, 11, 901, 2 * MS));
}

#[test]
fn bursts_alternate() {
    let times = |sides: &[u8]| -> FlowRecord {
        record(&sides.iter().enumerate().map(|(n, side)| (n as u64, udp(*side == 1, 1))).collect::<Vec<_>>())
    };
    let of = |record: &FlowRecord| (record.bursts_of(0), record.bursts_of(1));
    assert_eq!(of(&times(&[0])), (1, 0));
    assert_eq!(of(&times(&[0, 0, 0, 1, 1])), (1, 1));
    assert_eq!(of(&times(&[0, 1, 0, 0, 1, 0])), (3, 2));
}

#[test]
fn pauses_are_active_and_idle_periods() {
    let at = |ms: u64| (ms * MS, udp(false, 1));
    // 0–2 s active, 6 s idle, one frame, 5.001 s idle, 0.5 s active; 5 s on the dot is no idle period.
    let record_ = record(&[at(0), at(2_000), at(8_000), at(13_001), at(13_501)]);
    assert_eq!((record_.subflows, record_.idles), (4, 2));
    let active = record_.active();
    let squares = 2_000_000u64.pow(2) + 500_000u64.pow(2);
    let expected = Periods { count: 3, sum_us: 2_500_000, min_us: 0, max_us: 2_000_000, square_us2: squares };
    assert_eq!(active, expected);
    let squares = 6_000_000u64.pow(2) + 5_001_000u64.pow(2);
    let expected = Periods { count: 2, sum_us: 11_001_000, min_us: 5_001_000, max_us: 6_000_000, square_us2: squares };
    assert_eq!(record_.idle(), expected);
    let steady = record(&[at(0), at(5_000), at(10_000)]);
    assert_eq!((steady.subflows, steady.idles, steady.idle().count), (3, 0, 0));
    assert_eq!((steady.active().count, steady.active().min_us, steady.active().max_us), (1, 10_000_000, 10_000_000));
    assert_eq!(record(&[at(0), at(1_000)]).subflows, 1);
}

#[test]
fn forty_hours_of_silence_do_not_overflow() {
    let gap = 40 * 3600 * SECOND;
    let record = record(&[(0, udp(false, 1)), (gap, udp(false, 1)), (gap + MS, udp(true, 1))]);
    let square = (gap as u128) * (gap as u128);
    let half = record.forward();
    assert_eq!((half.iat_square_high as u128) << 64 | half.iat_square_low as u128, square);
    assert_eq!((half.iat_min_ns, half.iat_max_ns, half.iat_bins[7]), (gap, gap, 1));
    let total = (record.iat_square_high as u128) << 64 | record.iat_square_low as u128;
    assert_eq!(total, square + (MS as u128).pow(2));
    assert_eq!((record.idle().max_us, record.active().max_us), (gap / 1000, 1_000));
}

#[test]
fn time_never_runs_backwards() {
    let record =
        record(&[(5 * MS, udp(false, 1)), (3 * MS, udp(true, 1)), (4 * MS, udp(false, 1)), (6 * MS, udp(false, 1))]);
    assert_eq!((record.first_ns, record.last_ns), (START + 5 * MS, START + 6 * MS));
    assert_eq!((record.iat_min_ns, record.iat_max_ns), (0, MS));
    assert_eq!(record.reverse().map(|half| half.last_ns), Some(START + 5 * MS));
    assert_eq!((record.forward().iat_min_ns, record.forward().iat_max_ns), (0, MS));
}

#[test]
fn inter_arrival_bins_hold_every_frame_but_the_first() {
    let record = record(&[(0, udp(false, 1)), (8_000, udp(false, 1)), (MS, udp(true, 1)), (MS + 9_000, udp(false, 1))]);
    assert_eq!(record.forward().iat_bins, [1, 0, 0, 1, 0, 0, 0, 0]);
    assert_eq!(record.reverse().map(|half| half.iat_bins), Some([0; 8]));
}

/// As doubles, the squares of long gaps would swallow the spread between them.
#[test]
fn a_beacon_keeps_its_jitter() {
    let value = |record: &FlowRecord, name: &str| by_name(name).expect(name).value(&Sample::of(record));
    for (gap, jitter) in [(SECOND, 10), (30 * SECOND, 500), (SECOND, 0)] {
        // Gaps of one jitter more and one less, in turn; payloads of 1,000 bytes, one more or less.
        let at = |n: u64| (n * gap + n % 2 * jitter, udp(false, 999 + (n % 2 * 2) as u32));
        let record = record(&(0..=240).map(at).collect::<Vec<_>>());
        for name in ["fwd_iat_std", "flow_iat_std"] {
            assert_eq!(value(&record, name), jitter as f64 / 1e9, "{name} of gaps of {gap} ns");
        }
        assert_eq!(value(&record, "flow_iat_mean"), gap as f64 / 1e9);
        let (ones, all) = (120.0, 241.0);
        let expected = 2.0 * f64::sqrt(ones * (all - ones)) / all;
        assert!((value(&record, "fwd_payload_std") - expected).abs() < 1.0 / 65536.0);
    }
}
