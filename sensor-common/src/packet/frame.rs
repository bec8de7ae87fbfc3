//! Where the parser reads from: [`Frame`] and [`Window`], and their host side over slices. The kernel's are in
//! `sensor-ebpf`. Invariant: nothing is read outside of a window, and a window lies inside its frame.

/// Payload bytes in [`super::Packet::sample`].
pub const SAMPLE_BYTES: usize = 16;

/// A bounds-checked view of some bytes of a frame. `AT` must lie inside the length that was asked for. (A constant, so
/// that the kernel side can make each read one instruction.)
pub trait Window: Copy {
    /// The byte at `AT`.
    fn byte<const AT: usize>(self) -> u8;
    /// The big-endian 16-bit number at `AT`.
    fn be16<const AT: usize>(self) -> u16;
    /// The big-endian 32-bit number at `AT`.
    fn be32<const AT: usize>(self) -> u32;
}

/// A frame, wherever it lies: a slice on the host, packet pointers in the kernel.
pub trait Frame: Copy {
    /// What [`Frame::window`] gives.
    type Window: Window;
    /// `len` readable bytes from `offset` on, or `None` if the frame ends before that.
    fn window(self, offset: u32, len: u32) -> Option<Self::Window>;
    /// Length of the frame on the wire in bytes, which may be more than what is readable.
    fn wire_len(self) -> u32;
    /// Wire segments this frame stands for, and the payload bytes in each but the last: (1, 0) for an ordinary frame,
    /// `gso_segs` and `gso_size` for a super-packet of segmentation offload. 0 segments: not counted yet, `Packet::segments`
    /// follows from the payload.
    #[inline(always)]
    fn segments(self) -> (u32, u32) {
        (1, 0)
    }
    /// Whether this may be a frame before its network card cut it into segments and filled in their lengths: an IP
    /// length of 0 is no fault of it then, and its own end is that of the datagram.
    #[inline(always)]
    fn is_unsegmented(self) -> bool {
        self.segments().1 != 0
    }
    /// Copies the `len` bytes at `offset` to the front of `to` (1 ≤ `len` ≤ [`SAMPLE_BYTES`]); whether they could be read.
    #[inline(always)]
    fn copy(self, offset: u32, len: u32, to: &mut [u8; SAMPLE_BYTES]) -> bool {
        for (position, byte) in to.iter_mut().enumerate() {
            if position as u32 >= len {
                break;
            }
            let Some(from) = self.window(offset + position as u32, 1) else { return false };
            *byte = from.byte::<0>();
        }
        true
    }
    /// The number in `place`, with nothing assumed of it that was known when it was stored. (To the verifier, two values
    /// are two states to walk, unless it knows the same of both: nothing.)
    #[inline(always)]
    fn reload(place: &u32) -> u32 {
        *place
    }
    /// As [`Frame::reload`], 16 bits.
    #[inline(always)]
    fn reload16(place: &u16) -> u32 {
        *place as u32
    }
    /// VLAN tag that hardware took out of the frame (TCI, 16 bits), if any.
    #[inline(always)]
    fn offloaded_vlan(self) -> Option<u16> {
        None
    }
}

impl Window for &[u8] {
    #[inline(always)]
    fn byte<const AT: usize>(self) -> u8 {
        self[AT]
    }
    #[inline(always)]
    fn be16<const AT: usize>(self) -> u16 {
        u16::from_be_bytes([self[AT], self[AT + 1]])
    }
    #[inline(always)]
    fn be32<const AT: usize>(self) -> u32 {
        u32::from_be_bytes([self[AT], self[AT + 1], self[AT + 2], self[AT + 3]])
    }
}

impl<'a> Frame for &'a [u8] {
    type Window = &'a [u8];
    #[inline(always)]
    fn window(self, offset: u32, len: u32) -> Option<&'a [u8]> {
        self.get(offset as usize..offset as usize + len as usize)
    }
    #[inline(always)]
    fn wire_len(self) -> u32 {
        self.len() as u32
    }
}

/// Longest frame that may be padded (IEEE 802.3: 64 bytes with the check sequence): its end says nothing of a datagram.
const PADDED: u32 = 60;

/// A frame of a capture that may have been cut at the snap length.
#[derive(Clone, Copy, Debug)]
pub struct Captured<'a> {
    /// The bytes that were kept.
    pub bytes: &'a [u8],
    /// The frame's length on the wire, in bytes.
    pub wire_len: u32,
}

impl<'a> Frame for Captured<'a> {
    type Window = &'a [u8];
    #[inline(always)]
    fn window(self, offset: u32, len: u32) -> Option<&'a [u8]> {
        self.bytes.window(offset, len)
    }
    #[inline(always)]
    fn wire_len(self) -> u32 {
        self.wire_len
    }
    /// A capture on a sender has what the stack gave to the card, and does not say so.
    #[inline(always)]
    fn is_unsegmented(self) -> bool {
        self.wire_len > PADDED
    }
}
