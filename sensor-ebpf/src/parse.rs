//! The parser's stages as global functions. The verifier walks each once, whatever came before it: what a stage leaves to
//! the next is in memory, of which it knows nothing but the size. Logic is in `sensor_common::packet`.
//!
//! One set of functions for each type of context, because the verifier knows contexts by the names of their types.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use sensor_common::counter::Cause;
use sensor_common::packet::{self, Packet, Place, Progress, Refusal, Stages, stage};

use crate::frame::{Link, SkbFrame, SplitFrame, XdpFrame};
use crate::maps::parser_options;

/// Answers of the functions here: all is well, or the number of a [`Cause`] and [`REFUSED`].
const OK: u64 = 0;
const REFUSED: u64 = 1 << 8;
/// The short way did not do …
const MORE: u64 = 1;
/// … or left the options of a SYN.
const OPTIONS: u64 = 2;
/// A tunnel was gone into.
const ENTERED: u64 = 1;

#[inline(always)]
fn encode(outcome: Result<(), Refusal>) -> u64 {
    match outcome {
        Ok(()) => OK,
        Err(cause) => REFUSED | cause as u64,
    }
}

#[inline(always)]
fn decode(answer: u64) -> Result<(), Refusal> {
    if answer & REFUSED == 0 { Ok(()) } else { Err(Cause::from_number(answer as u8)) }
}

/// Where frames come from: a context.
pub(crate) trait Source: Copy {
    /// Parses the frame; `packet` is [`Packet::start`] of its length. The number of a [`Cause`] if the frame
    /// belongs to no flow.
    fn parse(self, packet: &mut Packet) -> Result<(), u64>;
    /// [`packet::quoted`].
    fn quoted(self, packet: &mut Packet) -> bool;
    /// Bytes of the frame that the kernel took off before the hook: a VLAN tag, which it keeps beside the frame.
    fn taken_off(self) -> u32;
}

macro_rules! source {
    (
        $(#[$doc:meta])*
        $source:ident, $context:ty, [$($missing:ident)?], $frame:expr, $taken_off:expr, $link_stage:expr,
        $plain:ident, $syn_options:ident, $walk:ident, $link:ident, $network:ident, $extensions:ident, $tunnel:ident, $transport:ident,
        $tcp_options:ident, $sample:ident, $quoted:ident
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $source {
            /// The program's own.
            pub(crate) ctx: *mut $context,
            $(
                /// See [`SkbFrame::missing`].
                pub(crate) $missing: u32,
            )?
        }

        impl Source for $source {
            #[inline(always)]
            fn parse(self, packet: &mut Packet) -> Result<(), u64> {
                // SAFETY: the context is the program's own, and the packet a reference.
                let progress = unsafe { $plain(self.ctx, packet$(, self.$missing)?) };
                if progress == OPTIONS {
                    // SAFETY: as above.
                    unsafe { $syn_options(self.ctx, packet$(, self.$missing)?) };
                } else if progress != OK {
                    // SAFETY: as above.
                    let answer = unsafe { $walk(self.ctx, packet$(, self.$missing)?) };
                    if answer & REFUSED != 0 {
                        return Err(answer & !REFUSED);
                    }
                }
                if parser_options().payload_hints && packet.payload_len > 0 {
                    // SAFETY: as above.
                    unsafe { $sample(self.ctx, packet$(, self.$missing)?) };
                }
                Ok(())
            }
            #[inline(always)]
            fn quoted(self, packet: &mut Packet) -> bool {
                // SAFETY: as above.
                unsafe { $quoted(self.ctx, packet$(, self.$missing)?) != OK }
            }
            #[inline(always)]
            fn taken_off(self) -> u32 {
                // SAFETY: the context is the program's own.
                unsafe { $taken_off(self.ctx) }
            }
        }

        impl Stages for $source {
            #[inline(always)]
            fn link(self, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
                // SAFETY: the context is the program's own, and the others are references; so it is below.
                decode(unsafe { $link(self.ctx, packet, place$(, self.$missing)?) })
            }
            #[inline(always)]
            fn network(self, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
                // SAFETY: see `link`.
                decode(unsafe { $network(self.ctx, packet, place$(, self.$missing)?) })
            }
            #[inline(always)]
            fn extensions(self, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
                // SAFETY: see `link`.
                decode(unsafe { $extensions(self.ctx, packet, place$(, self.$missing)?) })
            }
            #[inline(always)]
            fn tunnel(self, packet: &mut Packet, place: &mut Place) -> bool {
                // SAFETY: see `link`.
                unsafe { $tunnel(self.ctx, packet, place$(, self.$missing)?) == ENTERED }
            }
            #[inline(always)]
            fn transport(self, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
                // SAFETY: see `link`.
                decode(unsafe { $transport(self.ctx, packet, place$(, self.$missing)?) })
            }
            #[inline(always)]
            fn tcp_options(self, packet: &mut Packet, place: &mut Place) {
                // SAFETY: see `link`.
                unsafe { $tcp_options(self.ctx, packet, place$(, self.$missing)?) };
            }
        }

        /// [`packet::plain`].
        ///
        /// # Safety
        /// The context is the program's own; the packet is valid, or null.
        #[unsafe(no_mangle)]
        #[inline(never)]
        unsafe extern "C" fn $plain(ctx: *mut $context, packet: *mut Packet$(, $missing: u32)?) -> u64 {
            if packet.is_null() $(|| $missing != 0)? {
                return MORE;
            }
            // SAFETY: just tested, and the caller's; so it is in the functions below.
            let (frame, packet) = unsafe { ($frame(ctx$(, $missing)?), &mut *packet) };
            match packet::plain(frame, parser_options(), packet) {
                Progress::Done => OK,
                Progress::Options => OPTIONS,
                Progress::More => MORE,
            }
        }

        /// The options of a SYN, behind [`packet::plain`].
        ///
        /// # Safety
        /// The context is the program's own; the packet is valid, or null.
        #[unsafe(no_mangle)]
        #[inline(never)]
        unsafe extern "C" fn $syn_options(ctx: *mut $context, packet: *mut Packet$(, $missing: u32)?) -> u64 {
            if packet.is_null() {
                return OK;
            }
            // SAFETY: see above.
            let mut place = packet::syn_options(unsafe { &*packet });
            // SAFETY: as above, and a reference.
            unsafe { $tcp_options(ctx, packet, &mut place$(, $missing)?) }
        }

        /// [`packet::walk`].
        ///
        /// # Safety
        /// The context is the program's own; the packet is valid, or null.
        #[unsafe(no_mangle)]
        #[inline(never)]
        unsafe extern "C" fn $walk(ctx: *mut $context, packet: *mut Packet$(, $missing: u32)?) -> u64 {
            if packet.is_null() {
                return REFUSED | Cause::Internal as u64;
            }
            // SAFETY: see above.
            let packet = unsafe { &mut *packet };
            *packet = Packet::start(packet.frame_len);
            encode(packet::walk($source { ctx$(, $missing)? }, parser_options(), packet))
        }

        source!(@stage [$($missing)?] $link, $context, |ctx, packet, place| $link_stage(ctx, packet, place$(, $missing)?));
        source!(@stage [$($missing)?] $network, $context, |ctx, packet, place| encode(stage::network($frame(ctx$(, $missing)?), packet, place)));
        source!(@stage [$($missing)?] $extensions, $context, |ctx, packet, place| encode(stage::extensions($frame(ctx$(, $missing)?), packet, place)));
        source!(@stage [$($missing)?] $tunnel, $context, |ctx, packet, place| stage::tunnel($frame(ctx$(, $missing)?), parser_options(), packet, place) as u64);
        source!(@stage [$($missing)?] $transport, $context, |ctx, packet, place| encode(stage::transport($frame(ctx$(, $missing)?), packet, place)));
        source!(@stage [$($missing)?] $tcp_options, $context, |ctx, packet, place| {
            stage::tcp_options($frame(ctx$(, $missing)?), packet, place);
            OK
        });

        /// [`packet::read_sample`].
        ///
        /// # Safety
        /// The context is the program's own; the packet is valid, or null.
        #[unsafe(no_mangle)]
        #[inline(never)]
        unsafe extern "C" fn $sample(ctx: *mut $context, packet: *mut Packet$(, $missing: u32)?) -> u64 {
            if packet.is_null() {
                return OK;
            }
            // SAFETY: see above.
            let (frame, packet) = unsafe { ($frame(ctx$(, $missing)?), &mut *packet) };
            packet::read_sample(frame, packet);
            OK
        }

        /// [`packet::quoted`].
        ///
        /// # Safety
        /// The context is the program's own; the packet is valid, or null.
        #[unsafe(no_mangle)]
        #[inline(never)]
        unsafe extern "C" fn $quoted(ctx: *mut $context, packet: *mut Packet$(, $missing: u32)?) -> u64 {
            if packet.is_null() {
                return OK;
            }
            // SAFETY: see above.
            let (frame, packet) = unsafe { ($frame(ctx$(, $missing)?), &mut *packet) };
            packet::quoted(frame, $source { ctx$(, $missing)? }, packet) as u64
        }
    };
    (@stage [$($missing:ident)?] $name:ident, $context:ty, |$ctx:ident, $packet:ident, $place:ident| $body:expr) => {
        /// The stage of that name in [`stage`].
        ///
        /// # Safety
        /// The context is the program's own; the others are valid, or null.
        #[unsafe(no_mangle)]
        #[inline(never)]
        unsafe extern "C" fn $name($ctx: *mut $context, packet: *mut Packet, place: *mut Place$(, $missing: u32)?) -> u64 {
            if packet.is_null() || place.is_null() {
                return REFUSED | Cause::Internal as u64;
            }
            // SAFETY: just tested, and the caller's.
            unsafe {
                let ($packet, $place) = (&mut *packet, &mut *place);
                $body
            }
        }
    };
}

/// XDP sees frames as the driver hands them over.
#[inline(always)]
unsafe fn whole(_ctx: *mut xdp_md) -> u32 {
    0
}

#[inline(always)]
unsafe fn vlan_tag(ctx: *mut __sk_buff) -> u32 {
    // SAFETY: the caller's.
    unsafe { ((*ctx).vlan_present != 0) as u32 * 4 }
}

#[inline(always)]
unsafe fn xdp_link(ctx: *mut xdp_md, packet: &mut Packet, place: &mut Place) -> u64 {
    // SAFETY: the caller's.
    encode(stage::link(unsafe { XdpFrame::new(ctx) }, packet, place))
}

/// The link header may not be where the hook starts, see [`SkbFrame::missing`].
#[inline(always)]
unsafe fn skb_link(ctx: *mut __sk_buff, packet: &mut Packet, place: &mut Place, missing: u32) -> u64 {
    // SAFETY: the caller's.
    let frame = unsafe { SkbFrame::new(ctx, missing) };
    if missing == 0 {
        return encode(stage::link(frame, packet, place));
    }
    let Some(link) = Link::load(frame) else { return REFUSED | Cause::TruncatedLink as u64 };
    encode(stage::link(SplitFrame { frame, link: &link }, packet, place))
}

source!(
    /// A frame at XDP.
    Xdp, xdp_md, [], XdpFrame::new, whole, xdp_link,
    sensor_plain_xdp, sensor_syn_options_xdp, sensor_walk_xdp, sensor_link_xdp, sensor_network_xdp, sensor_extensions_xdp, sensor_tunnel_xdp,
    sensor_transport_xdp, sensor_tcp_options_xdp, sensor_sample_xdp, sensor_quoted_xdp
);

source!(
    /// A frame at TC.
    Skb, __sk_buff, [missing], SkbFrame::new, vlan_tag, skb_link,
    sensor_plain_skb, sensor_syn_options_skb, sensor_walk_skb, sensor_link_skb, sensor_network_skb, sensor_extensions_skb, sensor_tunnel_skb,
    sensor_transport_skb, sensor_tcp_options_skb, sensor_sample_skb, sensor_quoted_skb
);
