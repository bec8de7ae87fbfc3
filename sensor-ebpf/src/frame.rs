//! Frames as the two hooks hand them over: packet pointers behind the bounds check that the verifier asks for.

use core::arch::asm;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_xdp_get_buff_len;
use aya_ebpf::programs::{TcContext, XdpContext};
use sensor_common::packet::{Frame, Window};

/// Bytes that the headers of nearly every packet fit into; egress frames are made linear up to here.
const HEADER_ROOM: u32 = 128;

/// Ethernet, IPv4 and TCP headers without options. Locally sent packets have all their headers in the linear part; to make
/// more of each linear would copy every one of them.
const BARE_HEADERS: u32 = 54;

/// Packet bytes that were bounds-checked.
#[derive(Clone, Copy)]
pub(crate) struct PacketBytes(*const u8);

/// One load instruction of the given width at a constant offset. Packet fields need not be aligned: the kernel allows
/// that for packet memory on CPUs that can, while a Rust read of an unaligned integer would be split into bytes.
macro_rules! load {
    ($width:literal, $from:expr, $at:ident) => {{
        let value: u32;
        // SAFETY: `Frame::window` checked the bounds, and callers read inside of what they asked for.
        unsafe {
            asm!(
                concat!("{value} = *(", $width, " *)({from} + {at})"),
                value = out(wreg) value,
                from = in(reg) $from,
                at = const $at,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        value
    }};
}

impl Window for PacketBytes {
    #[inline(always)]
    fn byte<const AT: usize>(self) -> u8 {
        load!("u8", self.0, AT) as u8
    }
    #[inline(always)]
    fn be16<const AT: usize>(self) -> u16 {
        u16::from_be(load!("u16", self.0, AT) as u16)
    }
    #[inline(always)]
    fn be32<const AT: usize>(self) -> u32 {
        u32::from_be(load!("u32", self.0, AT))
    }
}

#[inline(always)]
fn window(data: usize, end: usize, offset: u32, len: u32) -> Option<PacketBytes> {
    let start = data + offset as usize;
    if start + len as usize > end { None } else { Some(PacketBytes(start as *const u8)) }
}

/// A received frame. Headers are in its first buffer; `wire_len` counts all buffers.
#[derive(Clone, Copy)]
pub(crate) struct XdpFrame {
    data: usize,
    end: usize,
    wire_len: u32,
}

impl XdpFrame {
    /// `frags`: the program was loaded as `xdp.frags`, so there may be more buffers than the first (kernel 5.18).
    #[inline(always)]
    pub(crate) fn new(ctx: &XdpContext, frags: bool) -> XdpFrame {
        let (data, end) = (ctx.data(), ctx.data_end());
        let wire_len = if frags {
            // SAFETY: the context is this program's own.
            (unsafe { bpf_xdp_get_buff_len(ctx.as_ptr().cast()) }) as u32
        } else {
            (end - data) as u32
        };
        XdpFrame { data, end, wire_len }
    }
}

impl Frame for XdpFrame {
    type Window = PacketBytes;
    #[inline(always)]
    fn window(self, offset: u32, len: u32) -> Option<PacketBytes> {
        window(self.data, self.end, offset, len)
    }
    #[inline(always)]
    fn wire_len(self) -> u32 {
        self.wire_len
    }
}

/// A frame on its way through TC, possibly a super-packet.
#[derive(Clone, Copy)]
pub(crate) struct SkbFrame {
    data: usize,
    end: usize,
    skb: *const __sk_buff,
}

impl SkbFrame {
    #[inline(always)]
    pub(crate) fn new(ctx: &TcContext) -> SkbFrame {
        let linear = (ctx.data_end() - ctx.data()) as u32;
        let wanted = if ctx.len() < HEADER_ROOM { ctx.len() } else { HEADER_ROOM };
        if linear < wanted && linear < BARE_HEADERS {
            // A failure leaves what is linear, and the parser counts what is missing.
            let _ = ctx.pull_data(wanted);
        }
        SkbFrame { data: ctx.data(), end: ctx.data_end(), skb: ctx.as_ptr().cast() }
    }

    #[inline(always)]
    fn field<T>(self, read: impl Fn(&__sk_buff) -> T) -> T {
        // SAFETY: the context outlives the program's run, and this type does not leave it.
        read(unsafe { &*self.skb })
    }
}

impl Frame for SkbFrame {
    type Window = PacketBytes;
    #[inline(always)]
    fn window(self, offset: u32, len: u32) -> Option<PacketBytes> {
        window(self.data, self.end, offset, len)
    }
    #[inline(always)]
    fn wire_len(self) -> u32 {
        self.field(|skb| skb.len)
    }
    #[inline(always)]
    fn segments(self) -> (u32, u32) {
        let (segments, size) = self.field(|skb| (skb.gso_segs, skb.gso_size));
        if segments == 0 { (1, 0) } else { (segments, size) }
    }
    #[inline(always)]
    fn offloaded_vlan(self) -> Option<u16> {
        let (present, tci) = self.field(|skb| (skb.vlan_present, skb.vlan_tci));
        (present != 0).then_some(tci as u16)
    }
}
