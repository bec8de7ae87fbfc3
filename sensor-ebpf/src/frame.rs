//! Frames as the two hooks hand them over: packet pointers behind the bounds check that the verifier asks for.

use core::arch::asm;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::bindings::bpf_hdr_start_off::BPF_HDR_START_MAC;
use aya_ebpf::helpers::generated::{bpf_skb_load_bytes_relative, bpf_xdp_get_buff_len};
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

/// Bytes of an Ethernet header.
const LINK: usize = 14;

/// Room for a link header on the program's stack, which the verifier wants to be read aligned.
#[repr(align(8))]
pub(crate) struct Link(pub(crate) [u8; LINK]);

/// A received frame at the TC hook, seen whole even where the hook starts it at the IP header: when generic XDP had to
/// copy the packet, kernels since 6.9 (e6d5dbdd20aa) forget the length of the link header, by which they would go back.
#[derive(Clone, Copy)]
pub(crate) struct IngressFrame<'a> {
    frame: SkbFrame,
    link: &'a Link,
    /// Bytes of the link header in front of the hook's start: 0 or [`LINK`].
    pub(crate) missing: u32,
}

impl<'a> IngressFrame<'a> {
    /// `link` is on the caller's stack.
    #[inline(always)]
    pub(crate) fn new(ctx: &TcContext, link: &'a mut Link) -> IngressFrame<'a> {
        let frame = SkbFrame::new(ctx);
        // SAFETY: the helper writes `LINK` bytes to the caller's room, and zeroes them where it fails.
        let loaded = unsafe {
            bpf_skb_load_bytes_relative(ctx.as_ptr(), 0, link.0.as_mut_ptr().cast(), LINK as u32, BPF_HDR_START_MAC)
        } == 0;
        let mut missing = 0;
        if loaded && let Some(start) = frame.window(0, LINK as u32) {
            let link = PacketBytes(link.0.as_ptr());
            if start.be32::<0>() != link.be32::<0>()
                || start.be32::<4>() != link.be32::<4>()
                || start.be32::<8>() != link.be32::<8>()
                || start.be16::<12>() != link.be16::<12>()
            {
                missing = LINK as u32;
            }
        }
        IngressFrame { frame, link, missing }
    }
}

impl Frame for IngressFrame<'_> {
    type Window = PacketBytes;
    #[inline(always)]
    fn window(self, offset: u32, len: u32) -> Option<PacketBytes> {
        if offset < self.missing {
            // The parser reads the link header as one window.
            return (offset == 0 && len == LINK as u32).then_some(PacketBytes(self.link.0.as_ptr()));
        }
        self.frame.window(offset - self.missing, len)
    }
    #[inline(always)]
    fn wire_len(self) -> u32 {
        self.frame.wire_len() + self.missing
    }
    #[inline(always)]
    fn segments(self) -> (u32, u32) {
        self.frame.segments()
    }
    #[inline(always)]
    fn offloaded_vlan(self) -> Option<u16> {
        self.frame.offloaded_vlan()
    }
}
