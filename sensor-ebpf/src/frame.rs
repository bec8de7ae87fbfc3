//! Frames as the hooks hand them over: packet pointers behind the bounds check that the verifier asks for. A frame is made
//! from the context anew in each function of the parser: packet pointers do not cross their borders.

use core::arch::asm;

use aya_ebpf::bindings::bpf_hdr_start_off::BPF_HDR_START_MAC;
use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::helpers::generated::{
    bpf_skb_load_bytes, bpf_skb_load_bytes_relative, bpf_skb_pull_data, bpf_xdp_get_buff_len,
};
use sensor_common::packet::{Frame, SAMPLE_BYTES, Window};

use crate::atomic;

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
    let mut start = data + offset as usize;
    let mut behind = start + len as usize;
    if len == 1 {
        // The compiler would test `start >= end`, from which the verifier does not learn that one byte is there; or
        // compute both from another number, and the verifier would not know that they belong together.
        start = atomic::opaque(start as u64) as usize;
        behind = atomic::opaque(start as u64 + 1) as usize;
    }
    if behind > end { None } else { Some(PacketBytes(start as *const u8)) }
}

/// The number that is in memory, whatever is known of it.
#[inline(always)]
fn reload(place: &u32) -> u32 {
    // SAFETY: a reference. Volatile: to the verifier, what is read back from memory that a global function was lent is
    // any number.
    unsafe { core::ptr::from_ref(place).read_volatile() }
}

/// As [`reload`].
#[inline(always)]
fn reload16(place: &u16) -> u32 {
    // SAFETY: as there.
    unsafe { core::ptr::from_ref(place).read_volatile() as u32 }
}

/// A received frame. Headers are in its first buffer.
#[derive(Clone, Copy)]
pub(crate) struct XdpFrame {
    data: usize,
    end: usize,
}

impl XdpFrame {
    /// # Safety
    /// `ctx` is this program's own.
    #[inline(always)]
    pub(crate) unsafe fn new(ctx: *mut xdp_md) -> XdpFrame {
        // SAFETY: the caller's.
        unsafe { XdpFrame { data: (*ctx).data as usize, end: (*ctx).data_end as usize } }
    }

    /// Length of all buffers of the frame, bytes. `frags`: the program was loaded as `xdp.frags`, so there may be more
    /// than the first (kernel 5.18).
    ///
    /// # Safety
    /// `ctx` is this program's own.
    #[inline(always)]
    pub(crate) unsafe fn len(ctx: *mut xdp_md, frags: bool) -> u32 {
        if frags {
            // SAFETY: the caller's.
            return (unsafe { bpf_xdp_get_buff_len(ctx) }) as u32;
        }
        // SAFETY: the caller's.
        let frame = unsafe { XdpFrame::new(ctx) };
        (frame.end - frame.data) as u32
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
        (self.end - self.data) as u32
    }
    #[inline(always)]
    fn reload(place: &u32) -> u32 {
        reload(place)
    }
    #[inline(always)]
    fn reload16(place: &u16) -> u32 {
        reload16(place)
    }
}

/// Bytes of an Ethernet header.
const LINK: usize = 14;

/// A frame on its way through TC, possibly a super-packet.
#[derive(Clone, Copy)]
pub(crate) struct SkbFrame {
    data: usize,
    end: usize,
    skb: *mut __sk_buff,
    /// Bytes of the link header in front of where the hook starts, see [`SkbFrame::missing`].
    missing: u32,
}

impl SkbFrame {
    /// # Safety
    /// `skb` is this program's own.
    #[inline(always)]
    pub(crate) unsafe fn new(skb: *mut __sk_buff, missing: u32) -> SkbFrame {
        // The verifier has to know how far back offsets reach.
        let missing = if missing == 0 { 0 } else { LINK as u32 };
        // SAFETY: the caller's.
        unsafe { SkbFrame { data: (*skb).data as usize, end: (*skb).data_end as usize, skb, missing } }
    }

    /// Makes the headers linear that are not.
    ///
    /// # Safety
    /// `skb` is this program's own, and no frame was made of it yet.
    #[inline(always)]
    pub(crate) unsafe fn pull(skb: *mut __sk_buff) {
        // SAFETY: the caller's.
        let (linear, len) = unsafe { ((*skb).data_end as usize - (*skb).data as usize, (*skb).len) };
        let wanted = if len < HEADER_ROOM { len } else { HEADER_ROOM };
        if (linear as u32) < wanted && (linear as u32) < BARE_HEADERS {
            // A failure leaves what is linear, and the parser counts what is missing.
            // SAFETY: the caller's.
            unsafe { bpf_skb_pull_data(skb, wanted) };
        }
    }

    /// Bytes of the link header in front of where the hook starts: 0 or [`LINK`]. When generic XDP had to copy a packet,
    /// kernels since 6.9 (e6d5dbdd20aa) forget the length of the link header, and TC's ingress starts at the IP header.
    ///
    /// # Safety
    /// `skb` is this program's own.
    #[inline(always)]
    pub(crate) unsafe fn missing(skb: *mut __sk_buff) -> u32 {
        // SAFETY: the caller's.
        let frame = unsafe { SkbFrame::new(skb, 0) };
        let Some(start) = frame.window(0, LINK as u32) else { return 0 };
        // Nearly always: what the hook starts at ends in the EtherType, and cannot be an IP header.
        // SAFETY: the caller's.
        let named = unsafe { (*skb).protocol } == start.be16::<12>().to_be() as u32;
        if named && !matches!(start.byte::<0>() >> 4, 4 | 6) {
            return 0;
        }
        let Some(link) = Link::load(frame) else { return 0 };
        let link = link.window();
        let same = start.be32::<0>() == link.be32::<0>()
            && start.be32::<4>() == link.be32::<4>()
            && start.be32::<8>() == link.be32::<8>()
            && start.be16::<12>() == link.be16::<12>();
        if same { 0 } else { LINK as u32 }
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
        if offset < self.missing {
            return None;
        }
        window(self.data, self.end, offset - self.missing, len)
    }
    #[inline(always)]
    fn wire_len(self) -> u32 {
        self.field(|skb| skb.len) + self.missing
    }
    #[inline(always)]
    fn segments(self) -> (u32, u32) {
        // Of a frame from an untrusted source (a guest, a packet socket: SKB_GSO_DODGY) the kernel knows the size only.
        self.field(|skb| (skb.gso_segs, skb.gso_size))
    }
    #[inline(always)]
    fn offloaded_vlan(self) -> Option<u16> {
        let (present, tci) = self.field(|skb| (skb.vlan_present, skb.vlan_tci));
        (present != 0).then_some(tci as u16)
    }
    #[inline(always)]
    fn copy(self, offset: u32, len: u32, to: &mut [u8; SAMPLE_BYTES]) -> bool {
        if offset < self.missing || len == 0 || len > SAMPLE_BYTES as u32 {
            return false;
        }
        // What these tests say of the number is lost on kernels before 6.10; a mask they understand.
        let len = (atomic::opaque(len as u64 - 1) & (SAMPLE_BYTES as u64 - 1)) as u32 + 1;
        // Payload need not be linear, and the helper does not mind.
        // SAFETY: `to` has room for `len` bytes.
        unsafe { bpf_skb_load_bytes(self.skb.cast(), offset - self.missing, to.as_mut_ptr().cast(), len) == 0 }
    }
    #[inline(always)]
    fn reload(place: &u32) -> u32 {
        reload(place)
    }
    #[inline(always)]
    fn reload16(place: &u16) -> u32 {
        reload16(place)
    }
}

/// A link header that was read apart from the frame it belongs to.
#[repr(align(8))]
pub(crate) struct Link([u8; LINK]);

impl Link {
    /// The frame's link header, wherever the hook starts.
    #[inline(always)]
    pub(crate) fn load(frame: SkbFrame) -> Option<Link> {
        // The verifier wants what is on the stack to be read aligned.
        let mut link = Link([0; LINK]);
        // SAFETY: the helper writes `LINK` bytes to this function's room.
        let failed = unsafe {
            let to = link.0.as_mut_ptr().cast();
            bpf_skb_load_bytes_relative(frame.skb.cast(), 0, to, LINK as u32, BPF_HDR_START_MAC)
        };
        (failed == 0).then_some(link)
    }

    #[inline(always)]
    fn window(&self) -> PacketBytes {
        PacketBytes(self.0.as_ptr())
    }
}

/// A frame with its link header beside it.
#[derive(Clone, Copy)]
pub(crate) struct SplitFrame<'a> {
    pub(crate) frame: SkbFrame,
    pub(crate) link: &'a Link,
}

impl Frame for SplitFrame<'_> {
    type Window = PacketBytes;
    #[inline(always)]
    fn window(self, offset: u32, len: u32) -> Option<PacketBytes> {
        if offset < LINK as u32 {
            // The parser reads the link header as one window.
            return (offset == 0 && len == LINK as u32).then_some(self.link.window());
        }
        self.frame.window(offset, len)
    }
    #[inline(always)]
    fn wire_len(self) -> u32 {
        self.frame.wire_len()
    }
    #[inline(always)]
    fn segments(self) -> (u32, u32) {
        self.frame.segments()
    }
    #[inline(always)]
    fn offloaded_vlan(self) -> Option<u16> {
        self.frame.offloaded_vlan()
    }
    #[inline(always)]
    fn copy(self, offset: u32, len: u32, to: &mut [u8; SAMPLE_BYTES]) -> bool {
        self.frame.copy(offset, len, to)
    }
    #[inline(always)]
    fn reload(place: &u32) -> u32 {
        reload(place)
    }
    #[inline(always)]
    fn reload16(place: &u16) -> u32 {
        reload16(place)
    }
}
