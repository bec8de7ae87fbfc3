//! Host context: what the flow's source and its destination service did, over sliding windows ([`crate::context`]).

use super::{Feature, Form, Presence};
use crate::context::{HostContext, ServiceWindow, SourceWindow, WINDOW_NAMES};
use crate::whole::fraction;

/// The group of these features.
pub(super) const GROUP: &str = "host context";

fn source(context: &HostContext, window: usize, value: impl Fn(&SourceWindow) -> u64) -> u64 {
    context.source.as_ref().map_or(0, |windows| value(&windows[window]))
}

fn service(context: &HostContext, window: usize, value: impl Fn(&ServiceWindow) -> u64) -> u64 {
    context.service.as_ref().map_or(0, |windows| value(&windows[window]))
}

macro_rules! context {
    ($name:expr, $unit:expr, $definition:expr, $presence:expr, |$c:ident| $value:expr) => {
        Feature {
            name: $name,
            unit: $unit,
            group: GROUP,
            definition: $definition,
            presence: $presence,
            form: Form::Count,
            whole: |sample| {
                let $c = sample.context;
                ($value) as i64
            },
        }
    };
}

/// `$n`: window, `$w`: its name, `$t`: for the text.
macro_rules! windows {
    ($n:literal, $w:literal, $t:literal) => {
        [
            context!(concat!("src_new_flows_", $w), "flows", concat!("flows that the initiator's address started, in the last ", $t), Presence::Source, |c| source(c, $n, |w| w.new_flows.into())),
            context!(concat!("src_ports_", $w), "ports", concat!("distinct destination ports (with protocol) of the flows that the initiator's address started, estimated, in the last ", $t), Presence::Source, |c| source(c, $n, |w| w.ports.into())),
            context!(concat!("src_hosts_", $w), "hosts", concat!("distinct destination addresses of the flows that the initiator's address started, estimated, in the last ", $t), Presence::Source, |c| source(c, $n, |w| w.hosts.into())),
            context!(concat!("src_unanswered_", $w), "flows", concat!("flows of the initiator's address without an answer 1 s after their first packet, in the last ", $t), Presence::Source, |c| source(c, $n, |w| w.unanswered.into())),
            context!(concat!("src_resets_", $w), "flows", concat!("flows of the initiator's address in which a RST was seen, in the last ", $t), Presence::Source, |c| source(c, $n, |w| w.resets.into())),
            context!(concat!("src_bytes_", $w), "bytes", concat!("L3 bytes of the flows that the initiator's address started, both directions, in the last ", $t), Presence::Source, |c| source(c, $n, |w| w.bytes)),
            context!(concat!("src_failed_share_", $w), "1", concat!("share of the judged flows of the initiator's address that failed (no answer, or a reset of the handshake), in the last ", $t), Presence::SourceJudged($n), |c| source(c, $n, |w| fraction(w.failed.into(), w.judged.into()))).of(Form::Fraction),
            context!(concat!("dst_new_flows_", $w), "flows", concat!("flows that were started to the flow's destination service (address, port, protocol), in the last ", $t), Presence::Service, |c| service(c, $n, |w| w.new_flows.into())),
            context!(concat!("dst_sources_", $w), "hosts", concat!("distinct source addresses of the flows to the destination service, estimated, in the last ", $t), Presence::Service, |c| service(c, $n, |w| w.sources.into())),
            context!(concat!("dst_unanswered_", $w), "flows", concat!("flows to the destination service without an answer 1 s after their first packet, in the last ", $t), Presence::Service, |c| service(c, $n, |w| w.unanswered.into())),
            context!(concat!("dst_resets_", $w), "flows", concat!("flows to the destination service in which a RST was seen, in the last ", $t), Presence::Service, |c| service(c, $n, |w| w.resets.into())),
            context!(concat!("dst_bytes_", $w), "bytes", concat!("L3 bytes of the flows to the destination service, both directions, in the last ", $t), Presence::Service, |c| service(c, $n, |w| w.bytes)),
            context!(concat!("dst_failed_share_", $w), "1", concat!("share of the judged flows to the destination service that failed (no answer, or a reset of the handshake), in the last ", $t), Presence::ServiceJudged($n), |c| service(c, $n, |w| fraction(w.failed.into(), w.judged.into()))).of(Form::Fraction),
        ]
    };
}

const _: () = assert!(WINDOW_NAMES.len() == 3);
pub(super) const SHORT: [Feature; 13] = windows!(0, "1s", "1 s");
pub(super) const MIDDLE: [Feature; 13] = windows!(1, "10s", "10 s");
pub(super) const LONG: [Feature; 13] = windows!(2, "60s", "60 s");
