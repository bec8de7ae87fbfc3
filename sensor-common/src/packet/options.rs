//! What the parser reads beyond the ordinary. A load-time constant in the kernel, an argument on the host.

use super::Encapsulation;

/// Most UDP ports of one kind of tunnel.
pub const MAX_PORTS: usize = 4;

/// UDP ports of VXLAN, unless told otherwise: IANA's, and that which Linux takes unless told otherwise.
pub const VXLAN_PORTS: [u16; 2] = [4789, 8472];
/// UDP port of Geneve, unless told otherwise: IANA's.
pub const GENEVE_PORTS: [u16; 1] = [6081];

/// UDP ports by which datagrams go to the end of a tunnel, 1 to [`MAX_PORTS`] of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports(u64);

impl Ports {
    /// [`VXLAN_PORTS`].
    pub const VXLAN: Ports = Ports::of(&VXLAN_PORTS);
    /// [`GENEVE_PORTS`].
    pub const GENEVE: Ports = Ports::of(&GENEVE_PORTS);

    /// These ports, at most [`MAX_PORTS`]. In place of those that are missing stands the first one again.
    pub const fn of(ports: &[u16]) -> Ports {
        let mut packed = 0;
        let mut position = 0;
        while position < MAX_PORTS && !ports.is_empty() {
            let port = if position < ports.len() { ports[position] } else { ports[0] };
            packed |= (port as u64) << (16 * position);
            position += 1;
        }
        Ports(packed)
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
