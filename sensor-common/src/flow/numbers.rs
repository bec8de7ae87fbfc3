//! What is kept of a direction's sequence numbers beside the highest one. Changed by [`crate::tcp`] alone.

use bytemuck::{Pod, Zeroable};

/// Sequence numbers of one TCP direction that are seldom asked for. A field is valid where its bit in `notes` says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Numbers {
    /// Sequence number of the SYN ([`Numbers::BEGUN`]).
    pub first: u32,
    /// Start of the newest run of segments, one behind the other, that the receiver would not accept, as far as is
    /// known ([`Numbers::ASIDE`]): nothing was made of them. If the receiver acknowledges them, it did accept them, and
    /// what was known of the numbers was wrong.
    pub aside_from: u32,
    /// The end of that run.
    pub aside: u32,
    /// Where the direction's reset took effect: the number that its receiver waited for. Valid with
    /// [`super::state::RST`], of the direction that it came from.
    pub reset: u32,
    /// Bits below 8: see the constants. From bit 8 on the window scale of the SYN that was put aside, from bit 16 on
    /// the tick of the first segment of the run.
    pub notes: u32,
}

impl Numbers {
    /// `first` is valid.
    pub const BEGUN: u32 = 1;
    /// `aside_from` and `aside` are valid.
    pub const ASIDE: u32 = 2;
    /// What was put aside is a SYN.
    pub const SYN: u32 = 4;
    /// From this bit on, 4 bits: segments of the run, at most 15.
    pub const RUN_SHIFT: u32 = 4;
    /// See `notes`.
    pub const SCALE_SHIFT: u32 = 8;
    /// See `notes`.
    pub const TICK_SHIFT: u32 = 16;

    #[inline(always)]
    pub(super) fn start(&mut self) {
        let Numbers { first, aside_from, aside, reset, notes } = self;
        *first = 0;
        *aside_from = 0;
        *aside = 0;
        *reset = 0;
        *notes = 0;
    }

    /// Whether the SYN was seen.
    #[inline(always)]
    pub(crate) fn begun(&self) -> bool {
        self.notes & Numbers::BEGUN != 0
    }

    /// Whether this acknowledges what was put aside: all of it, or of several segments a part.
    #[inline(always)]
    pub(crate) fn is_aside(&self, ack: u32) -> bool {
        let (sent, length) = (ack.wrapping_sub(self.aside_from), self.aside.wrapping_sub(self.aside_from));
        let several = self.notes >> Numbers::RUN_SHIFT & 15 > 1;
        let within = sent == length || several && sent.wrapping_sub(1) < length;
        self.notes & Numbers::ASIDE != 0 && within
    }

    /// Whether this acknowledges a SYN that was put aside, with its data (RFC 7413) or without.
    #[inline(always)]
    pub(crate) fn is_syn_aside(&self, ack: u32) -> bool {
        let wanted = Numbers::ASIDE | Numbers::SYN;
        let whole = ack == self.aside || ack == self.aside_from.wrapping_add(1);
        self.notes & wanted == wanted && whole
    }
}
