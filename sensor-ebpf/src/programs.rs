//! Entry points. An interface that is not in the counters' table is passed untouched: it is not watched.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{__sk_buff, xdp_action};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use aya_log_ebpf::{debug, trace};
use sensor_common::counter::{Hook, InterfaceCounters};
use sensor_common::verdict::Action;

use crate::bench;
use crate::datapath::observe;
use crate::frame::{SkbFrame, XdpFrame};
use crate::maps::counters;
use crate::parse::{Skb, Xdp};
use crate::tag::tag;

/// Let the next program, or the stack, see the packet.
const TC_NEXT: i32 = -1;
/// Drop the packet.
const TC_SHOT: i32 = 2;

/// Ingress, one buffer a frame (kernels before 5.18, drivers without multi-buffer support).
#[xdp]
pub(crate) fn sensor_xdp(ctx: XdpContext) -> u32 {
    ingress(&ctx, false)
}

/// Ingress, frames of several buffers included (jumbo frames, receive offload).
#[xdp(frags)]
pub(crate) fn sensor_xdp_frags(ctx: XdpContext) -> u32 {
    ingress(&ctx, true)
}

#[inline(always)]
fn ingress(ctx: &XdpContext, frags: bool) -> u32 {
    bench::vary(ctx);
    let ifindex = ctx.ingress_ifindex() as u32;
    let Some(counters) = counters(ifindex) else { return xdp_action::XDP_PASS };
    let created = counters.flows_created;
    let source = Xdp { ctx: ctx.ctx };
    // SAFETY: the context is this program's own.
    let len = unsafe { XdpFrame::len(ctx.ctx, frags) };
    let action = observe(source, len, Hook::Ingress, ifindex, false, counters);
    if counters.flows_created != created {
        debug!(ctx, "interface {}: new flow", ifindex);
    }
    if action == Action::Drop {
        trace!(ctx, "interface {}: dropped by verdict", ifindex);
        return xdp_action::XDP_DROP;
    }
    xdp_action::XDP_PASS
}

/// Egress: locally sent packets, super-packets among them. Forwarded packets of watched interfaces were counted when
/// they came in.
#[classifier]
pub(crate) fn sensor_egress(ctx: TcContext) -> i32 {
    let skb: *const __sk_buff = ctx.as_ptr().cast();
    // SAFETY: the context is this program's own.
    let (ifindex, came_from) = unsafe { ((*skb).ifindex, (*skb).ingress_ifindex) };
    let Some(own) = counters(ifindex) else { return TC_NEXT };
    let forwarded = came_from != 0 && came_from != ifindex && counters(came_from).is_some();
    observe_skb(ctx.skb.skb, 0, Hook::Egress, ifindex, forwarded, own)
}

/// Ingress where the driver has no XDP: after the stack's receive offload, so super-packets are among them too.
#[classifier]
pub(crate) fn sensor_ingress(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is this program's own.
    let ifindex = unsafe { (*skb).ifindex };
    let Some(own) = counters(ifindex) else { return TC_NEXT };
    // SAFETY: as above.
    let missing = unsafe { SkbFrame::missing(skb) };
    observe_skb(skb, missing, Hook::Ingress, ifindex, false, own)
}

#[inline(always)]
fn observe_skb(
    ctx: *mut __sk_buff,
    missing: u32,
    hook: Hook,
    ifindex: u32,
    forwarded: bool,
    counters: &mut InterfaceCounters,
) -> i32 {
    // SAFETY: the context is this program's own.
    let len = unsafe {
        SkbFrame::pull(ctx);
        (*ctx).len
    } + missing;
    match observe(Skb { ctx, missing }, len, hook, ifindex, forwarded, counters) {
        Action::Drop => TC_SHOT,
        Action::Pass | Action::Tag | Action::Limit => TC_NEXT,
    }
}

/// Ingress, after XDP: marks packets of tagged flows.
#[classifier]
pub(crate) fn sensor_tag(ctx: TcContext) -> i32 {
    let skb: *const __sk_buff = ctx.as_ptr().cast();
    // SAFETY: the context is this program's own.
    if let Some(counters) = counters(unsafe { (*skb).ifindex }) {
        tag(&ctx, counters);
    }
    TC_NEXT
}
