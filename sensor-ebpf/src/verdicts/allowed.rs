//! The never-drop list, but for single flows on it, which are entries of the map of verdicts on flows. Asked by `obey`
//! and `screen` before a packet is dropped or limited. That nothing protects a flow, its record remembers for one epoch of the
//! list ([`is_cleared`]).

use sensor_common::flow::FlowRecord;
use sensor_common::packet::protocol;
use sensor_common::verdict::{
    ALLOWED_FLAG, LOOPBACK, Link, PrefixKey, is_essential, is_of_link, is_scoped, local_end, port_bit,
};

use super::entry::prefix_entry;
use crate::datapath::control;
use crate::maps::{ALLOWED, ALLOWED_PORTS};
use crate::table::Visit;

/// Whether the record remembers that nothing protects the packet. Its generation is the caller's to check, afterwards.
#[inline(always)]
pub(crate) fn is_cleared(record: *const FlowRecord, visit: &Visit, epoch: u32) -> bool {
    // SAFETY: a map value, which other CPUs write.
    let cleared = unsafe { (&raw const (*record).cleared).read_volatile() } as u32;
    cleared >> 2 == epoch && cleared & local_end(visit.packet.from_low, visit.is_egress()) as u32 != 0
}

/// Whether it takes the packet itself, and not its flow alone, to say that nothing protects it: a record must not
/// remember it.
#[inline(always)]
pub(super) fn depends_on_packet(visit: &Visit) -> bool {
    let key = &visit.packet.key;
    is_scoped(&key.low, key.family) || is_scoped(&key.high, key.family)
}

/// Whether the never-drop list holds for a packet, but for single flows on it: 1 or 0. `slot`: that of its interface.
///
/// # Safety
/// The pointer is valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) unsafe extern "C" fn sensor_protected(visit: *const Visit, slot: u32) -> u64 {
    if visit.is_null() {
        return 1;
    }
    // SAFETY: just tested, and the caller's.
    let visit = unsafe { &*visit };
    let Some(control) = control() else { return 1 };
    let packet = &visit.packet;
    let link = Link {
        loopback: visit.ifindex == LOOPBACK,
        link_local: control.is_link_local(slot),
        egress: visit.is_egress(),
    };
    if control.is_exempt(slot) || is_essential(packet) || is_of_link(&packet.key, packet.from_low, packet.ttl, link) {
        return 1;
    }
    for address in [packet.key.low, packet.key.high] {
        let flags = prefix_entry(&ALLOWED, &PrefixKey::of(address, packet.key.family));
        // SAFETY: 4 aligned bytes of a map value.
        if !flags.is_null() && unsafe { flags.read_volatile() } & ALLOWED_FLAG != 0 {
            return 1;
        }
    }
    let is_udp = packet.key.protocol == protocol::UDP;
    if is_udp || packet.key.protocol == protocol::TCP {
        let local_low = packet.from_low == visit.is_egress();
        let (word, bit) = port_bit(if local_low { packet.key.low_port } else { packet.key.high_port }, is_udp);
        if let Some(bits) = ALLOWED_PORTS.get_ptr(word) {
            // SAFETY: 8 aligned bytes of a map value.
            if unsafe { bits.read_volatile() } >> bit & 1 != 0 {
                return 1;
            }
        }
    }
    0
}
