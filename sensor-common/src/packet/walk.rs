//! The long way: header by header. Each stage is a function that reads and writes nothing but the packet and the
//! [`Place`], so that the kernel's shell can have each verified on its own; [`walk`] is the order they are called in.

use super::ip::{extensions, ipv4, ipv6, is_extension};
use super::link::link;
use super::tcp_options::tcp_options;
use super::transport::{finish, transport};
use super::tunnel::{may_tunnel, tunnel};
use super::{
    ETHERTYPE_ETHERNET, ETHERTYPE_IPV4, Frame, MAX_HEADER_OFFSET, Options, Packet, Refusal, SAMPLE_BYTES, mark, plain,
    syn_options,
};
use crate::counter::Cause;

/// Tunnels that are gone into, one inside the other.
pub const MAX_TUNNELS: u32 = 2;

/// What a step says of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is whole.
    Done,
    /// It is whole but for the options of a SYN.
    Options,
    /// There is more to read.
    More,
}

/// Where a walk through a frame's headers stands. Without padding, and in words: see [`Frame::reload`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Place {
    /// Offset of the header that comes next, from the start of the frame.
    pub(super) offset: u32,
    /// End of the innermost datagram so far, from the start of the frame.
    pub(super) end: u32,
    /// IP protocol number of the header that comes next.
    pub(super) protocol: u32,
    /// EtherType of it, where that is what names it.
    pub(super) next: u16,
    /// Bytes of headers behind the IP header that no packet on the wire has.
    pub(super) local: u16,
    /// Tunnels that were gone into.
    pub(super) tunnels: u32,
    /// Bytes of TCP options that wait to be read.
    pub(super) options: u32,
    /// Where a loop of a stage stands.
    pub(super) position: u32,
    /// What else it has to remember.
    pub(super) scratch: u32,
}

impl Place {
    /// Before the first header of a frame of `len` bytes on the wire.
    #[inline(always)]
    pub fn start(len: u32) -> Place {
        Place { offset: 0, end: len, protocol: 0, next: 0, local: 0, tunnels: 0, options: 0, position: 0, scratch: 0 }
    }

    /// The offset, in the bounds that every read needs.
    #[inline(always)]
    pub(super) fn offset<F: Frame>(&self, _frame: F) -> Result<u32, Refusal> {
        let offset = F::reload(&self.offset);
        if offset > MAX_HEADER_OFFSET { Err(Cause::HeaderChain) } else { Ok(offset) }
    }
}

/// The stages of a walk. [`OnHost`] calls them; the kernel's shell calls functions that are verified once each.
pub trait Stages: Copy {
    /// See [`stage::link`].
    fn link(self, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal>;
    /// See [`stage::network`].
    fn network(self, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal>;
    /// See [`stage::extensions`].
    fn extensions(self, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal>;
    /// See [`stage::tunnel`].
    fn tunnel(self, packet: &mut Packet, place: &mut Place) -> bool;
    /// See [`stage::transport`].
    fn transport(self, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal>;
    /// See [`stage::tcp_options`].
    fn tcp_options(self, packet: &mut Packet, place: &mut Place);
}

/// The stages themselves, for those who implement [`Stages`].
pub mod stage {
    use super::*;

    /// Ethernet and what lies between it and IP.
    ///
    /// # Errors
    /// Why the frame belongs to no flow; so do those of the others.
    #[inline(always)]
    pub fn link<F: Frame>(frame: F, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
        super::link(frame, packet, place)
    }

    /// An IP header.
    #[expect(clippy::missing_errors_doc, reason = "see `link`")]
    #[inline(always)]
    pub fn network<F: Frame>(frame: F, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
        if place.next == ETHERTYPE_IPV4 { ipv4(frame, packet, place) } else { ipv6(frame, packet, place) }
    }

    /// What lies between IP and the transport.
    #[expect(clippy::missing_errors_doc, reason = "see `link`")]
    #[inline(always)]
    pub fn extensions<F: Frame>(frame: F, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
        super::extensions(frame, packet, place)
    }

    /// Into a tunnel; whether there was one.
    #[inline(always)]
    pub fn tunnel<F: Frame>(frame: F, options: Options, packet: &mut Packet, place: &mut Place) -> bool {
        super::tunnel(frame, options, packet, place)
    }

    /// The transport header, and the packet made whole but for its key's order.
    #[expect(clippy::missing_errors_doc, reason = "see `link`")]
    #[inline(always)]
    pub fn transport<F: Frame>(frame: F, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
        super::transport(frame, packet, place)?;
        finish(frame, packet);
        Ok(())
    }

    /// The options of a SYN.
    #[inline(always)]
    pub fn tcp_options<F: Frame>(frame: F, packet: &mut Packet, place: &mut Place) {
        super::tcp_options(frame, packet, place)
    }
}

/// Reads any frame. `packet` must be [`Packet::start`] of the frame's length.
///
/// What a tunnel carries may not be readable (no IP, cut short): then the packet belongs to the outer flow.
///
/// # Errors
/// Why the frame belongs to no flow.
#[inline(always)]
pub fn walk<S: Stages>(stages: S, options: Options, packet: &mut Packet) -> Result<(), Refusal> {
    let mut place = Place::start(packet.frame_len);
    let mut outcome = down(stages, options, packet, &mut place);
    if options.tunnels != 0 && outcome.is_err() && packet.marks & mark::TUNNELLED != 0 {
        *packet = Packet::start(packet.frame_len);
        place = Place::start(packet.frame_len);
        outcome = down(stages, Options { tunnels: 0, ..options }, packet, &mut place);
    }
    outcome
}

#[inline(always)]
fn down<S: Stages>(stages: S, options: Options, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
    place.next = ETHERTYPE_ETHERNET;
    for depth in 0..MAX_TUNNELS + 1 {
        if place.next == ETHERTYPE_ETHERNET {
            stages.link(packet, place)?;
        }
        stages.network(packet, place)?;
        if is_extension(packet.key.family, place.protocol) {
            stages.extensions(packet, place)?;
        }
        if options.tunnels == 0
            || depth == MAX_TUNNELS
            || !may_tunnel(packet, place, options)
            || !stages.tunnel(packet, place)
        {
            break;
        }
    }
    stages.transport(packet, place)?;
    if place.options != 0 {
        stages.tcp_options(packet, place);
    }
    Ok(())
}

/// The stages, called as they are.
#[derive(Clone, Copy)]
pub(super) struct OnHost<F>(pub(super) F, pub(super) Options);

impl<F: Frame> Stages for OnHost<F> {
    fn link(self, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
        stage::link(self.0, packet, place)
    }
    fn network(self, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
        stage::network(self.0, packet, place)
    }
    fn extensions(self, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
        stage::extensions(self.0, packet, place)
    }
    fn tunnel(self, packet: &mut Packet, place: &mut Place) -> bool {
        stage::tunnel(self.0, self.1, packet, place)
    }
    fn transport(self, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
        stage::transport(self.0, packet, place)
    }
    fn tcp_options(self, packet: &mut Packet, place: &mut Place) {
        stage::tcp_options(self.0, packet, place)
    }
}

/// Parses one Ethernet frame to its outermost flow.
///
/// # Errors
/// A [`Refusal`] says why the frame belongs to no flow (not IP, cut short, malformed …).
pub fn parse<F: Frame>(frame: F) -> Result<Packet, Refusal> {
    parse_with(frame, Options::NONE)
}

/// Parses one Ethernet frame. A packet with [`mark::LATER_FRAGMENT`] has no ports yet: see [`crate::fragment`].
///
/// # Errors
/// As for [`parse`].
pub fn parse_with<F: Frame>(frame: F, options: Options) -> Result<Packet, Refusal> {
    let mut packet = Packet::start(frame.wire_len());
    match plain(frame, options, &mut packet) {
        Progress::Done => {}
        Progress::Options => {
            let mut place = syn_options(&packet);
            tcp_options(frame, &mut packet, &mut place);
        }
        Progress::More => {
            packet = Packet::start(packet.frame_len);
            walk(OnHost(frame, options), options, &mut packet)?;
        }
    }
    if options.payload_hints && packet.payload_len > 0 {
        read_sample(frame, &mut packet);
    }
    Ok(packet)
}

/// Fills in the first payload bytes, as far as they can be read.
#[inline(always)]
pub fn read_sample<F: Frame>(frame: F, packet: &mut Packet) {
    let start = F::reload16(&packet.payload_offset);
    if start > 2 * MAX_HEADER_OFFSET {
        return;
    }
    let len = F::reload(&packet.payload_len).min(SAMPLE_BYTES as u32);
    let mut bytes = [0u8; SAMPLE_BYTES];
    if len == 0 || !frame.copy(start, len, &mut bytes) {
        return;
    }
    let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    packet.sample = [word(0), word(4), word(8), word(12)];
    packet.sample_len = len as u8;
}
