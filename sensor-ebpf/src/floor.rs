//! What `cargo xtask bench` measures beside the real programs: the least that any program can cost. The agent never
//! loads these.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use sensor_common::packet::Packet;

use crate::atomic;
use crate::frame::XdpFrame;
use crate::parse::{Source as _, Xdp};

/// Nothing but the call.
#[xdp]
pub(crate) fn floor_drop(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// Parse and clock: what every program that keeps flow statistics has to do.
#[xdp]
pub(crate) fn floor_clock(ctx: XdpContext) -> u32 {
    let source = Xdp { ctx: ctx.ctx };
    // SAFETY: the context is this program's own.
    let len = unsafe { XdpFrame::len(ctx.ctx, false) };
    let mut packet = Packet::start(len);
    if source.parse(&mut packet).is_err() {
        return xdp_action::XDP_PASS;
    }
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // Every field is used, so that none of the parser is optimised away.
    let words = packet.key.words();
    let sum = words.iter().fold(now, |sum, word| sum.wrapping_add(*word as u64))
        ^ (packet.seq as u64)
        ^ (packet.ack as u64)
        ^ (packet.payload_len as u64) << 8
        ^ (packet.window as u64) << 16
        ^ (packet.tcp_flags as u64)
        ^ (packet.ttl as u64);
    if atomic::opaque(sum) == 77 { xdp_action::XDP_PASS } else { xdp_action::XDP_DROP }
}
