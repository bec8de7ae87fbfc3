//! When a feature has a value. A feature is missing where its condition does not hold, and nowhere else: one bit each.

use super::Sample;
use crate::context::{ServiceWindow, SourceWindow};
use crate::flow::FlowRecord;
use crate::packet::protocol;

/// A condition. `u8`: a direction (0 from the initiator, 1 back), a frame's number from 1, or a window of the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Always.
    Always,
    /// The direction has sent something.
    Direction(u8),
    /// The flow is TCP.
    Tcp,
    /// TCP, and the direction has sent something.
    TcpDirection(u8),
    /// The flow is UDP, and its direction has a payload hint.
    UdpHint(u8),
    /// The flow is TCP, and its direction has a payload hint.
    TcpHint(u8),
    /// The direction has a payload hint.
    Hint(u8),
    /// IPv4, and the direction has sent something.
    Ipv4(u8),
    /// IPv6, and the direction has sent something.
    Ipv6(u8),
    /// A SYN of the direction carries a maximum segment size.
    Mss(u8),
    /// A SYN of the direction carries a window scale.
    WindowScale(u8),
    /// The duration is above 0.
    Duration,
    /// The flow has two frames or more.
    TwoFrames,
    /// The direction has two frames or more.
    TwoFramesOf(u8),
    /// The flow has this frame.
    Frame(u8),
    /// SYN and SYN-ACK were seen.
    Handshake,
    /// The handshake was completed.
    Completed,
    /// ICMP or ICMPv6.
    Icmp,
    /// An ICMP error quotes the flow.
    IcmpError,
    /// There is an idle period.
    Idle,
    /// The sum of squares of the active periods is known, or they are all equal.
    ActiveSpread,
    /// There is an idle period, and as for [`Presence::ActiveSpread`].
    IdleSpread,
    /// The source is known.
    Source,
    /// The service is known.
    Service,
    /// The source is known, and a flow of it was judged in the window.
    SourceJudged(u8),
    /// The service is known, and a flow to it was judged in the window.
    ServiceJudged(u8),
}

impl Presence {
    /// When the value is missing, in words.
    pub const fn missing(self) -> &'static str {
        match self {
            Presence::Always => "never",
            Presence::Direction(0) => "the initiator sent nothing that was seen",
            Presence::Direction(_) => "the responder sent nothing",
            Presence::Tcp => "not TCP",
            Presence::TcpDirection(_) => "not TCP, or that direction is empty",
            Presence::UdpHint(_) => "not UDP, hints are off, or no payload was seen in that direction",
            Presence::TcpHint(_) => "not TCP, hints are off, or no payload was seen in that direction",
            Presence::Hint(_) => "hints are off, or no payload was seen in that direction",
            Presence::Ipv4(_) => "IPv6, or that direction is empty",
            Presence::Ipv6(_) => "IPv4, or that direction is empty",
            Presence::Mss(_) | Presence::WindowScale(_) => "no SYN with that option seen in that direction",
            Presence::Duration => "duration is 0",
            Presence::TwoFrames => "fewer than two frames",
            Presence::TwoFramesOf(_) => "fewer than two frames in that direction",
            Presence::Frame(_) => "the flow has fewer frames",
            Presence::Handshake => "no SYN and SYN-ACK seen",
            Presence::Completed => "handshake not completed",
            Presence::Icmp => "not ICMP or ICMPv6",
            Presence::IcmpError => "no ICMP error quotes the flow",
            Presence::Idle => "no gap of more than 5 s",
            Presence::ActiveSpread => {
                "periods differ and the sum of their squares exceeds 2^64 µs² (flows of more than 71 minutes)"
            }
            Presence::IdleSpread => "no gap of more than 5 s, or as for active_std",
            Presence::Source => "the source is not known: context is off, or its table was full",
            Presence::Service => "the service is not known: context is off, or its table was full",
            Presence::SourceJudged(_) => "the source is not known, or no flow of it was judged in the window",
            Presence::ServiceJudged(_) => "the service is not known, or no flow to it was judged in the window",
        }
    }

    /// Whether it holds.
    pub fn holds(self, sample: &Sample<'_>) -> bool {
        let record = sample.record;
        let sent = |side: u8| record.direction(side.into()).is_some();
        let tcp = record.key.protocol == protocol::TCP;
        match self {
            Presence::Always => true,
            Presence::Direction(side) => sent(side),
            Presence::Tcp => tcp,
            Presence::TcpDirection(side) => tcp && sent(side),
            Presence::UdpHint(side) => record.key.protocol == protocol::UDP && hinted(record, side),
            Presence::TcpHint(side) => tcp && hinted(record, side),
            Presence::Hint(side) => hinted(record, side),
            Presence::Ipv4(side) => record.key.family == 4 && sent(side),
            Presence::Ipv6(side) => record.key.family == 6 && sent(side),
            Presence::Mss(side) => tcp && record.opening(side.into()).is_some_and(|opening| opening.mss != 0),
            Presence::WindowScale(side) => {
                tcp && record.opening(side.into()).is_some_and(|opening| opening.wscale != u8::MAX)
            }
            Presence::Duration => record.last_ns > record.first_ns,
            Presence::TwoFrames => record.frames() > 1,
            Presence::TwoFramesOf(side) => record.direction(side.into()).is_some_and(|half| half.arrivals() > 1),
            Presence::Frame(number) => number <= record.first_len,
            Presence::Handshake => record.syn_ns().is_some() && record.syn_ack_ns > 0,
            Presence::Completed => record.established_ns > 0 && record.syn_ack_ns > 0,
            Presence::Icmp => matches!(record.key.protocol, protocol::ICMP | protocol::ICMPV6),
            Presence::IcmpError => record.icmp_errors > 0,
            Presence::Idle => record.idles > 0,
            Presence::ActiveSpread => record.active().spread_is_known(),
            Presence::IdleSpread => record.idles > 0 && record.idle().spread_is_known(),
            Presence::Source => sample.context.source.is_some(),
            Presence::Service => sample.context.service.is_some(),
            Presence::SourceJudged(window) => source_window(sample, window).is_some_and(|window| window.judged > 0),
            Presence::ServiceJudged(window) => service_window(sample, window).is_some_and(|window| window.judged > 0),
        }
    }
}

fn source_window<'a>(sample: &Sample<'a>, window: u8) -> Option<&'a SourceWindow> {
    sample.context.source.as_ref().and_then(|windows| windows.get(window as usize))
}

fn service_window<'a>(sample: &Sample<'a>, window: u8) -> Option<&'a ServiceWindow> {
    sample.context.service.as_ref().and_then(|windows| windows.get(window as usize))
}

fn hinted(record: &FlowRecord, side: u8) -> bool {
    record.opening(side.into()).is_some_and(|opening| opening.hint_len > 0)
}
