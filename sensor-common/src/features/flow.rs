//! Of the flow as a whole, what contract 2 adds: close style, shape over time, ICMP, health.

use super::base::{NEVER, NOT_TCP, is, tcp};
use super::{Feature, record_feature};
use crate::flow::{FlowRecord, Periods, state};
use crate::packet::protocol;

const NO_IDLE: &str = "no gap of more than 5 s";
const TOO_LONG: &str = "periods differ and the sum of their squares exceeds 2^64 µs² (flows of more than 71 minutes)";
const NO_IDLE_OR_LONG: &str = "no gap of more than 5 s, or as for active_std";
const NOT_ICMP: &str = "not ICMP or ICMPv6";
const NO_ERROR: &str = "no ICMP error quotes the flow";

fn both(record: &FlowRecord, set: u32, clear: u32) -> f64 {
    (record.state & set != 0 && record.state & clear == 0) as u8 as f64
}

fn icmp(record: &FlowRecord, value: f64) -> f64 {
    if matches!(record.key.protocol, protocol::ICMP | protocol::ICMPV6) { value } else { f64::NAN }
}

/// Seconds from a value in µs.
fn periods(periods: Periods, value: impl Fn(&Periods) -> f64) -> f64 {
    if periods.count == 0 { f64::NAN } else { value(&periods) / 1e6 }
}

/// Population deviation, in integers: the sums are exact, their difference is small.
fn spread(periods: &Periods) -> f64 {
    if periods.min_us == periods.max_us {
        return 0.0;
    }
    if periods.square_us2 == u64::MAX {
        return f64::NAN;
    }
    let (count, sum) = (periods.count as u128, periods.sum_us as u128);
    let numerator = (count * periods.square_us2 as u128).saturating_sub(sum * sum);
    (numerator as f64).sqrt() / count as f64
}

pub(super) const FLOW: [Feature; 27] = [
    record_feature!(
        "frame_bytes",
        "bytes",
        "volume",
        "L2 bytes of both directions: whole frames as the hooks saw them, link headers and padding included",
        NEVER,
        |r| r.frame_bytes as f64
    ),
    record_feature!(
        "frames",
        "frames",
        "volume",
        "frames of both directions as the hooks saw them: a super-packet is one",
        NEVER,
        |r| r.frames() as f64
    ),
    record_feature!("initiator_resets", "0/1", "state", "the first RST came from the initiator", NOT_TCP, |r| tcp(
        r,
        both(r, state::RST, state::RST_REVERSE)
    )),
    record_feature!("responder_resets", "0/1", "state", "the first RST came from the responder", NOT_TCP, |r| tcp(
        r,
        is(r, state::RST_REVERSE)
    )),
    record_feature!("reset_after_fin", "0/1", "state", "the first RST came after a FIN of either side", NOT_TCP, |r| {
        tcp(r, is(r, state::RST_AFTER_FIN))
    }),
    record_feature!(
        "closed_by_fin",
        "0/1",
        "state",
        "both FINs were acknowledged before any RST (RFC 9293, section 3.6)",
        NOT_TCP,
        |r| tcp(r, is(r, state::GRACEFUL))
    ),
    record_feature!(
        "responder_fin_first",
        "0/1",
        "state",
        "the FIN of the responder came before any of the initiator",
        NOT_TCP,
        |r| tcp(r, is(r, state::FIN_REVERSE_FIRST))
    ),
    record_feature!(
        "simultaneous_open",
        "0/1",
        "state",
        "both sides sent a SYN without ACK (RFC 9293, section 3.5)",
        NOT_TCP,
        |r| tcp(r, is(r, state::SYN_BACK))
    ),
    record_feature!(
        "subflows",
        "subflows",
        "shape",
        "gaps of more than 1 s between two frames of the flow, plus one",
        NEVER,
        |r| r.subflows as f64
    ),
    record_feature!("bursts", "bursts", "shape", "longest runs of frames of one direction", NEVER, |r| r.bursts as f64),
    record_feature!(
        "active_periods",
        "periods",
        "shape",
        "active periods: runs of frames with gaps of at most 5 s, the present one as if it ended with the last frame",
        NEVER,
        |r| r.active().count as f64
    ),
    record_feature!(
        "active_min",
        "seconds",
        "shape",
        "shortest of the active periods, in whole microseconds",
        NEVER,
        |r| periods(r.active(), |p| p.min_us as f64)
    )
    .real(),
    record_feature!(
        "active_max",
        "seconds",
        "shape",
        "longest of the active periods, in whole microseconds",
        NEVER,
        |r| periods(r.active(), |p| p.max_us as f64)
    )
    .real(),
    record_feature!(
        "active_mean",
        "seconds",
        "shape",
        "mean of the active periods, in whole microseconds",
        NEVER,
        |r| periods(r.active(), |p| p.sum_us as f64 / p.count as f64)
    )
    .real(),
    record_feature!(
        "active_std",
        "seconds",
        "shape",
        "population deviation of the active periods, in whole microseconds",
        TOO_LONG,
        |r| periods(r.active(), spread)
    )
    .real(),
    record_feature!(
        "idle_periods",
        "periods",
        "shape",
        "idle periods: gaps of more than 5 s between two frames",
        NEVER,
        |r| r.idle().count as f64
    ),
    record_feature!(
        "idle_min",
        "seconds",
        "shape",
        "shortest of the idle periods, in whole microseconds",
        NO_IDLE,
        |r| periods(r.idle(), |p| p.min_us as f64)
    )
    .real(),
    record_feature!(
        "idle_max",
        "seconds",
        "shape",
        "longest of the idle periods, in whole microseconds",
        NO_IDLE,
        |r| periods(r.idle(), |p| p.max_us as f64)
    )
    .real(),
    record_feature!("idle_mean", "seconds", "shape", "mean of the idle periods, in whole microseconds", NO_IDLE, |r| {
        periods(r.idle(), |p| p.sum_us as f64 / p.count as f64)
    })
    .real(),
    record_feature!(
        "idle_std",
        "seconds",
        "shape",
        "population deviation of the idle periods, in whole microseconds",
        NO_IDLE_OR_LONG,
        |r| periods(r.idle(), spread)
    )
    .real(),
    record_feature!("icmp_type", "1", "icmp", "type of the first message", NOT_ICMP, |r| icmp(
        r,
        r.icmp_message().0 as f64
    )),
    record_feature!("icmp_code", "1", "icmp", "code of the first message", NOT_ICMP, |r| icmp(
        r,
        r.icmp_message().1 as f64
    )),
    record_feature!(
        "icmp_errors",
        "frames",
        "icmp",
        "ICMP errors of others that quote a packet of this flow",
        NEVER,
        |r| r.icmp_errors as f64
    ),
    record_feature!(
        "icmp_error_type",
        "1",
        "icmp",
        "type of the first of these errors",
        NO_ERROR,
        |r| if r.icmp_errors == 0 { f64::NAN } else { r.error_type as f64 }
    ),
    record_feature!(
        "icmp_error_code",
        "1",
        "icmp",
        "code of the first of these errors",
        NO_ERROR,
        |r| if r.icmp_errors == 0 { f64::NAN } else { r.error_code as f64 }
    ),
    record_feature!(
        "lost_updates",
        "frames",
        "health",
        "frames of the flow that were not counted because its record was locked",
        NEVER,
        |r| r.lost as f64
    ),
    record_feature!(
        "table_pressure",
        "ways",
        "health",
        "ways of its table bucket (of 8) that other flows held when the flow was born; 8: one was given up for it; 0 in captures",
        NEVER,
        |r| r.occupied_ways() as f64
    ),
];
