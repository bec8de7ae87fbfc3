//! Link layer: Ethernet, VLAN tags, PPPoE, MPLS → what network layer comes next, and where.

use super::{
    ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Frame, MAX_MPLS_LABELS, MAX_VLAN_TAGS, Packet, Place, Refusal,
    Window as _, mark,
};
use crate::counter::Cause;

pub(super) const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
const ETHERTYPE_QINQ_OLD: u16 = 0x9100;
const ETHERTYPE_PPPOE_SESSION: u16 = 0x8864;
const ETHERTYPE_MPLS: u16 = 0x8847;
const ETHERTYPE_MPLS_UPSTREAM: u16 = 0x8848;
const VLAN_HEADER: u32 = 4;
const MPLS_LABEL: u32 = 4;
/// PPPoE header and PPP protocol number.
const PPPOE_HEADER: u32 = 8;
const PPP_IPV4: u16 = 0x0021;
const PPP_IPV6: u16 = 0x0057;

#[inline(always)]
pub(super) fn is_vlan(ethertype: u16) -> bool {
    matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ | ETHERTYPE_QINQ_OLD)
}

/// An Ethernet header at `place`, the frame's own or that of a frame in a tunnel, and what lies between it and IP.
#[inline(always)]
pub(super) fn link<F: Frame>(frame: F, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
    let mut offset = place.offset(frame)?;
    let ethernet = frame.window(offset, ETHERNET_HEADER).ok_or(Cause::TruncatedLink)?;
    let mut ethertype = ethernet.be16::<12>();
    offset += ETHERNET_HEADER;
    let mut vlans = [0u16; MAX_VLAN_TAGS];
    let mut depth = 0;
    if place.tunnels == 0
        && let Some(tci) = frame.offloaded_vlan()
    {
        vlans[0] = tci & 0x0fff;
        depth = 1;
    }
    if is_vlan(ethertype) {
        let tag = frame.window(offset, VLAN_HEADER).ok_or(Cause::TruncatedLink)?;
        vlans[depth] = tag.be16::<0>() & 0x0fff;
        depth += 1;
        ethertype = tag.be16::<2>();
        offset += VLAN_HEADER;
        if is_vlan(ethertype) && depth < MAX_VLAN_TAGS {
            let tag = frame.window(offset, VLAN_HEADER).ok_or(Cause::TruncatedLink)?;
            vlans[1] = tag.be16::<0>() & 0x0fff;
            ethertype = tag.be16::<2>();
            offset += VLAN_HEADER;
        }
        if is_vlan(ethertype) {
            return Err(Cause::VlanDepth);
        }
    }
    packet.key.vlans = vlans;
    place.offset = offset;
    place.next = ethertype;
    match ethertype {
        ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => Ok(()),
        ETHERTYPE_PPPOE_SESSION => pppoe(frame, packet, place),
        ETHERTYPE_MPLS | ETHERTYPE_MPLS_UPSTREAM => mpls(frame, packet, place),
        _ => Err(Cause::NotIp),
    }
}

/// RFC 2516, and PPP's protocol number (RFC 1661) without compression, which RFC 2516 advises against.
#[inline(always)]
fn pppoe<F: Frame>(frame: F, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
    let offset = place.offset(frame)?;
    let header = frame.window(offset, PPPOE_HEADER).ok_or(Cause::TruncatedLink)?;
    // Version 1, type 1, code 0 (session data).
    if header.be16::<0>() != 0x1100 {
        return Err(Cause::NotIp);
    }
    place.next = match header.be16::<6>() {
        PPP_IPV4 => ETHERTYPE_IPV4,
        PPP_IPV6 => ETHERTYPE_IPV6,
        _ => return Err(Cause::NotIp),
    };
    place.offset = offset + PPPOE_HEADER;
    packet.marks |= mark::PPPOE;
    Ok(())
}

/// RFC 3032: labels up to the one that says it is the last. What lies below is not named; as routers do, the first four
/// bits decide (RFC 4928).
#[inline(always)]
fn mpls<F: Frame>(frame: F, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
    for _ in 0..MAX_MPLS_LABELS {
        let offset = place.offset(frame)?;
        // The label, and the byte behind it: something follows even the last one.
        let label = frame.window(offset, MPLS_LABEL + 1).ok_or(Cause::TruncatedLink)?;
        place.offset = offset + MPLS_LABEL;
        if label.byte::<2>() & 1 != 0 {
            place.next = match label.byte::<4>() >> 4 {
                4 => ETHERTYPE_IPV4,
                6 => ETHERTYPE_IPV6,
                _ => return Err(Cause::NotIp),
            };
            packet.marks |= mark::MPLS;
            return Ok(());
        }
    }
    Err(Cause::HeaderChain)
}
