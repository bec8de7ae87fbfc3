//! What holds for every record, whatever the packets.

use proptest::prelude::*;

use super::build::{START, packet};
use crate::flow::{FIRST_N, FlowRecord};
use crate::packet::{Packet, protocol};

prop_compose! {
    fn any_packet()(
        transport in prop::sample::select(vec![protocol::TCP, protocol::UDP, protocol::ICMP]),
        back in any::<bool>(),
        payload in prop_oneof![Just(0u32), 1u32..3_000, 3_000u32..100_000],
        segments in 1u32..5,
        tcp_flags in any::<u8>(),
        // Close together, so that they overlap and wrap.
        seq in prop_oneof![0u32..4_000, (u32::MAX - 2_000)..u32::MAX],
        ack in 0u32..4_000,
        window in prop_oneof![Just(0u16), any::<u16>()],
        (marks, extensions, icmp_type) in (0u16..512, any::<u8>(), any::<u8>()),
        (sample, sample_len) in (any::<[u32; 4]>(), 0u8..=16),
        (ttl, traffic_class) in any::<(u8, u8)>(),
    ) -> Packet {
        let segments = if payload >= segments { segments } else { 1 };
        let segment_size = if segments > 1 { payload.div_ceil(segments) } else { 0 };
        // Zero-padded, as the parser gives it.
        let mut sample = sample;
        for position in sample_len as usize..16 {
            sample[position / 4] &= !(0xff << (24 - 8 * (position % 4)));
        }
        let fits = segments > 1 && (segments - 1) * segment_size < payload;
        Packet {
            segments: if fits { segments } else { 1 },
            segment_size: if fits { segment_size } else { 0 },
            tcp_flags: if transport == protocol::TCP { tcp_flags } else { 0 },
            seq, ack, window, marks, extensions, icmp_type, sample, sample_len, ttl, traffic_class,
            ..packet(transport, back, payload)
        }
    }
}

/// Times that go forth, back and far.
fn steps() -> impl Strategy<Value = Vec<(i64, Packet)>> {
    let step = prop_oneof![-1_000_000i64..1_000_000, 0i64..8_000_000_000, Just(40 * 3_600_000_000_000)];
    prop::collection::vec((step, any_packet()), 1..60)
}

fn replay(steps: &[(i64, Packet)]) -> FlowRecord {
    let mut record = FlowRecord::zeroed();
    let mut now = START;
    let transport = steps[0].1.key.protocol;
    for (number, (step, packet)) in steps.iter().enumerate() {
        let mut packet = *packet;
        packet.key.protocol = transport;
        now = now.saturating_add_signed(*step);
        if number == 0 {
            record.start(&packet, now, 1, 1);
        }
        record.update(&packet, now);
    }
    record
}

proptest! {
    #[test]
    fn sums_bins_and_extremes_agree(steps in steps()) {
        let record = replay(&steps);
        prop_assert_eq!(record.frames(), steps.len() as u64);
        prop_assert_eq!(record.packets(), steps.iter().map(|(_, packet)| packet.segments as u64).sum::<u64>());
        prop_assert_eq!(record.l3_bytes(), steps.iter().map(|(_, packet)| packet.l3_len()).sum::<u64>());
        prop_assert_eq!(record.first_len as usize, steps.len().min(FIRST_N));
        let mut gaps = 0;
        for side in [0, 1] {
            let Some(half) = record.direction(side) else { continue };
            let frames = half.arrivals();
            gaps += frames - 1;
            prop_assert_eq!(half.size_bins.iter().map(|bin| *bin as u64).sum::<u64>(), half.packets);
            prop_assert_eq!(half.iat_bins.iter().map(|bin| *bin as u64).sum::<u64>(), frames - 1);
            prop_assert!(half.packets >= frames);
            let mean = half.l3_bytes as f64 / half.packets as f64;
            prop_assert!(half.l3_min as f64 <= mean && mean <= half.l3_max as f64 || half.l3_min == u16::MAX);
            let mean = half.payload_bytes as f64 / half.packets as f64;
            prop_assert!(half.payload_min as f64 <= mean && mean <= half.payload_max as f64 || half.payload_min == u16::MAX);
            prop_assert!(half.ttl_min <= half.ttl_max);
            let span = half.last_ns - record.first_ns_of(side).expect("it sent");
            if frames > 1 {
                let mean = span as f64 / (frames - 1) as f64;
                prop_assert!(half.iat_min_ns as f64 <= mean + 1.0 && mean <= half.iat_max_ns as f64 + 1.0);
            }
            prop_assert!(half.bulk_packets as u64 <= half.payload_packets() && half.bulk_bytes <= half.payload_bytes);
            prop_assert!(half.bulk_ns <= span && half.bulks as u64 * 4 <= half.bulk_packets as u64);
            prop_assert!(record.bursts_of(side) <= frames);
            let repeated = half.retransmitted as u64 + half.out_of_order as u64;
            prop_assert!(repeated <= half.packets && half.duplicate_acks as u64 <= frames);
            let opening = record.opening(side).expect("it sent");
            prop_assert!(opening.hint_text + opening.hint_high <= opening.hint_len && opening.hint_entropy <= 128);
        }
        let one_sided = record.direction(0).is_none() || record.direction(1).is_none();
        prop_assert_eq!(gaps, steps.len() as u64 - if one_sided { 1 } else { 2 });
        prop_assert!(record.last_ns >= record.first_ns);
        let duration_us = (record.last_ns - record.first_ns) / 1000;
        let (active, idle) = (record.active(), record.idle());
        prop_assert_eq!(active.sum_us + idle.sum_us, duration_us);
        prop_assert_eq!(active.count, idle.count + 1);
        prop_assert!(active.min_us <= active.max_us && active.max_us <= duration_us && idle.min_us <= idle.max_us);
        prop_assert!(record.subflows > record.idles);
    }
}
