//! Three questions to the kernel about an interface, over netlink: the link itself (rtnetlink), the XDP features of its
//! driver (`netdev`, since 6.3), its offloads (`ethtool`, since 5.6). No answer to one of the last two is no error.
//!
//! Asked once, by the probe. Netlink sees the caller's network namespace; /sys shows that of whoever mounted it.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};

const NLM_F_REQUEST: u16 = 1;
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_HEADER: usize = 16;
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLA_F_NESTED: u16 = 1 << 15;

const RTM_GETLINK: u16 = 18;
pub(super) const IFINFO_SIZE: usize = 16;
const IFF_UP: u32 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
pub(super) const IFLA_EXT_MASK: u16 = 29;
pub(super) const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;

const GENL_HEADER: usize = 4;
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;

/// What rtnetlink says of a link.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub(super) ifindex: u32,
    /// Kind of its frames (ARPHRD_*, linux/if_arp.h).
    pub(super) frames: u16,
    pub(super) up: bool,
    pub(super) mtu: u32,
    pub(super) rx_queues: u32,
    pub(super) tx_queues: u32,
    /// "veth", "bridge" …; `None` for hardware and loopback.
    pub(super) kind: Option<String>,
    /// Attach mode (1 native, 2 generic, 3 offloaded, 4 several) and id of the XDP program.
    pub(super) xdp: Option<(u8, Option<u32>)>,
}

/// Number of the XDP program that an interface has; `None` if it has none.
pub(super) fn xdp_program(ifindex: u32) -> io::Result<Option<u32>> {
    let mut header = [0; IFINFO_SIZE];
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let mut request = Request::new(RTM_GETLINK, &header);
    request.attribute(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    let reply = exchange(&open(None)?, request)?;
    Ok(find(reply.get(IFINFO_SIZE..).unwrap_or_default(), IFLA_XDP)
        .and_then(|xdp| find(xdp, IFLA_XDP_PROG_ID))
        .map(word))
}

/// Looks a link up by its name; `None` if there is none.
pub(super) fn link(name: &str) -> io::Result<Option<Link>> {
    let mut request = Request::new(RTM_GETLINK, &[0; IFINFO_SIZE]);
    request.attribute(IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
    let reply = match exchange(&open(None)?, request) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => return Ok(None),
        reply => reply?,
    };
    let mut link = Link {
        ifindex: word(reply.get(4..).unwrap_or_default()),
        frames: reply.get(2..4).map_or(0, |bytes| u16::from_ne_bytes([bytes[0], bytes[1]])),
        up: word(reply.get(8..).unwrap_or_default()) & IFF_UP != 0,
        ..Link::default()
    };
    for (kind, value) in attributes(reply.get(IFINFO_SIZE..).unwrap_or_default()) {
        match kind {
            IFLA_MTU => link.mtu = word(value),
            IFLA_NUM_RX_QUEUES => link.rx_queues = word(value),
            IFLA_NUM_TX_QUEUES => link.tx_queues = word(value),
            IFLA_LINKINFO => link.kind = find(value, IFLA_INFO_KIND).map(text),
            IFLA_XDP => {
                let mode = find(value, IFLA_XDP_ATTACHED).and_then(|value| value.first().copied()).unwrap_or_default();
                link.xdp = (mode != 0).then(|| (mode, find(value, IFLA_XDP_PROG_ID).map(word)));
            }
            _ => {}
        }
    }
    Ok(Some(link))
}

/// The driver's XDP features (`enum netdev_xdp_act`); `None` where the kernel cannot say.
pub(super) fn xdp_features(ifindex: u32) -> Option<u64> {
    let socket = open(Some(netlink::GENERIC)).ok()?;
    let family = family(&socket, "netdev")?;
    let mut request = Request::new(family, &[NETDEV_CMD_DEV_GET, 1, 0, 0]);
    request.attribute(NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes());
    let reply = exchange(&socket, request).ok()?;
    let value = find(reply.get(GENL_HEADER..)?, NETDEV_A_DEV_XDP_FEATURES)?;
    Some(u64::from_ne_bytes(value.get(..8)?.try_into().ok()?))
}

/// Names of the offloads that are on, as in `ethtool -k`; `None` where the kernel cannot say.
pub(super) fn active_offloads(ifindex: u32) -> Option<Vec<String>> {
    let socket = open(Some(netlink::GENERIC)).ok()?;
    let family = family(&socket, "ethtool")?;
    let mut header = Request::default();
    header.attribute(ETHTOOL_A_HEADER_DEV_INDEX, &ifindex.to_ne_bytes());
    let mut request = Request::new(family, &[ETHTOOL_MSG_FEATURES_GET, 1, 0, 0]);
    request.attribute(ETHTOOL_A_FEATURES_HEADER | NLA_F_NESTED, &header.0);
    let reply = exchange(&socket, request).ok()?;
    let active = find(reply.get(GENL_HEADER..)?, ETHTOOL_A_FEATURES_ACTIVE)?;
    // This set is sent without a mask: what is listed is on.
    let bits = find(active, ETHTOOL_A_BITSET_BITS)?;
    Some(attributes(bits).filter_map(|(_, bit)| find(bit, ETHTOOL_A_BITSET_BIT_NAME)).map(text).collect())
}

fn family(socket: &OwnedFd, name: &str) -> Option<u16> {
    let mut request = Request::new(GENL_ID_CTRL, &[CTRL_CMD_GETFAMILY, 1, 0, 0]);
    request.attribute(CTRL_ATTR_FAMILY_NAME, &[name.as_bytes(), &[0]].concat());
    let reply = exchange(socket, request).ok()?;
    let id = find(reply.get(GENL_HEADER..)?, CTRL_ATTR_FAMILY_ID)?;
    Some(u16::from_ne_bytes(id.get(..2)?.try_into().ok()?))
}

/// A message, or the inside of a nested attribute.
#[derive(Default)]
pub(super) struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, header: &[u8]) -> Request {
        Request::dump(kind, header, 0)
    }

    /// As [`Request::new`], with more flags.
    pub(super) fn dump(kind: u16, header: &[u8], flags: u16) -> Request {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(header);
        Request(bytes)
    }

    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend((value.len() as u16 + 4).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

impl Request {
    /// The message with its length.
    pub(super) fn finish(self) -> Vec<u8> {
        let Request(mut bytes) = self;
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    pub(super) fn send(self, socket: &OwnedFd) -> io::Result<()> {
        rustix::net::send(socket, &self.finish(), SendFlags::empty())?;
        Ok(())
    }
}

/// A netlink socket of the given protocol (`None`: 0, rtnetlink).
pub(super) fn open(protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(1)))?;
    rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0))?;
    Ok(socket)
}

/// Sends a request and returns the payload of the one message that answers it.
fn exchange(socket: &OwnedFd, request: Request) -> io::Result<Vec<u8>> {
    request.send(socket)?;
    let mut reply = vec![0; 64 * 1024];
    let (length, _) = rustix::net::recv(socket, &mut reply[..], RecvFlags::empty())?;
    let end = (word(&reply) as usize).min(length);
    if end < NLMSG_HEADER {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "netlink message without a header"));
    }
    if u16::from_ne_bytes([reply[4], reply[5]]) == NLMSG_ERROR {
        let error = word(&reply[NLMSG_HEADER..]) as i32;
        return Err(io::Error::from_raw_os_error(error.wrapping_neg()));
    }
    reply.truncate(end);
    reply.drain(..NLMSG_HEADER);
    Ok(reply)
}

/// Type and value of each attribute; ends at the first that is cut off.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<4>()?;
        let length = u16::from_ne_bytes([header[0], header[1]]) as usize;
        let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(super) fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// The 32-bit number at the start; 0 if there is none.
pub(super) fn word(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_round_trip_and_stop_when_cut_off() {
        let mut request = Request::default();
        request.attribute(3, b"abc\0");
        request.attribute(4 | NLA_F_NESTED, &7u32.to_ne_bytes());
        request.attribute(5, b"x");
        let found: Vec<_> = attributes(&request.0).collect();
        assert_eq!(found, [(3, &b"abc\0"[..]), (4, &7u32.to_ne_bytes()[..]), (5, &b"x"[..])]);
        assert_eq!(text(found[0].1), "abc");
        for length in 0..request.0.len() {
            assert!(attributes(&request.0[..length]).count() <= 3, "no panic, no endless loop");
        }
        assert_eq!(attributes(&[0; 64]).count(), 0, "an impossible length ends the list");
    }

    #[test]
    fn loopback_is_there_and_nonsense_is_not() {
        let link = link("lo").expect("netlink").expect("every namespace has a loopback");
        assert_eq!((link.ifindex, link.kind), (1, None));
        assert!(super::link("no-such-link0").expect("netlink").is_none());
    }
}
