//! Of the flow as a whole: close style, shape over time, ICMP, health.

use super::base::is;
use super::{Feature, Form, Presence, record_feature};
use crate::flow::{FlowRecord, state};

fn both(record: &FlowRecord, set: u32, clear: u32) -> u64 {
    (record.state & set != 0 && record.state & clear == 0).into()
}

pub(super) const FLOW: [Feature; 27] = [
    record_feature!(
        "frame_bytes",
        "bytes",
        "volume",
        "L2 bytes of both directions: whole frames as the hooks saw them, link headers and padding included",
        Presence::Always,
        |r| r.frame_bytes
    ),
    record_feature!(
        "frames",
        "frames",
        "volume",
        "frames of both directions as the hooks saw them: a super-packet is one",
        Presence::Always,
        |r| r.frames()
    ),
    record_feature!(
        "initiator_resets",
        "0/1",
        "state",
        "the first RST that its receiver accepts came from the initiator",
        Presence::Tcp,
        |r| { both(r, state::RST, state::RST_REVERSE) }
    ),
    record_feature!(
        "responder_resets",
        "0/1",
        "state",
        "the first RST that its receiver accepts came from the responder",
        Presence::Tcp,
        |r| is(r, state::RST_REVERSE)
    ),
    record_feature!(
        "reset_after_fin",
        "0/1",
        "state",
        "the first RST that its receiver accepts came after a FIN of either side",
        Presence::Tcp,
        |r| { is(r, state::RST_AFTER_FIN) }
    ),
    record_feature!(
        "closed_by_fin",
        "0/1",
        "state",
        "both FINs were acknowledged before any RST (RFC 9293, section 3.6)",
        Presence::Tcp,
        |r| is(r, state::GRACEFUL)
    ),
    record_feature!(
        "responder_fin_first",
        "0/1",
        "state",
        "the FIN of the responder came before any of the initiator",
        Presence::Tcp,
        |r| is(r, state::FIN_REVERSE_FIRST)
    ),
    record_feature!(
        "simultaneous_open",
        "0/1",
        "state",
        "both sides sent a SYN without ACK (RFC 9293, section 3.5)",
        Presence::Tcp,
        |r| is(r, state::SYN_BACK)
    ),
    record_feature!(
        "subflows",
        "subflows",
        "shape",
        "gaps of more than 1 s between two frames of the flow, plus one",
        Presence::Always,
        |r| r.subflows
    ),
    record_feature!("bursts", "bursts", "shape", "longest runs of frames of one direction", Presence::Always, |r| r
        .bursts),
    record_feature!(
        "active_periods",
        "periods",
        "shape",
        "active periods: runs of frames with gaps of at most 5 s, the present one as if it ended with the last frame",
        Presence::Always,
        |r| r.active().count
    ),
    record_feature!(
        "active_min",
        "seconds",
        "shape",
        "shortest of the active periods, in whole microseconds",
        Presence::Always,
        |r| r.active().min_us
    )
    .of(Form::Microseconds),
    record_feature!(
        "active_max",
        "seconds",
        "shape",
        "longest of the active periods, in whole microseconds",
        Presence::Always,
        |r| r.active().max_us
    )
    .of(Form::Microseconds),
    record_feature!(
        "active_mean",
        "seconds",
        "shape",
        "mean of the active periods, in whole microseconds",
        Presence::Always,
        |r| r.active().mean_us()
    )
    .of(Form::Microseconds),
    record_feature!(
        "active_std",
        "seconds",
        "shape",
        "population deviation of the active periods, in whole microseconds",
        Presence::ActiveSpread,
        |r| r.active().variance_us2()
    )
    .of(Form::RootMicroseconds),
    record_feature!(
        "idle_periods",
        "periods",
        "shape",
        "idle periods: gaps of more than 5 s between two frames",
        Presence::Always,
        |r| r.idle().count
    ),
    record_feature!(
        "idle_min",
        "seconds",
        "shape",
        "shortest of the idle periods, in whole microseconds",
        Presence::Idle,
        |r| r.idle().min_us
    )
    .of(Form::Microseconds),
    record_feature!(
        "idle_max",
        "seconds",
        "shape",
        "longest of the idle periods, in whole microseconds",
        Presence::Idle,
        |r| r.idle().max_us
    )
    .of(Form::Microseconds),
    record_feature!(
        "idle_mean",
        "seconds",
        "shape",
        "mean of the idle periods, in whole microseconds",
        Presence::Idle,
        |r| r.idle().mean_us()
    )
    .of(Form::Microseconds),
    record_feature!(
        "idle_std",
        "seconds",
        "shape",
        "population deviation of the idle periods, in whole microseconds",
        Presence::IdleSpread,
        |r| r.idle().variance_us2()
    )
    .of(Form::RootMicroseconds),
    record_feature!("icmp_type", "1", "icmp", "type of the first message", Presence::Icmp, |r| r.icmp_message().0),
    record_feature!("icmp_code", "1", "icmp", "code of the first message", Presence::Icmp, |r| r.icmp_message().1),
    record_feature!(
        "icmp_errors",
        "frames",
        "icmp",
        "ICMP errors of others that quote a packet of this flow",
        Presence::Always,
        |r| r.icmp_errors
    ),
    record_feature!("icmp_error_type", "1", "icmp", "type of the first of these errors", Presence::IcmpError, |r| r
        .error_type),
    record_feature!("icmp_error_code", "1", "icmp", "code of the first of these errors", Presence::IcmpError, |r| r
        .error_code),
    record_feature!(
        "lost_updates",
        "frames",
        "health",
        "frames of the flow that were not counted because its record was locked",
        Presence::Always,
        |r| r.lost
    ),
    record_feature!(
        "table_pressure",
        "ways",
        "health",
        "ways of its table bucket (of 8) that other flows held when the flow was born; 8: one was given up for it; 0 in captures",
        Presence::Always,
        |r| r.occupied_ways()
    ),
];
