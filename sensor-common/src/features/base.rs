//! Identity, lifetime, volume, size, spacing, flags and first arrivals.

use super::{Feature, Form, Presence, record_feature};
use crate::flow::{Arrival, Direction, FIRST_N, FlowRecord, Opening, state};

/// A number of a direction; 0 in one that sent nothing.
pub(super) fn count(record: &FlowRecord, side: usize, value: impl Fn(&Direction) -> u64) -> u64 {
    record.direction(side).map_or(0, value)
}

/// A number of a direction's first packets; 0 in one that sent nothing.
pub(super) fn opening(record: &FlowRecord, side: usize, value: impl Fn(&Opening) -> u64) -> u64 {
    record.opening(side).map_or(0, value)
}

fn flag(record: &FlowRecord, side: usize, bit: usize) -> u64 {
    count(record, side, |half| half.flag(bit).into())
}

pub(super) fn is(record: &FlowRecord, bits: u32) -> u64 {
    (record.state & bits != 0).into()
}

fn arrival(record: &FlowRecord, position: usize, value: impl Fn(&Arrival) -> i64) -> i64 {
    value(&record.first[position])
}

/// Port of the responder: the service, where the initiator is known.
pub fn responder_port(record: &FlowRecord) -> u16 {
    if record.state & state::INITIATOR_HIGH == 0 { record.key.high_port } else { record.key.low_port }
}

/// The features of one direction. `$p`: prefix, `$side`: 0 or 1, `$who`: for the text, `$none`: when it is missing.
macro_rules! directional {
    ($p:literal, $side:literal, $who:literal, $none:expr) => {
        [
            record_feature!(
                concat!($p, "_packets"),
                "packets",
                "volume",
                concat!("wire packets ", $who),
                Presence::Always,
                |r| { count(r, $side, |d| d.packets) }
            ),
            record_feature!(
                concat!($p, "_l3_bytes"),
                "bytes",
                "volume",
                concat!("L3 bytes ", $who, ": IP headers to the end of the datagram, without link header and padding"),
                Presence::Always,
                |r| count(r, $side, |d| d.l3_bytes)
            ),
            record_feature!(
                concat!($p, "_payload_bytes"),
                "bytes",
                "volume",
                concat!("L4 payload bytes ", $who),
                Presence::Always,
                |r| count(r, $side, |d| d.payload_bytes)
            ),
            record_feature!(
                concat!($p, "_header_bytes"),
                "bytes",
                "volume",
                concat!("L3 and L4 header bytes ", $who),
                Presence::Always,
                |r| count(r, $side, |d| d.header_bytes())
            ),
            record_feature!(
                concat!($p, "_payload_packets"),
                "packets",
                "volume",
                concat!("packets with L4 payload ", $who),
                Presence::Always,
                |r| count(r, $side, |d| d.payload_packets())
            ),
            record_feature!(
                concat!($p, "_l3_min"),
                "bytes",
                "size",
                concat!("smallest L3 length of a packet ", $who),
                $none,
                |r| count(r, $side, |d| d.l3_min.into())
            ),
            record_feature!(
                concat!($p, "_l3_max"),
                "bytes",
                "size",
                concat!("largest L3 length of a packet ", $who),
                $none,
                |r| count(r, $side, |d| d.l3_max.into())
            ),
            record_feature!(
                concat!($p, "_l3_mean"),
                "bytes",
                "size",
                concat!("mean L3 length of a packet ", $who),
                $none,
                |r| count(r, $side, |d| d.l3_mean())
            )
            .of(Form::Fraction),
            record_feature!(
                concat!($p, "_l3_std"),
                "bytes",
                "size",
                concat!("population deviation of the L3 length of a packet ", $who),
                $none,
                |r| count(r, $side, |d| d.l3_variance())
            )
            .of(Form::Root),
            record_feature!(
                concat!($p, "_payload_max"),
                "bytes",
                "size",
                concat!("largest L4 payload of a packet ", $who),
                $none,
                |r| count(r, $side, |d| d.payload_max.into())
            ),
            record_feature!(
                concat!($p, "_payload_mean"),
                "bytes",
                "size",
                concat!("mean L4 payload of a packet ", $who, ", empty ones included"),
                $none,
                |r| count(r, $side, |d| d.payload_mean())
            )
            .of(Form::Fraction),
            record_feature!(
                concat!($p, "_payload_std"),
                "bytes",
                "size",
                concat!("population deviation of the L4 payload of a packet ", $who),
                $none,
                |r| count(r, $side, |d| d.payload_variance())
            )
            .of(Form::Root),
            record_feature!(
                concat!($p, "_window_first"),
                "1",
                "tcp",
                concat!("TCP window, unscaled, of the first packet ", $who),
                Presence::TcpDirection($side),
                |r| opening(r, $side, |o| o.window.into())
            ),
            record_feature!(
                concat!($p, "_window_min"),
                "1",
                "tcp",
                concat!("smallest TCP window, unscaled, ", $who),
                Presence::TcpDirection($side),
                |r| count(r, $side, |d| d.window_min.into())
            ),
            record_feature!(
                concat!($p, "_window_max"),
                "1",
                "tcp",
                concat!("largest TCP window, unscaled, ", $who),
                Presence::TcpDirection($side),
                |r| count(r, $side, |d| d.window_max.into())
            ),
            record_feature!(
                concat!($p, "_ttl_min"),
                "hops",
                "ip",
                concat!("smallest IPv4 TTL or IPv6 hop limit ", $who),
                $none,
                |r| count(r, $side, |d| d.ttl_min.into())
            ),
            record_feature!(
                concat!($p, "_ttl_max"),
                "hops",
                "ip",
                concat!("largest IPv4 TTL or IPv6 hop limit ", $who),
                $none,
                |r| count(r, $side, |d| d.ttl_max.into())
            ),
            record_feature!(
                concat!($p, "_fin"),
                "packets",
                "flags",
                concat!("packets with FIN ", $who),
                Presence::Tcp,
                |r| flag(r, $side, 0)
            ),
            record_feature!(
                concat!($p, "_syn"),
                "packets",
                "flags",
                concat!("packets with SYN ", $who),
                Presence::Tcp,
                |r| flag(r, $side, 1)
            ),
            record_feature!(
                concat!($p, "_rst"),
                "packets",
                "flags",
                concat!("packets with RST ", $who),
                Presence::Tcp,
                |r| flag(r, $side, 2)
            ),
            record_feature!(
                concat!($p, "_psh"),
                "packets",
                "flags",
                concat!("packets with PSH ", $who),
                Presence::Tcp,
                |r| flag(r, $side, 3)
            ),
            record_feature!(
                concat!($p, "_ack"),
                "packets",
                "flags",
                concat!("packets with ACK ", $who),
                Presence::Tcp,
                |r| flag(r, $side, 4)
            ),
            record_feature!(
                concat!($p, "_urg"),
                "packets",
                "flags",
                concat!("packets with URG ", $who),
                Presence::Tcp,
                |r| flag(r, $side, 5)
            ),
            record_feature!(
                concat!($p, "_ece"),
                "packets",
                "flags",
                concat!("packets with ECE ", $who),
                Presence::Tcp,
                |r| flag(r, $side, 6)
            ),
            record_feature!(
                concat!($p, "_cwr"),
                "packets",
                "flags",
                concat!("packets with CWR ", $who),
                Presence::Tcp,
                |r| flag(r, $side, 7)
            ),
            record_feature!(
                concat!($p, "_size_0"),
                "packets",
                "size",
                concat!("packets without payload ", $who),
                Presence::Always,
                |r| count(r, $side, |d| d.size_bins[0] as u64)
            ),
            record_feature!(
                concat!($p, "_size_1_63"),
                "packets",
                "size",
                concat!("packets with 1–63 payload bytes ", $who),
                Presence::Always,
                |r| count(r, $side, |d| d.size_bins[1] as u64)
            ),
            record_feature!(
                concat!($p, "_size_64_127"),
                "packets",
                "size",
                concat!("packets with 64–127 payload bytes ", $who),
                Presence::Always,
                |r| count(r, $side, |d| d.size_bins[2] as u64)
            ),
            record_feature!(
                concat!($p, "_size_128_255"),
                "packets",
                "size",
                concat!("packets with 128–255 payload bytes ", $who),
                Presence::Always,
                |r| count(r, $side, |d| d.size_bins[3] as u64)
            ),
            record_feature!(
                concat!($p, "_size_256_511"),
                "packets",
                "size",
                concat!("packets with 256–511 payload bytes ", $who),
                Presence::Always,
                |r| count(r, $side, |d| d.size_bins[4] as u64)
            ),
            record_feature!(
                concat!($p, "_size_512_1023"),
                "packets",
                "size",
                concat!("packets with 512–1023 payload bytes ", $who),
                Presence::Always,
                |r| count(r, $side, |d| d.size_bins[5] as u64)
            ),
            record_feature!(
                concat!($p, "_size_1024_1399"),
                "packets",
                "size",
                concat!("packets with 1024–1399 payload bytes ", $who),
                Presence::Always,
                |r| count(r, $side, |d| d.size_bins[6] as u64)
            ),
            record_feature!(
                concat!($p, "_size_1400"),
                "packets",
                "size",
                concat!("packets with 1400 payload bytes or more ", $who),
                Presence::Always,
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
                |r| r.gaps($side).min_ns
            )
            .of(Form::Nanoseconds),
            record_feature!(
                concat!($p, "_iat_max"),
                "seconds",
                "inter-arrival",
                concat!("largest time between two frames ", $who),
                $none,
                |r| r.gaps($side).max_ns
            )
            .of(Form::Nanoseconds),
            record_feature!(
                concat!($p, "_iat_mean"),
                "seconds",
                "inter-arrival",
                concat!("mean time between two frames ", $who),
                $none,
                |r| r.gaps($side).mean_ns()
            )
            .of(Form::Nanoseconds),
            record_feature!(
                concat!($p, "_iat_std"),
                "seconds",
                "inter-arrival",
                concat!("population deviation of the time between two frames ", $who),
                $none,
                |r| r.gaps($side).variance_ns2()
            )
            .of(Form::RootNanoseconds),
        ]
    };
}

/// One of the first arrivals.
macro_rules! nth {
    ($($n:literal)*) => {
        [$(
            record_feature!(concat!("first_", $n, "_direction"), "1", "first-n", concat!("direction of frame ", $n, " of the flow: 1 from the initiator, -1 back"), Presence::Frame($n), |r| arrival(r, $n - 1, |a| if a.direction == 0 { 1 } else { -1 })),
            record_feature!(concat!("first_", $n, "_payload"), "bytes", "first-n", concat!("L4 payload of frame ", $n, " of the flow, at most 65535"), Presence::Frame($n), |r| arrival(r, $n - 1, |a| a.payload.into())),
            record_feature!(concat!("first_", $n, "_iat"), "seconds", "first-n", concat!("time from the flow's previous frame to frame ", $n, ", in whole microseconds; 0 for the first"), Presence::Frame($n), |r| arrival(r, $n - 1, |a| a.iat_us.into())).of(Form::Microseconds),
            record_feature!(concat!("first_", $n, "_flags"), "1", "first-n", concat!("TCP flags byte of frame ", $n, " of the flow (0 if not TCP)"), Presence::Frame($n), |r| arrival(r, $n - 1, |a| a.flags.into())),
        )*]
    };
}

pub(super) const FLOW: [Feature; 13] = [
    record_feature!("protocol", "1", "identity", "IP protocol number", Presence::Always, |r| r.key.protocol),
    record_feature!(
        "responder_port",
        "1",
        "identity",
        "port of the responder (ICMP echo: the identifier, without ports 0)",
        Presence::Always,
        |r| responder_port(r)
    ),
    record_feature!(
        "initiator_by_syn",
        "0/1",
        "identity",
        "the initiator is known from a SYN or SYN-ACK, not guessed from the first packet",
        Presence::Always,
        |r| is(r, state::INITIATOR_BY_SYN)
    ),
    record_feature!(
        "duration",
        "seconds",
        "lifetime",
        "time from the first frame to the last so far",
        Presence::Always,
        |r| r.duration_ns()
    )
    .of(Form::Nanoseconds),
    record_feature!(
        "packets_per_second",
        "packets/second",
        "lifetime",
        "wire packets of both directions per second of duration",
        Presence::Duration,
        |r| r.packet_rate()
    )
    .of(Form::Fraction),
    record_feature!(
        "handshake_completed",
        "0/1",
        "state",
        "SYN, SYN-ACK and the ACK that follows were seen",
        Presence::Tcp,
        |r| is(r, state::ESTABLISHED)
    ),
    record_feature!("fin_initiator", "0/1", "state", "the initiator sent a FIN", Presence::Tcp, |r| is(r, state::FIN)),
    record_feature!("fin_responder", "0/1", "state", "the responder sent a FIN", Presence::Tcp, |r| is(
        r,
        state::FIN << 1
    )),
    record_feature!(
        "reset",
        "0/1",
        "state",
        "a RST was seen that its receiver accepts (RFC 9293, section 3.10.7.4)",
        Presence::Tcp,
        |r| is(r, state::RST)
    ),
    record_feature!(
        "reset_early",
        "0/1",
        "state",
        "such a RST was seen before the handshake was completed",
        Presence::Tcp,
        |r| { is(r, state::RST_EARLY) }
    ),
    record_feature!(
        "closed",
        "0/1",
        "state",
        "both FINs were acknowledged, or a RST was seen that its receiver accepts (RFC 9293)",
        Presence::Tcp,
        |r| is(r, state::CLOSED)
    ),
    record_feature!(
        "syn_to_syn_ack",
        "seconds",
        "tcp",
        "time from the first SYN to the first SYN-ACK",
        Presence::Handshake,
        |r| r.syn_ack_ns.saturating_sub(r.syn_ns().unwrap_or(r.syn_ack_ns))
    )
    .of(Form::Nanoseconds),
    record_feature!(
        "syn_ack_to_ack",
        "seconds",
        "tcp",
        "time from the first SYN-ACK to the ACK that completed the handshake",
        Presence::Completed,
        |r| r.established_ns.saturating_sub(r.syn_ack_ns)
    )
    .of(Form::Nanoseconds),
];
pub(super) const FORWARD: [Feature; 33] = directional!("fwd", 0, "from the initiator", Presence::Direction(0));
pub(super) const REVERSE: [Feature; 33] = directional!("bwd", 1, "from the responder", Presence::Direction(1));
pub(super) const FORWARD_SPACING: [Feature; 4] = spaced!("fwd", 0, "from the initiator", Presence::TwoFramesOf(0));
pub(super) const REVERSE_SPACING: [Feature; 4] = spaced!("bwd", 1, "from the responder", Presence::TwoFramesOf(1));
pub(super) const FLOW_SPACING: [Feature; 4] = spaced!("flow", 2, "of the flow, both directions", Presence::TwoFrames);
pub(super) const FIRST: [Feature; 4 * FIRST_N] = nth!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16);
