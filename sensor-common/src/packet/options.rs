//! What the parser reads beyond the ordinary. A load-time constant in the kernel, an argument on the host.

use super::Encapsulation;

/// Choices that change what a frame is parsed to: both sides must have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Tunnels whose inner flows are read: bits of [`Encapsulation::bit`]. Of others, the outer flow counts.
    pub tunnels: u8,
    /// Whether [`super::Packet::sample`] is filled.
    pub payload_hints: bool,
}

impl Options {
    /// Nothing but the outermost flow.
    pub const NONE: Options = Options { tunnels: 0, payload_hints: false };
    /// Everything.
    pub const ALL: Options = Options { tunnels: 0x3e, payload_hints: true };

    /// Whether inner flows of this kind of tunnel are read.
    #[inline(always)]
    pub const fn has(self, tunnel: Encapsulation) -> bool {
        self.tunnels & tunnel.bit() != 0
    }
}
