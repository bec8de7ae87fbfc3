//! Identity, lifetime, volume, size, spacing, flags and first arrivals: the features of contract 1, unchanged.

use super::{Feature, record_feature};
use crate::flow::{Arrival, Direction, FIRST_N, FlowRecord, state};
use crate::packet::protocol;

pub(super) const NEVER: &str = "never";
pub(super) const NO_FORWARD: &str = "the initiator sent nothing that was seen";
pub(super) const NO_REVERSE: &str = "the responder sent nothing";
pub(super) const NOT_TCP: &str = "not TCP";
pub(super) const ONE_ARRIVAL: &str = "fewer than two frames";
pub(super) const ONE_ARRIVAL_IN: &str = "fewer than two frames in that direction";
pub(super) const NO_HANDSHAKE: &str = "no SYN and SYN-ACK seen";

pub(super) fn direction(record: &FlowRecord, side: usize) -> Option<&Direction> {
    if side == 0 { Some(record.forward()) } else { record.reverse() }.filter(|half| half.packets > 0)
}

pub(super) fn of(record: &FlowRecord, side: usize, value: impl Fn(&Direction) -> f64) -> f64 {
    direction(record, side).map_or(f64::NAN, value)
}

/// A count is 0, not missing, in a direction that sent nothing.
pub(super) fn count(record: &FlowRecord, side: usize, value: impl Fn(&Direction) -> u64) -> f64 {
    direction(record, side).map_or(0.0, |half| value(half) as f64)
}

pub(super) fn tcp(record: &FlowRecord, value: f64) -> f64 {
    if record.key.protocol == protocol::TCP { value } else { f64::NAN }
}

pub(super) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Population deviation from a count, a sum and a sum of squares, in integers: the sums are exact, and their difference
/// may be a tiny part of them. A `square` of at most 96 bits and a `count` of at most 32, or of 64 bits each, always fit.
pub(super) fn deviation(count: u64, sum: u64, square: u128) -> f64 {
    let (n, sum) = (count as u128, sum as u128);
    let spread = n.saturating_mul(square).saturating_sub(sum * sum);
    (spread as f64).sqrt() / count as f64
}

/// Inter-arrival statistics of `arrivals` frames between two times.
pub(super) struct Spacing {
    gaps: u64,
    span_ns: u64,
    square_ns: u128,
    min_ns: u64,
    max_ns: u64,
}

impl Spacing {
    fn of_direction(record: &FlowRecord, side: usize) -> Option<Spacing> {
        direction(record, side).filter(|half| half.arrivals() > 1).map(|half| Spacing {
            gaps: half.arrivals() - 1,
            span_ns: half.last_ns - record.first_ns_of(side).unwrap_or(half.last_ns),
            square_ns: wide(half.iat_square_low, half.iat_square_high),
            min_ns: half.iat_min_ns,
            max_ns: half.iat_max_ns,
        })
    }

    fn of_flow(record: &FlowRecord) -> Option<Spacing> {
        let arrivals = record.forward().arrivals() + record.reverse().map_or(0, |half| half.arrivals());
        (arrivals > 1).then(|| Spacing {
            gaps: arrivals - 1,
            span_ns: record.last_ns - record.first_ns,
            square_ns: wide(record.iat_square_low, record.iat_square_high),
            min_ns: record.iat_min_ns,
            max_ns: record.iat_max_ns,
        })
    }

    fn of(record: &FlowRecord, side: usize) -> Option<Spacing> {
        if side == 2 { Spacing::of_flow(record) } else { Spacing::of_direction(record, side) }
    }
}

fn wide(low: u64, high: u32) -> u128 {
    (high as u128) << 64 | low as u128
}

pub(super) fn spacing(record: &FlowRecord, side: usize, value: impl Fn(&Spacing) -> f64) -> f64 {
    Spacing::of(record, side).map_or(f64::NAN, |spacing| value(&spacing))
}

pub(super) fn flag(record: &FlowRecord, side: usize, bit: usize) -> f64 {
    tcp(record, count(record, side, |half| half.flag(bit) as u64))
}

pub(super) fn is(record: &FlowRecord, bits: u32) -> f64 {
    (record.state & bits != 0) as u8 as f64
}

pub(super) fn arrival(record: &FlowRecord, position: usize, value: impl Fn(&Arrival) -> f64) -> f64 {
    if position < record.first_len as usize { value(&record.first[position]) } else { f64::NAN }
}

/// Port of the responder: the service, where the initiator is known.
pub fn responder_port(record: &FlowRecord) -> u16 {
    if record.state & state::INITIATOR_HIGH == 0 { record.key.high_port } else { record.key.low_port }
}

/// The features of one direction. `$p`: prefix, `$side`: 0 or 1, `$who`: for the text, `$none`: when it is missing.
macro_rules! directional {
    ($p:literal, $side:literal, $who:literal, $none:expr) => {
        [
            record_feature!(concat!($p, "_packets"), "packets", "volume", concat!("wire packets ", $who), NEVER, |r| {
                count(r, $side, |d| d.packets)
            }),
            record_feature!(
                concat!($p, "_l3_bytes"),
                "bytes",
                "volume",
                concat!("L3 bytes ", $who, ": IP headers to the end of the datagram, without link header and padding"),
                NEVER,
                |r| count(r, $side, |d| d.l3_bytes)
            ),
            record_feature!(
                concat!($p, "_payload_bytes"),
                "bytes",
                "volume",
                concat!("L4 payload bytes ", $who),
                NEVER,
                |r| count(r, $side, |d| d.payload_bytes)
            ),
            record_feature!(
                concat!($p, "_header_bytes"),
                "bytes",
                "volume",
                concat!("L3 and L4 header bytes ", $who),
                NEVER,
                |r| count(r, $side, |d| d.header_bytes())
            ),
            record_feature!(
                concat!($p, "_payload_packets"),
                "packets",
                "volume",
                concat!("packets with L4 payload ", $who),
                NEVER,
                |r| count(r, $side, |d| d.payload_packets())
            ),
            record_feature!(
                concat!($p, "_l3_min"),
                "bytes",
                "size",
                concat!("smallest L3 length of a packet ", $who),
                $none,
                |r| of(r, $side, |d| d.l3_min as f64)
            ),
            record_feature!(
                concat!($p, "_l3_max"),
                "bytes",
                "size",
                concat!("largest L3 length of a packet ", $who),
                $none,
                |r| of(r, $side, |d| d.l3_max as f64)
            ),
            record_feature!(
                concat!($p, "_l3_mean"),
                "bytes",
                "size",
                concat!("mean L3 length of a packet ", $who),
                $none,
                |r| of(r, $side, |d| d.l3_bytes as f64 / d.packets as f64)
            )
            .real(),
            record_feature!(
                concat!($p, "_l3_std"),
                "bytes",
                "size",
                concat!("population deviation of the L3 length of a packet ", $who),
                $none,
                |r| of(r, $side, |d| deviation(d.packets, d.l3_bytes, d.l3_square as u128))
            )
            .real(),
            record_feature!(
                concat!($p, "_payload_max"),
                "bytes",
                "size",
                concat!("largest L4 payload of a packet ", $who),
                $none,
                |r| of(r, $side, |d| d.payload_max as f64)
            ),
            record_feature!(
                concat!($p, "_payload_mean"),
                "bytes",
                "size",
                concat!("mean L4 payload of a packet ", $who, ", empty ones included"),
                $none,
                |r| of(r, $side, |d| d.payload_bytes as f64 / d.packets as f64)
            )
            .real(),
            record_feature!(
                concat!($p, "_payload_std"),
                "bytes",
                "size",
                concat!("population deviation of the L4 payload of a packet ", $who),
                $none,
                |r| of(r, $side, |d| deviation(d.packets, d.payload_bytes, d.payload_square as u128))
            )
            .real(),
            record_feature!(
                concat!($p, "_window_first"),
                "1",
                "tcp",
                concat!("TCP window, unscaled, of the first packet ", $who),
                "not TCP, or that direction is empty",
                |r| tcp(r, r.opening($side).map_or(f64::NAN, |o| o.window as f64))
            ),
            record_feature!(
                concat!($p, "_window_min"),
                "1",
                "tcp",
                concat!("smallest TCP window, unscaled, ", $who),
                "not TCP, or that direction is empty",
                |r| tcp(r, of(r, $side, |d| d.window_min as f64))
            ),
            record_feature!(
                concat!($p, "_window_max"),
                "1",
                "tcp",
                concat!("largest TCP window, unscaled, ", $who),
                "not TCP, or that direction is empty",
                |r| tcp(r, of(r, $side, |d| d.window_max as f64))
            ),
            record_feature!(
                concat!($p, "_ttl_min"),
                "hops",
                "ip",
                concat!("smallest IPv4 TTL or IPv6 hop limit ", $who),
                $none,
                |r| of(r, $side, |d| d.ttl_min as f64)
            ),
            record_feature!(
                concat!($p, "_ttl_max"),
                "hops",
                "ip",
                concat!("largest IPv4 TTL or IPv6 hop limit ", $who),
                $none,
                |r| of(r, $side, |d| d.ttl_max as f64)
            ),
            record_feature!(
                concat!($p, "_fin"),
                "packets",
                "flags",
                concat!("packets with FIN ", $who),
                NOT_TCP,
                |r| flag(r, $side, 0)
            ),
            record_feature!(
                concat!($p, "_syn"),
                "packets",
                "flags",
                concat!("packets with SYN ", $who),
                NOT_TCP,
                |r| flag(r, $side, 1)
            ),
            record_feature!(
                concat!($p, "_rst"),
                "packets",
                "flags",
                concat!("packets with RST ", $who),
                NOT_TCP,
                |r| flag(r, $side, 2)
            ),
            record_feature!(
                concat!($p, "_psh"),
                "packets",
                "flags",
                concat!("packets with PSH ", $who),
                NOT_TCP,
                |r| flag(r, $side, 3)
            ),
            record_feature!(
                concat!($p, "_ack"),
                "packets",
                "flags",
                concat!("packets with ACK ", $who),
                NOT_TCP,
                |r| flag(r, $side, 4)
            ),
            record_feature!(
                concat!($p, "_urg"),
                "packets",
                "flags",
                concat!("packets with URG ", $who),
                NOT_TCP,
                |r| flag(r, $side, 5)
            ),
            record_feature!(
                concat!($p, "_ece"),
                "packets",
                "flags",
                concat!("packets with ECE ", $who),
                NOT_TCP,
                |r| flag(r, $side, 6)
            ),
            record_feature!(
                concat!($p, "_cwr"),
                "packets",
                "flags",
                concat!("packets with CWR ", $who),
                NOT_TCP,
                |r| flag(r, $side, 7)
            ),
            record_feature!(
                concat!($p, "_size_0"),
                "packets",
                "size",
                concat!("packets without payload ", $who),
                NEVER,
                |r| count(r, $side, |d| d.size_bins[0] as u64)
            ),
            record_feature!(
                concat!($p, "_size_1_63"),
                "packets",
                "size",
                concat!("packets with 1–63 payload bytes ", $who),
                NEVER,
                |r| count(r, $side, |d| d.size_bins[1] as u64)
            ),
            record_feature!(
                concat!($p, "_size_64_127"),
                "packets",
                "size",
                concat!("packets with 64–127 payload bytes ", $who),
                NEVER,
                |r| count(r, $side, |d| d.size_bins[2] as u64)
            ),
            record_feature!(
                concat!($p, "_size_128_255"),
                "packets",
                "size",
                concat!("packets with 128–255 payload bytes ", $who),
                NEVER,
                |r| count(r, $side, |d| d.size_bins[3] as u64)
            ),
            record_feature!(
                concat!($p, "_size_256_511"),
                "packets",
                "size",
                concat!("packets with 256–511 payload bytes ", $who),
                NEVER,
                |r| count(r, $side, |d| d.size_bins[4] as u64)
            ),
            record_feature!(
                concat!($p, "_size_512_1023"),
                "packets",
                "size",
                concat!("packets with 512–1023 payload bytes ", $who),
                NEVER,
                |r| count(r, $side, |d| d.size_bins[5] as u64)
            ),
            record_feature!(
                concat!($p, "_size_1024_1399"),
                "packets",
                "size",
                concat!("packets with 1024–1399 payload bytes ", $who),
                NEVER,
                |r| count(r, $side, |d| d.size_bins[6] as u64)
            ),
            record_feature!(
                concat!($p, "_size_1400"),
                "packets",
                "size",
                concat!("packets with 1400 payload bytes or more ", $who),
                NEVER,
                |r| count(r, $side, |d| d.size_bins[7] as u64)
            ),
        ]
    };
}

/// Inter-arrival statistics. `$side`: 0, 1, or 2 for both directions together.
macro_rules! spaced {
    ($p:literal, $side:literal, $who:literal, $none:expr) => {
        [
            record_feature!(
                concat!($p, "_iat_min"),
                "seconds",
                "inter-arrival",
                concat!("smallest time between two frames ", $who),
                $none,
                |r| spacing(r, $side, |s| seconds(s.min_ns))
            )
            .real(),
            record_feature!(
                concat!($p, "_iat_max"),
                "seconds",
                "inter-arrival",
                concat!("largest time between two frames ", $who),
                $none,
                |r| spacing(r, $side, |s| seconds(s.max_ns))
            )
            .real(),
            record_feature!(
                concat!($p, "_iat_mean"),
                "seconds",
                "inter-arrival",
                concat!("mean time between two frames ", $who),
                $none,
                |r| spacing(r, $side, |s| s.span_ns as f64 / s.gaps as f64 / 1e9)
            )
            .real(),
            record_feature!(
                concat!($p, "_iat_std"),
                "seconds",
                "inter-arrival",
                concat!("population deviation of the time between two frames ", $who),
                $none,
                |r| spacing(r, $side, |s| deviation(s.gaps, s.span_ns, s.square_ns) / 1e9)
            )
            .real(),
        ]
    };
}

/// One of the first arrivals.
macro_rules! nth {
    ($($n:literal)*) => {
        [$(
            record_feature!(concat!("first_", $n, "_direction"), "1", "first-n", concat!("direction of frame ", $n, " of the flow: 1 from the initiator, -1 back"), "the flow has fewer frames",
                |r| arrival(r, $n - 1, |a| if a.direction == 0 { 1.0 } else { -1.0 })),
            record_feature!(concat!("first_", $n, "_payload"), "bytes", "first-n", concat!("L4 payload of frame ", $n, " of the flow, at most 65535"), "the flow has fewer frames",
                |r| arrival(r, $n - 1, |a| a.payload as f64)),
            record_feature!(concat!("first_", $n, "_iat"), "seconds", "first-n", concat!("time from the flow's previous frame to frame ", $n, ", in whole microseconds; 0 for the first"), "the flow has fewer frames",
                |r| arrival(r, $n - 1, |a| a.iat_us as f64 / 1e6)).real(),
            record_feature!(concat!("first_", $n, "_flags"), "1", "first-n", concat!("TCP flags byte of frame ", $n, " of the flow (0 if not TCP)"), "the flow has fewer frames",
                |r| arrival(r, $n - 1, |a| a.flags as f64)),
        )*]
    };
}

pub(super) const FLOW: [Feature; 13] = [
    record_feature!("protocol", "1", "identity", "IP protocol number", NEVER, |r| r.key.protocol as f64),
    record_feature!(
        "responder_port",
        "1",
        "identity",
        "port of the responder (ICMP echo: the identifier, without ports 0)",
        NEVER,
        |r| responder_port(r) as f64
    ),
    record_feature!(
        "initiator_by_syn",
        "0/1",
        "identity",
        "the initiator is known from a SYN or SYN-ACK, not guessed from the first packet",
        NEVER,
        |r| is(r, state::INITIATOR_BY_SYN)
    ),
    record_feature!("duration", "seconds", "lifetime", "time from the first frame to the last so far", NEVER, |r| {
        seconds(r.last_ns - r.first_ns)
    })
    .real(),
    record_feature!(
        "packets_per_second",
        "packets/second",
        "lifetime",
        "wire packets of both directions per second of duration",
        "duration is 0",
        |r| {
            let seconds = seconds(r.last_ns - r.first_ns);
            if seconds > 0.0 { r.packets() as f64 / seconds } else { f64::NAN }
        }
    )
    .real(),
    record_feature!(
        "handshake_completed",
        "0/1",
        "state",
        "SYN, SYN-ACK and the ACK that follows were seen",
        NOT_TCP,
        |r| tcp(r, is(r, state::ESTABLISHED))
    ),
    record_feature!("fin_initiator", "0/1", "state", "the initiator sent a FIN", NOT_TCP, |r| tcp(
        r,
        is(r, state::FIN)
    )),
    record_feature!("fin_responder", "0/1", "state", "the responder sent a FIN", NOT_TCP, |r| tcp(
        r,
        is(r, state::FIN << 1)
    )),
    record_feature!("reset", "0/1", "state", "a RST was seen", NOT_TCP, |r| tcp(r, is(r, state::RST))),
    record_feature!("reset_early", "0/1", "state", "a RST was seen before the handshake was completed", NOT_TCP, |r| {
        tcp(r, is(r, state::RST_EARLY))
    }),
    record_feature!(
        "closed",
        "0/1",
        "state",
        "both FINs were acknowledged, or a RST was seen (RFC 9293)",
        NOT_TCP,
        |r| tcp(r, is(r, state::CLOSED))
    ),
    record_feature!(
        "syn_to_syn_ack",
        "seconds",
        "tcp",
        "time from the first SYN to the first SYN-ACK",
        NO_HANDSHAKE,
        |r| {
            match r.syn_ns() {
                Some(syn) if r.syn_ack_ns > 0 => seconds(r.syn_ack_ns.saturating_sub(syn)),
                _ => f64::NAN,
            }
        }
    )
    .real(),
    record_feature!(
        "syn_ack_to_ack",
        "seconds",
        "tcp",
        "time from the first SYN-ACK to the ACK that completed the handshake",
        "handshake not completed",
        |r| {
            if r.established_ns == 0 || r.syn_ack_ns == 0 {
                f64::NAN
            } else {
                seconds(r.established_ns.saturating_sub(r.syn_ack_ns))
            }
        }
    )
    .real(),
];
pub(super) const FORWARD: [Feature; 33] = directional!("fwd", 0, "from the initiator", NO_FORWARD);
pub(super) const REVERSE: [Feature; 33] = directional!("bwd", 1, "from the responder", NO_REVERSE);
pub(super) const FORWARD_SPACING: [Feature; 4] = spaced!("fwd", 0, "from the initiator", ONE_ARRIVAL_IN);
pub(super) const REVERSE_SPACING: [Feature; 4] = spaced!("bwd", 1, "from the responder", ONE_ARRIVAL_IN);
pub(super) const FLOW_SPACING: [Feature; 4] = spaced!("flow", 2, "of the flow, both directions", ONE_ARRIVAL);
pub(super) const FIRST: [Feature; 4 * FIRST_N] = nth!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16);
