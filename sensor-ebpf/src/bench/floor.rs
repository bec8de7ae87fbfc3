//! What `cargo xtask bench` measures beside the real programs: the least that any program can cost, and the usual
//! design.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{LruHashMap, PerCpuArray};
use aya_ebpf::programs::{TcContext, XdpContext};
use sensor_common::counter::Cause;
use sensor_common::flow::{FlowKey, FlowRecord};
use sensor_common::packet::Packet;

use super::vary;
use crate::atomic;
use crate::frame::{SkbFrame, XdpFrame};
use crate::parse::{Skb, Source, Xdp};
use crate::record::{count, start, update};
use crate::table::Visit;

/// Let the next program, or the stack, see the packet.
const TC_NEXT: i32 = -1;
/// Drop the packet.
const TC_SHOT: i32 = 2;

/// What most agents keep their flows in. Its size is set at load.
#[map]
static BENCH_LRU: LruHashMap<FlowKey, FlowRecord> = LruHashMap::with_max_entries(1, 0);

/// A record to begin with, for [`BENCH_LRU`].
#[map]
static BENCH_RECORD: PerCpuArray<FlowRecord> = PerCpuArray::with_max_entries(1, 0);

/// Nothing but the call.
#[xdp]
pub(crate) fn floor_drop(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// The same on an interface: what XDP itself costs there.
#[xdp(frags)]
pub(crate) fn floor_pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// A frame that is made the next one of its kind, and nothing else.
#[xdp]
pub(crate) fn floor_vary(ctx: XdpContext) -> u32 {
    vary(&ctx);
    xdp_action::XDP_DROP
}

/// Parse alone.
#[xdp]
pub(crate) fn floor_parse(ctx: XdpContext) -> u32 {
    least(&ctx, false)
}

/// Parse and clock: what every program that keeps flow statistics has to do.
#[xdp]
pub(crate) fn floor_clock(ctx: XdpContext) -> u32 {
    least(&ctx, true)
}

#[inline(always)]
fn least(ctx: &XdpContext, clock: bool) -> u32 {
    vary(ctx);
    // SAFETY: the context is this program's own.
    let len = unsafe { XdpFrame::len(ctx.ctx, false) };
    match read(Xdp { ctx: ctx.ctx }, len, clock) {
        Some(77) | None => xdp_action::XDP_PASS,
        Some(_) => xdp_action::XDP_DROP,
    }
}

/// At TC: nothing but the call.
#[classifier]
pub(crate) fn floor_tc_next(_ctx: TcContext) -> i32 {
    TC_NEXT
}

/// At TC: parse and clock.
#[classifier]
pub(crate) fn floor_tc_clock(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is this program's own, and nothing of it was read yet.
    let (missing, len) = unsafe {
        SkbFrame::pull(skb);
        (SkbFrame::missing(skb), (*skb).len)
    };
    match read(Skb { ctx: skb, missing }, len + missing, true) {
        Some(77) => TC_SHOT,
        _ => TC_NEXT,
    }
}

/// Parses a frame; a number that depends on all that was read. `None` if the parser refuses the frame.
#[inline(always)]
fn read<S: Source>(source: S, len: u32, clock: bool) -> Option<u64> {
    let mut packet = Packet::start(len);
    source.parse(&mut packet).ok()?;
    // SAFETY: a helper without arguments.
    let now = if clock { unsafe { bpf_ktime_get_ns() } } else { 0 };
    // Every field is used, so that none of the parser is optimised away.
    let words = packet.key.words();
    let sum = words.iter().fold(now, |sum, word| sum.wrapping_add(*word as u64))
        ^ (packet.seq as u64)
        ^ (packet.ack as u64)
        ^ (packet.payload_len as u64) << 8
        ^ (packet.window as u64) << 16
        ^ (packet.tcp_flags as u64)
        ^ (packet.ttl as u64);
    Some(atomic::opaque(sum))
}

/// The same record in a hash map of the kernel that gives up what was used least recently: what most agents do. No
/// locks, no verdicts, no counters.
#[xdp]
pub(crate) fn floor_lru(ctx: XdpContext) -> u32 {
    vary(&ctx);
    let source = Xdp { ctx: ctx.ctx };
    // SAFETY: the context is this program's own.
    let len = unsafe { XdpFrame::len(ctx.ctx, false) };
    let mut visit = Visit { packet: Packet::start(len), now_ns: 0, ifindex: 0, hook: 0, frees: 0, verdict: 0 };
    match in_hash(source, &mut visit) {
        Ok(()) => xdp_action::XDP_DROP,
        Err(_) => xdp_action::XDP_PASS,
    }
}

#[inline(always)]
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value, a record would go over the stack, which has 512 bytes"
)]
fn in_hash(source: Xdp, visit: &mut Visit) -> Result<(), u64> {
    source.parse(&mut visit.packet)?;
    // SAFETY: a helper without arguments.
    visit.now_ns = unsafe { bpf_ktime_get_ns() };
    if let Some(record) = BENCH_LRU.get_ptr_mut(&visit.packet.key) {
        // SAFETY: a map value. Other CPUs may write it: this is how the usual design counts.
        update(unsafe { &mut *record }, visit);
        return Ok(());
    }
    let record = BENCH_RECORD.get_ptr_mut(0).ok_or(Cause::Internal as u64)?;
    // SAFETY: this CPU's own map value.
    let record = unsafe { &mut *record };
    start(record, visit, 0);
    count(record, visit);
    BENCH_LRU.insert(&visit.packet.key, &*record, 0).map_err(|_| Cause::BucketFull as u64)
}
