//! What `cargo xtask bench` measures as "aggregating agent": the usual way to count flows in the kernel, as flow exporters do
//! it (netobserv's eBPF agent among them): a hash map of the kernel that takes memory as entries come, keyed by the
//! addresses and ports of one direction; and in it packets, bytes, first and last time, TCP flags, DSCP, interface and
//! direction, under a `bpf_spin_lock`.
//!
//! It is written anew after that description, with this project's parser, and at XDP. It is not any of those programs: they
//! run at TC, and parse, filter, sample and watch more than this. Nothing is sent to user space here, either: a flow that
//! finds no place is not counted.

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, bpf_spin_lock, xdp_action};
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::helpers::{bpf_ktime_get_ns, generated};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use sensor_common::packet::Packet;

use super::vary;
use crate::frame::XdpFrame;
use crate::parse::{Source as _, Xdp};

/// One direction of a flow.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Key {
    source: [u32; 4],
    destination: [u32; 4],
    source_port: u16,
    destination_port: u16,
    protocol: u8,
    family: u8,
    icmp: [u8; 2],
}

/// What is kept of it.
#[repr(C)]
pub(crate) struct Metrics {
    first_ns: u64,
    last_ns: u64,
    bytes: u64,
    packets: u32,
    interface: u32,
    flags: u16,
    dscp: u8,
    direction: u8,
    /// The kernel finds it by its type's name in the object's BTF, which only maps defined in BTF have.
    lock: bpf_spin_lock,
}

#[btf_map]
pub(crate) static BENCH_AGGREGATE: HashMap<Key, Metrics, 1, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Parse, clock, look up, count.
#[xdp]
pub(crate) fn floor_aggregate(ctx: XdpContext) -> u32 {
    vary(&ctx);
    let source = Xdp { ctx: ctx.ctx };
    // SAFETY: the context is this program's own.
    let len = unsafe { XdpFrame::len(ctx.ctx, false) };
    let mut packet = Packet::start(len);
    if source.parse(&mut packet).is_err() {
        return xdp_action::XDP_PASS;
    }
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let interface = ctx.ingress_ifindex() as u32;
    if aggregate(&packet, now_ns, interface).is_ok() { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS }
}

#[inline(always)]
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value, the key would be copied, on a stack of 512 bytes"
)]
fn aggregate(packet: &Packet, now_ns: u64, interface: u32) -> Result<(), i32> {
    let flow = &packet.key;
    let (low, high) = ((flow.low, flow.low_port), (flow.high, flow.high_port));
    let ((source, source_port), (destination, destination_port)) =
        if packet.from_low { (low, high) } else { (high, low) };
    let icmp = [packet.icmp_type, packet.icmp_code];
    let (protocol, family) = (flow.protocol, flow.family);
    let key = Key { source, destination, source_port, destination_port, protocol, family, icmp };
    let (bytes, flags, dscp) = (packet.frame_len as u64, packet.tcp_flags as u16, packet.traffic_class >> 2);
    let Some(metrics) = BENCH_AGGREGATE.get_ptr_mut(&key) else {
        let lock = bpf_spin_lock { val: 0 };
        let new = Metrics {
            first_ns: now_ns,
            last_ns: now_ns,
            bytes,
            packets: 1,
            interface,
            flags,
            dscp,
            direction: 0,
            lock,
        };
        return BENCH_AGGREGATE.insert(&key, &new, 0);
    };
    // SAFETY: a map value with its own lock, which no other function is called under.
    unsafe {
        generated::bpf_spin_lock(&raw mut (*metrics).lock);
        (*metrics).packets += 1;
        (*metrics).bytes += bytes;
        (*metrics).last_ns = now_ns;
        (*metrics).flags |= flags;
        (*metrics).dscp = dscp;
        (*metrics).interface = interface;
        generated::bpf_spin_unlock(&raw mut (*metrics).lock);
    }
    Ok(())
}
