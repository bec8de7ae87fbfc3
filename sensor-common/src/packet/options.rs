//! What the parser reads beyond the ordinary. A load-time constant in the kernel, an argument on the host.

use super::Encapsulation;

/// Most UDP ports of one kind of tunnel.
pub const MAX_PORTS: usize = 4;

/// UDP ports by which datagrams go to the end of a tunnel, 1 to [`MAX_PORTS`] of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports(u64);

impl Ports {
    /// VXLAN: IANA's, and that which Linux takes unless told otherwise.
    pub const VXLAN: Ports = Ports::of([4789, 8472, 4789, 4789]);
    /// Geneve: IANA's.
    pub const GENEVE: Ports = Ports::of([6081; MAX_PORTS]);

    /// These ports. In place of one that is missing stands another one again.
    pub const fn of(ports: [u16; MAX_PORTS]) -> Ports {
        let [a, b, c, d] = ports;
        Ports(a as u64 | (b as u64) << 16 | (c as u64) << 32 | (d as u64) << 48)
    }

    /// Ports as they were packed by [`Ports::packed`].
    #[inline(always)]
    pub const fn from_packed(packed: u64) -> Ports {
        Ports(packed)
    }

    /// In one word, for the programs.
    pub const fn packed(self) -> u64 {
        self.0
    }

    /// Whether `port` is one of them.
    #[inline(always)]
    pub const fn has(self, port: u16) -> bool {
        self.0 as u16 == port
            || (self.0 >> 16) as u16 == port
            || (self.0 >> 32) as u16 == port
            || (self.0 >> 48) as u16 == port
    }
}

/// Choices that change what a frame is parsed to: both sides must have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Tunnels whose inner flows are read: bits of [`Encapsulation::bit`]. Of others, the outer flow counts.
    pub tunnels: u8,
    /// Whether [`super::Packet::sample`] is filled.
    pub payload_hints: bool,
    /// Ports of VXLAN.
    pub vxlan_ports: Ports,
    /// Ports of Geneve.
    pub geneve_ports: Ports,
}

impl Options {
    /// Nothing but the outermost flow.
    pub const NONE: Options =
        Options { tunnels: 0, payload_hints: false, vxlan_ports: Ports::VXLAN, geneve_ports: Ports::GENEVE };
    /// Everything.
    pub const ALL: Options = Options { tunnels: 0x3e, payload_hints: true, ..Options::NONE };

    /// Whether inner flows of this kind of tunnel are read.
    #[inline(always)]
    pub const fn has(self, tunnel: Encapsulation) -> bool {
        self.tunnels & tunnel.bit() != 0
    }
}

impl Default for Options {
    fn default() -> Options {
        Options::NONE
    }
}
