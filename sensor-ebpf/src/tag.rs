//! Tagging: puts the configured mark (and DSCP) on packets of flows whose verdict is "tag", or more where only a tag is allowed. Reads the table, counts
//! nothing there: the ingress program has counted the packet already.

use aya_ebpf::bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::helpers::generated::{bpf_l3_csum_replace, bpf_skb_store_bytes};
use aya_ebpf::programs::TcContext;
use sensor_common::control::{Control, NO_DSCP};
use sensor_common::counter::{Hook, InterfaceCounters};
use sensor_common::fragment;
use sensor_common::hash;
use sensor_common::packet::{Packet, mark};

use crate::datapath::{coarse_ns, control};
use crate::fragments;
use crate::frame::SkbFrame;
use crate::maps::seed;
use crate::parse::{Skb, Source as _};
use crate::table::{self, Visit};

/// Marks the packet if its flow's verdict says so.
#[inline(always)]
pub(crate) fn tag(ctx: &TcContext, counters: &mut InterfaceCounters) {
    let Some(control) = control() else { return };
    // Mode observe: whatever the verdicts are, nothing is tagged, and the packet was parsed and looked up already.
    if u32::from_ne_bytes(control.ceilings) == 0 {
        return;
    }
    let skb: *mut __sk_buff = ctx.skb.skb;
    // SAFETY: the context is this program's own, and nothing of it was read yet.
    let (missing, len) = unsafe {
        SkbFrame::pull(skb);
        (SkbFrame::missing(skb), (*skb).len)
    };
    let packet = Packet::start(len + missing);
    let mut visit = Visit { packet, now_ns: 0, ifindex: 0, hook: Hook::Ingress as u16, frees: 0, verdict: 0 };
    if (Skb { ctx: skb, missing }).parse(&mut visit.packet).is_err() {
        return;
    }
    if fragment::concerns(&visit.packet) && !fragments::look_up(&mut visit.packet, coarse_ns(control)) {
        return;
    }
    let hash = hash::hash(&visit.packet.key, seed);
    let Ok(Some(found)) = table::find(&visit.packet, hash) else { return };
    if !table::is_tagged(found, &visit, control) {
        return;
    }
    if control.tag_mask != 0 {
        // SAFETY: the context is this program's own.
        let mark = unsafe { (*skb).mark };
        ctx.set_mark((mark & !control.tag_mask) | (control.tag_mark & control.tag_mask));
    }
    // What a tunnel carries is its sender's, and under checksums that are not mended here.
    if control.tag_dscp != NO_DSCP && visit.packet.marks & mark::TUNNELLED == 0 {
        set_dscp(skb, &visit.packet, visit.packet.l3_offset as u32 - missing, control);
    }
    counters.tagged += 1;
}

/// Rewrites the six DSCP bits (RFC 2474); ECN stays, and IPv4's header checksum is mended. The IP
/// header begins at `start` of what the hook sees.
#[inline(always)]
fn set_dscp(skb: *mut __sk_buff, packet: &Packet, start: u32, control: &Control) {
    let old = packet.traffic_class;
    let new = ((control.tag_dscp as u8) << 2) | (old & 3);
    if old == new {
        return;
    }
    if packet.key.family == 4 {
        // The class is the low byte of the header's first 16 bits, which the checksum covers.
        // SAFETY: the helper checks offset and length.
        unsafe { bpf_l3_csum_replace(skb, start + 10, (old as u64) << 8, (new as u64) << 8, 2) };
        // SAFETY: one byte of this function's stack.
        unsafe { bpf_skb_store_bytes(skb, start + 1, (&raw const new).cast(), 1, 0) };
    } else {
        // Version (4), traffic class (8), flow label (20): the class spans two bytes. The flow label's first four bits
        // are not in `packet`, so they are read back from the frame.
        let mut second = 0u8;
        // SAFETY: one byte of this function's stack.
        let read = unsafe {
            aya_ebpf::helpers::generated::bpf_skb_load_bytes(skb.cast(), start + 1, (&raw mut second).cast(), 1)
        };
        if read != 0 {
            return;
        }
        let bytes = [0x60 | new >> 4, (new << 4) | (second & 0x0f)];
        // IPv6 has no header checksum, but the checksum of the whole packet that hardware may have given covers it.
        // SAFETY: two bytes of this function's stack.
        unsafe { bpf_skb_store_bytes(skb, start, bytes.as_ptr().cast(), 2, BPF_F_RECOMPUTE_CSUM as u64) };
    }
}
