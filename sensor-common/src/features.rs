//! The feature contract: every number a model can be given, declared once.
//!
//! [`FEATURES`] is the single source of `sensor features`, docs/features.md, the training pipeline's column names and
//! the checks on a model's inputs. A feature is a pure function of a [`FlowRecord`]. Missing is not zero: where a
//! value does not exist (an empty direction, inter-arrival times of one frame, a window of a UDP flow) it is NaN, and
//! the column `missing when` says so. Deviations are population deviations. Times are in seconds, so that a 32-bit
//! float keeps their leading digits; lengths are in bytes.

use crate::flow::{Direction, FIRST_N, FlowRecord, state};
use crate::packet::protocol;

/// Moves on when a feature is added, removed or redefined. A model names the version that it was trained on.
pub const CONTRACT_VERSION: u32 = 1;

/// One feature.
#[derive(Clone, Copy)]
pub struct Feature {
    /// Name: the column in exports and the input name in models.
    pub name: &'static str,
    /// Unit of the value.
    pub unit: &'static str,
    /// Group of the contract.
    pub group: &'static str,
    /// Exact definition.
    pub definition: &'static str,
    /// When the value does not exist (NaN).
    pub missing: &'static str,
    /// The value.
    pub value: fn(&FlowRecord) -> f64,
}

impl core::fmt::Debug for Feature {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Feature({})", self.name)
    }
}

/// Looks a feature up by its name.
pub fn by_name(name: &str) -> Option<&'static Feature> {
    FEATURES.iter().find(|feature| feature.name == name)
}

/// Identifies names, units and definitions: FNV-1a, 64 bits, as 16 hexadecimal digits.
pub fn contract_hash() -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for feature in FEATURES {
        for text in [feature.name, feature.unit, feature.definition, feature.missing] {
            for byte in text.bytes().chain([0]) {
                hash = (hash ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
    }
    format!("{hash:016x}")
}

const NEVER: &str = "never";
const NO_REVERSE: &str = "the responder sent nothing";
const NOT_TCP: &str = "not TCP";
const ONE_ARRIVAL: &str = "fewer than two frames";
const ONE_ARRIVAL_IN: &str = "fewer than two frames in that direction";
const NO_HANDSHAKE: &str = "no SYN and SYN-ACK seen";

fn direction(record: &FlowRecord, side: usize) -> Option<&Direction> {
    if side == 0 { Some(record.forward()) } else { record.reverse() }.filter(|half| half.arrivals > 0)
}

fn of(record: &FlowRecord, side: usize, value: impl Fn(&Direction) -> f64) -> f64 {
    direction(record, side).map_or(f64::NAN, value)
}

/// A count is 0, not missing, in a direction that sent nothing.
fn count(record: &FlowRecord, side: usize, value: impl Fn(&Direction) -> u64) -> f64 {
    direction(record, side).map_or(0.0, |half| value(half) as f64)
}

fn tcp(record: &FlowRecord, value: f64) -> f64 {
    if record.key.protocol == protocol::TCP { value } else { f64::NAN }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Population deviation from a count, a sum and a sum of squares.
fn deviation(count: f64, sum: f64, square: f64) -> f64 {
    (square / count - (sum / count) * (sum / count)).max(0.0).sqrt()
}

/// Inter-arrival statistics of `arrivals` frames between two times.
struct Spacing {
    gaps: f64,
    span_ns: f64,
    square_ns: f64,
    min_ns: u64,
    max_ns: u64,
}

impl Spacing {
    fn of_direction(record: &FlowRecord, side: usize) -> Option<Spacing> {
        direction(record, side).filter(|half| half.arrivals > 1).map(|half| Spacing {
            gaps: (half.arrivals - 1) as f64,
            span_ns: (half.last_ns - record.first_ns_of(side).unwrap_or(half.last_ns)) as f64,
            square_ns: wide(half.iat_square_low, half.iat_square_high),
            min_ns: half.iat_min_ns,
            max_ns: half.iat_max_ns,
        })
    }

    fn of_flow(record: &FlowRecord) -> Option<Spacing> {
        let arrivals = record.forward().arrivals as f64 + record.reverse().map_or(0.0, |half| half.arrivals as f64);
        (arrivals > 1.0).then(|| Spacing {
            gaps: arrivals - 1.0,
            span_ns: (record.last_ns - record.first_ns) as f64,
            square_ns: wide(record.iat_square_low, record.iat_square_high),
            min_ns: record.iat_min_ns,
            max_ns: record.iat_max_ns,
        })
    }

    fn of(record: &FlowRecord, side: usize) -> Option<Spacing> {
        if side == 2 { Spacing::of_flow(record) } else { Spacing::of_direction(record, side) }
    }
}

fn wide(low: u64, high: u32) -> f64 {
    ((high as u128) << 64 | low as u128) as f64
}

fn spacing(record: &FlowRecord, side: usize, value: impl Fn(&Spacing) -> f64) -> f64 {
    Spacing::of(record, side).map_or(f64::NAN, |spacing| value(&spacing))
}

fn flag(record: &FlowRecord, side: usize, bit: usize) -> f64 {
    tcp(record, count(record, side, |half| half.flags[bit] as u64))
}

fn is(record: &FlowRecord, bits: u32) -> f64 {
    (record.state & bits != 0) as u8 as f64
}

fn arrival(record: &FlowRecord, position: usize, value: impl Fn(&crate::flow::Arrival) -> f64) -> f64 {
    if position < record.first_len as usize { value(&record.first[position]) } else { f64::NAN }
}

/// Port of the responder: the service, where the initiator is known.
pub fn responder_port(record: &FlowRecord) -> u16 {
    if record.state & state::INITIATOR_HIGH == 0 { record.key.high_port } else { record.key.low_port }
}

macro_rules! feature {
    ($name:expr, $unit:expr, $group:expr, $definition:expr, $missing:expr, $value:expr) => {
        Feature { name: $name, unit: $unit, group: $group, definition: $definition, missing: $missing, value: $value }
    };
}

/// The features of one direction. `$p`: prefix, `$side`: 0 or 1, `$who`: for the text, `$none`: when it is missing.
macro_rules! directional {
    ($p:literal, $side:literal, $who:literal, $none:expr) => {
        [
            feature!(concat!($p, "_packets"), "packets", "volume", concat!("wire packets ", $who), NEVER, |r| count(
                r,
                $side,
                |d| d.packets
            )),
            feature!(
                concat!($p, "_l3_bytes"),
                "bytes",
                "volume",
                concat!("L3 bytes ", $who, ": IP headers to the end of the datagram, without link header and padding"),
                NEVER,
                |r| count(r, $side, |d| d.l3_bytes)
            ),
            feature!(
                concat!($p, "_payload_bytes"),
                "bytes",
                "volume",
                concat!("L4 payload bytes ", $who),
                NEVER,
                |r| count(r, $side, |d| d.payload_bytes)
            ),
            feature!(
                concat!($p, "_header_bytes"),
                "bytes",
                "volume",
                concat!("L3 and L4 header bytes ", $who),
                NEVER,
                |r| count(r, $side, |d| d.header_bytes())
            ),
            feature!(
                concat!($p, "_payload_packets"),
                "packets",
                "volume",
                concat!("packets with L4 payload ", $who),
                NEVER,
                |r| count(r, $side, |d| d.payload_packets())
            ),
            feature!(
                concat!($p, "_l3_min"),
                "bytes",
                "size",
                concat!("smallest L3 length of a packet ", $who),
                $none,
                |r| of(r, $side, |d| d.l3_min as f64)
            ),
            feature!(
                concat!($p, "_l3_max"),
                "bytes",
                "size",
                concat!("largest L3 length of a packet ", $who),
                $none,
                |r| of(r, $side, |d| d.l3_max as f64)
            ),
            feature!(
                concat!($p, "_l3_mean"),
                "bytes",
                "size",
                concat!("mean L3 length of a packet ", $who),
                $none,
                |r| of(r, $side, |d| d.l3_bytes as f64 / d.packets as f64)
            ),
            feature!(
                concat!($p, "_l3_std"),
                "bytes",
                "size",
                concat!("population deviation of the L3 length of a packet ", $who),
                $none,
                |r| of(r, $side, |d| deviation(d.packets as f64, d.l3_bytes as f64, d.l3_square as f64))
            ),
            feature!(
                concat!($p, "_payload_max"),
                "bytes",
                "size",
                concat!("largest L4 payload of a packet ", $who),
                $none,
                |r| of(r, $side, |d| d.payload_max as f64)
            ),
            feature!(
                concat!($p, "_payload_mean"),
                "bytes",
                "size",
                concat!("mean L4 payload of a packet ", $who, ", empty ones included"),
                $none,
                |r| of(r, $side, |d| d.payload_bytes as f64 / d.packets as f64)
            ),
            feature!(
                concat!($p, "_payload_std"),
                "bytes",
                "size",
                concat!("population deviation of the L4 payload of a packet ", $who),
                $none,
                |r| of(r, $side, |d| deviation(d.packets as f64, d.payload_bytes as f64, d.payload_square as f64))
            ),
            feature!(
                concat!($p, "_window_first"),
                "1",
                "tcp",
                concat!("TCP window, unscaled, of the first packet ", $who),
                "not TCP, or that direction is empty",
                |r| tcp(r, r.opening($side).map_or(f64::NAN, |o| o.window as f64))
            ),
            feature!(
                concat!($p, "_window_min"),
                "1",
                "tcp",
                concat!("smallest TCP window, unscaled, ", $who),
                "not TCP, or that direction is empty",
                |r| tcp(r, of(r, $side, |d| d.window_min as f64))
            ),
            feature!(
                concat!($p, "_window_max"),
                "1",
                "tcp",
                concat!("largest TCP window, unscaled, ", $who),
                "not TCP, or that direction is empty",
                |r| tcp(r, of(r, $side, |d| d.window_max as f64))
            ),
            feature!(
                concat!($p, "_ttl_min"),
                "hops",
                "ip",
                concat!("smallest IPv4 TTL or IPv6 hop limit ", $who),
                $none,
                |r| of(r, $side, |d| d.ttl_min as f64)
            ),
            feature!(
                concat!($p, "_ttl_max"),
                "hops",
                "ip",
                concat!("largest IPv4 TTL or IPv6 hop limit ", $who),
                $none,
                |r| of(r, $side, |d| d.ttl_max as f64)
            ),
            feature!(concat!($p, "_fin"), "packets", "flags", concat!("packets with FIN ", $who), NOT_TCP, |r| flag(
                r, $side, 0
            )),
            feature!(concat!($p, "_syn"), "packets", "flags", concat!("packets with SYN ", $who), NOT_TCP, |r| flag(
                r, $side, 1
            )),
            feature!(concat!($p, "_rst"), "packets", "flags", concat!("packets with RST ", $who), NOT_TCP, |r| flag(
                r, $side, 2
            )),
            feature!(concat!($p, "_psh"), "packets", "flags", concat!("packets with PSH ", $who), NOT_TCP, |r| flag(
                r, $side, 3
            )),
            feature!(concat!($p, "_ack"), "packets", "flags", concat!("packets with ACK ", $who), NOT_TCP, |r| flag(
                r, $side, 4
            )),
            feature!(concat!($p, "_urg"), "packets", "flags", concat!("packets with URG ", $who), NOT_TCP, |r| flag(
                r, $side, 5
            )),
            feature!(concat!($p, "_ece"), "packets", "flags", concat!("packets with ECE ", $who), NOT_TCP, |r| flag(
                r, $side, 6
            )),
            feature!(concat!($p, "_cwr"), "packets", "flags", concat!("packets with CWR ", $who), NOT_TCP, |r| flag(
                r, $side, 7
            )),
            feature!(
                concat!($p, "_size_0"),
                "packets",
                "size",
                concat!("packets without payload ", $who),
                NEVER,
                |r| count(r, $side, |d| d.size_bins[0] as u64)
            ),
            feature!(
                concat!($p, "_size_1_63"),
                "packets",
                "size",
                concat!("packets with 1–63 payload bytes ", $who),
                NEVER,
                |r| count(r, $side, |d| d.size_bins[1] as u64)
            ),
            feature!(
                concat!($p, "_size_64_127"),
                "packets",
                "size",
                concat!("packets with 64–127 payload bytes ", $who),
                NEVER,
                |r| count(r, $side, |d| d.size_bins[2] as u64)
            ),
            feature!(
                concat!($p, "_size_128_255"),
                "packets",
                "size",
                concat!("packets with 128–255 payload bytes ", $who),
                NEVER,
                |r| count(r, $side, |d| d.size_bins[3] as u64)
            ),
            feature!(
                concat!($p, "_size_256_511"),
                "packets",
                "size",
                concat!("packets with 256–511 payload bytes ", $who),
                NEVER,
                |r| count(r, $side, |d| d.size_bins[4] as u64)
            ),
            feature!(
                concat!($p, "_size_512_1023"),
                "packets",
                "size",
                concat!("packets with 512–1023 payload bytes ", $who),
                NEVER,
                |r| count(r, $side, |d| d.size_bins[5] as u64)
            ),
            feature!(
                concat!($p, "_size_1024_1399"),
                "packets",
                "size",
                concat!("packets with 1024–1399 payload bytes ", $who),
                NEVER,
                |r| count(r, $side, |d| d.size_bins[6] as u64)
            ),
            feature!(
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
            feature!(
                concat!($p, "_iat_min"),
                "seconds",
                "inter-arrival",
                concat!("smallest time between two frames ", $who),
                $none,
                |r| spacing(r, $side, |s| seconds(s.min_ns))
            ),
            feature!(
                concat!($p, "_iat_max"),
                "seconds",
                "inter-arrival",
                concat!("largest time between two frames ", $who),
                $none,
                |r| spacing(r, $side, |s| seconds(s.max_ns))
            ),
            feature!(
                concat!($p, "_iat_mean"),
                "seconds",
                "inter-arrival",
                concat!("mean time between two frames ", $who),
                $none,
                |r| spacing(r, $side, |s| s.span_ns / s.gaps / 1e9)
            ),
            feature!(
                concat!($p, "_iat_std"),
                "seconds",
                "inter-arrival",
                concat!("population deviation of the time between two frames ", $who),
                $none,
                |r| spacing(r, $side, |s| deviation(s.gaps, s.span_ns, s.square_ns) / 1e9)
            ),
        ]
    };
}

/// One of the first arrivals.
macro_rules! nth {
    ($($n:literal)*) => {
        [$(
            feature!(concat!("first_", $n, "_direction"), "1", "first-n", concat!("direction of frame ", $n, " of the flow: 1 from the initiator, -1 back"), "the flow has fewer frames",
                |r| arrival(r, $n - 1, |a| if a.direction == 0 { 1.0 } else { -1.0 })),
            feature!(concat!("first_", $n, "_payload"), "bytes", "first-n", concat!("L4 payload of frame ", $n, " of the flow, at most 65535"), "the flow has fewer frames",
                |r| arrival(r, $n - 1, |a| a.payload as f64)),
            feature!(concat!("first_", $n, "_iat"), "seconds", "first-n", concat!("time from the flow's previous frame to frame ", $n, ", in whole microseconds; 0 for the first"), "the flow has fewer frames",
                |r| arrival(r, $n - 1, |a| a.iat_us as f64 / 1e6)),
            feature!(concat!("first_", $n, "_flags"), "1", "first-n", concat!("TCP flags byte of frame ", $n, " of the flow (0 if not TCP)"), "the flow has fewer frames",
                |r| arrival(r, $n - 1, |a| a.flags as f64)),
        )*]
    };
}

const FLOW: [Feature; 13] = [
    feature!("protocol", "1", "identity", "IP protocol number", NEVER, |r| r.key.protocol as f64),
    feature!(
        "responder_port",
        "1",
        "identity",
        "port of the responder (ICMP echo: the identifier, without ports 0)",
        NEVER,
        |r| responder_port(r) as f64
    ),
    feature!(
        "initiator_by_syn",
        "0/1",
        "identity",
        "the initiator is known from a SYN or SYN-ACK, not guessed from the first packet",
        NEVER,
        |r| is(r, state::INITIATOR_BY_SYN)
    ),
    feature!("duration", "seconds", "lifetime", "time from the first frame to the last so far", NEVER, |r| seconds(
        r.last_ns - r.first_ns
    )),
    feature!(
        "packets_per_second",
        "packets/second",
        "lifetime",
        "wire packets of both directions per second of duration",
        "duration is 0",
        |r| {
            let seconds = seconds(r.last_ns - r.first_ns);
            if seconds > 0.0 { r.packets() as f64 / seconds } else { f64::NAN }
        }
    ),
    feature!("handshake_completed", "0/1", "state", "SYN, SYN-ACK and the ACK that follows were seen", NOT_TCP, |r| {
        tcp(r, is(r, state::ESTABLISHED))
    }),
    feature!("fin_initiator", "0/1", "state", "the initiator sent a FIN", NOT_TCP, |r| tcp(r, is(r, state::FIN))),
    feature!("fin_responder", "0/1", "state", "the responder sent a FIN", NOT_TCP, |r| tcp(r, is(r, state::FIN << 1))),
    feature!("reset", "0/1", "state", "a RST was seen", NOT_TCP, |r| tcp(r, is(r, state::RST))),
    feature!("reset_early", "0/1", "state", "a RST was seen before the handshake was completed", NOT_TCP, |r| tcp(
        r,
        is(r, state::RST_EARLY)
    )),
    feature!("closed", "0/1", "state", "both FINs were acknowledged, or a RST was seen (RFC 9293)", NOT_TCP, |r| tcp(
        r,
        is(r, state::CLOSED)
    )),
    feature!("syn_to_syn_ack", "seconds", "tcp", "time from the first SYN to the first SYN-ACK", NO_HANDSHAKE, |r| {
        match r.syn_ns() {
            Some(syn) if r.syn_ack_ns > 0 => seconds(r.syn_ack_ns.saturating_sub(syn)),
            _ => f64::NAN,
        }
    }),
    feature!(
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
    ),
];
const FORWARD: [Feature; 33] = directional!("fwd", 0, "from the initiator", NEVER);
const REVERSE: [Feature; 33] = directional!("bwd", 1, "from the responder", NO_REVERSE);
const FORWARD_SPACING: [Feature; 4] = spaced!("fwd", 0, "from the initiator", ONE_ARRIVAL_IN);
const REVERSE_SPACING: [Feature; 4] = spaced!("bwd", 1, "from the responder", ONE_ARRIVAL_IN);
const FLOW_SPACING: [Feature; 4] = spaced!("flow", 2, "of the flow, both directions", ONE_ARRIVAL);
const FIRST: [Feature; 4 * FIRST_N] = nth!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16);

const COUNT: usize = FLOW.len() + 2 * FORWARD.len() + 3 * FLOW_SPACING.len() + FIRST.len();

/// Every feature of the contract, in contract order.
pub static FEATURES: &[Feature] = {
    const ALL: [Feature; COUNT] = {
        let parts: [&[Feature]; 7] =
            [&FLOW, &FORWARD, &REVERSE, &FORWARD_SPACING, &REVERSE_SPACING, &FLOW_SPACING, &FIRST];
        let mut all = [FLOW[0]; COUNT];
        let (mut part, mut filled) = (0, 0);
        while part < parts.len() {
            let mut item = 0;
            while item < parts[part].len() {
                all[filled] = parts[part][item];
                filled += 1;
                item += 1;
            }
            part += 1;
        }
        all
    };
    &ALL
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_plain() {
        let mut names: Vec<_> = FEATURES.iter().map(|feature| feature.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FEATURES.len());
        assert!(
            names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
        );
        assert_eq!(contract_hash().len(), 16);
    }
}
