//! Options of a SYN (RFC 9293 §3.1, RFC 7323, RFC 2018). Other segments' options are not read: what connections agree on
//! is in their SYNs.

use super::{Frame, Packet, Place, Window as _, tcp_option};

/// Bytes of options that a header can hold, and so the options that are read at most: one byte is the shortest.
const MAX_OPTIONS: u32 = 40;

const END: u8 = 0;
const NO_OPERATION: u8 = 1;

/// The options at `place`, `place.options` bytes. What cannot be read ends them: the segment counts all the same.
#[inline(always)]
pub(super) fn tcp_options<F: Frame>(frame: F, packet: &mut Packet, place: &mut Place) {
    place.position = 0;
    for _ in 0..MAX_OPTIONS {
        let position = F::reload(&place.position);
        let total = F::reload(&place.options);
        let Ok(start) = place.offset(frame) else { return };
        if position >= total || position >= MAX_OPTIONS {
            return;
        }
        let Some(option) = frame.window(start + position, 1) else { return };
        let kind = option.byte::<0>();
        if kind == END {
            return;
        }
        if kind == NO_OPERATION {
            place.position = position + 1;
            continue;
        }
        let Some(option) = frame.window(start + position, 2) else { return };
        let len = option.byte::<1>() as u32;
        if len < 2 || position + len > total {
            return;
        }
        place.position = position + len;
        packet.tcp_options |= match (kind, len) {
            (2, 4) => {
                let Some(option) = frame.window(start + position, 4) else { return };
                packet.mss = option.be16::<2>();
                tcp_option::MSS
            }
            (3, 3) => {
                let Some(option) = frame.window(start + position, 3) else { return };
                packet.wscale = option.byte::<2>();
                tcp_option::WSCALE
            }
            (4, 2) => tcp_option::SACK_PERMITTED,
            (5, _) => tcp_option::SACK,
            (8, 10) => tcp_option::TIMESTAMPS,
            _ => tcp_option::OTHER,
        };
    }
}
