//! Frames for program runs that change from run to run.
//!
//! A program run repeats one frame. Where packets of a flow differ, or flows do, the frame itself says what becomes other
//! in each repeat ([`Plan`]; `sensor-ebpf/src/bench/vary.rs`): the sequence number of a connection that goes on, or the
//! client of a crowd. That costs a few nanoseconds, which the floors have, too.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use sensor_common::tcp::{ACK, SYN};
use sensor_tests::frames::{Frame, SERVICE_VLAN, VLAN};

/// What changes in a frame from run to run.
#[derive(Clone, Copy, Debug, Default)]
struct Plan {
    /// Where a 32-bit number is that grows, and by how much.
    word: (usize, u16),
    /// Where the low and the high half of the flow's number go, and its bits.
    flow: (usize, usize, u8),
    /// Logarithm of the packets of each flow in a row.
    shift: u8,
}

/// Offsets in an untagged IPv4 frame.
const SOURCE: usize = 14 + 14;
const DESTINATION: usize = 14 + 18;
const PORT: usize = 14 + 20;
const SEQ: usize = PORT + 4;
const ACKNOWLEDGED: usize = PORT + 8;

pub(crate) fn address(text: &str) -> Result<SocketAddr> {
    text.parse().with_context(|| format!("address {text}"))
}

fn planned(mut frame: Vec<u8>, plan: Plan) -> Vec<u8> {
    let ((word, step), (low, high, bits)) = (plan.word, plan.flow);
    frame[..4].fill(0);
    frame[4..8].copy_from_slice(&[word as u8, low as u8, high as u8, bits]);
    frame[8..10].copy_from_slice(&step.to_ne_bytes());
    frame[10] = plan.shift;
    frame
}

/// A frame that is the same in each run.
fn same(frame: Vec<u8>) -> Vec<u8> {
    planned(frame, Plan::default())
}

/// A connection that goes on: `before` bytes more than an untagged IPv4 frame has before TCP.
fn goes_on(frame: Vec<u8>, before: usize) -> Vec<u8> {
    planned(frame, Plan { word: (SEQ + before, 1000), ..Plan::default() })
}

/// A TCP segment with payload, of a client at `port`.
fn data(port: u16) -> Result<Frame> {
    let (client, server) = (address(&format!("198.18.0.1:{port}"))?, address("198.18.0.2:443")?);
    Ok(Frame::tcp(client, server, ACK).seq(1, 1).tcp_options(12).payload(1000))
}

/// A TCP connection over IPv4 that goes on, of a client at `port`.
pub(crate) fn tcp(port: u16) -> Result<Vec<u8>> {
    Ok(goes_on(data(port)?.build(), 0))
}

/// One TCP segment, sent again and again.
pub(crate) fn tcp_again(port: u16) -> Result<Vec<u8>> {
    Ok(same(data(port)?.build()))
}

/// As [`tcp`], in a VLAN.
pub(crate) fn vlan() -> Result<Vec<u8>> {
    Ok(goes_on(data(1000)?.tag(VLAN, 5).build(), 4))
}

/// As [`tcp`], under two VLAN tags.
pub(crate) fn qinq() -> Result<Vec<u8>> {
    Ok(goes_on(data(1000)?.tag(SERVICE_VLAN, 5).tag(VLAN, 6).build(), 8))
}

/// As [`tcp`], over IPv6.
pub(crate) fn tcp6() -> Result<Vec<u8>> {
    let (client, server) = (address("[2001:db8::1]:1000")?, address("[2001:db8::2]:443")?);
    Ok(goes_on(Frame::tcp(client, server, ACK).seq(1, 1).tcp_options(12).payload(1000).build(), 20))
}

/// A UDP datagram of a client at `port`.
pub(crate) fn udp(port: u16) -> Result<Vec<u8>> {
    let (client, server) = (address(&format!("198.18.0.1:{port}"))?, address("198.18.0.2:443")?);
    Ok(same(Frame::udp(client, server).payload(1000).build()))
}

/// As [`tcp`], in VXLAN (RFC 7348) over IPv4.
pub(crate) fn vxlan() -> Result<Vec<u8>> {
    const OUTER: usize = 14 + 20 + 8 + 8;
    let inner = data(1000)?.build();
    let mut frame =
        Frame::udp(address("198.18.0.3:50000")?, address("198.18.0.4:4789")?).payload(8 + inner.len()).build();
    frame[OUTER - 8] = 0x08;
    frame[OUTER..].copy_from_slice(&inner);
    Ok(goes_on(frame, OUTER))
}

/// What is not IP.
pub(crate) fn arp() -> Result<Vec<u8>> {
    let mut frame = data(1000)?.build();
    frame[12..14].copy_from_slice(&[0x08, 0x06]);
    Ok(same(frame))
}

/// Acknowledgements of 2^`bits` clients at random, each with an address of its own, to one service. The clients of other
/// ports are others.
pub(crate) fn crowd(bits: u8, port: u16) -> Result<Vec<u8>> {
    let server = address(&format!("198.19.0.2:{port}"))?;
    let frame = Frame::tcp(address("198.18.0.0:10000")?, server, ACK).seq(1, 1).build();
    Ok(planned(frame, Plan { word: (ACKNOWLEDGED, 1), flow: (SOURCE, PORT, bits), ..Plan::default() }))
}

/// Logarithm of the single addresses that are blocked.
pub(crate) const ADDRESS_BITS: u8 = 14;

/// SYNs of anybody in a network of 16 bits, `198.18.0.0` or `198.19.0.0`: with 32 `bits` each is a new flow, with 16 or fewer
/// there are 2^`bits` of them, of the sources in [`sources`]. With the options that Linux sends: MSS, SACK permitted,
/// timestamps, window scale.
pub(crate) fn flood(network: &str, bits: u8) -> Result<Vec<u8>> {
    const OPTIONS: [u8; 20] = [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
    let (client, server) = (address(&format!("{network}:0"))?, address("198.19.0.2:443")?);
    let mut frame = Frame::tcp(client, server, SYN).seq(1, 0).tcp_options(OPTIONS.len()).build();
    frame[PORT + 20..PORT + 40].copy_from_slice(&OPTIONS);
    Ok(planned(frame, Plan { flow: (SOURCE, PORT, bits), ..Plan::default() }))
}

/// The sources of [`flood`] from 198.19.0.0 with [`ADDRESS_BITS`]: programs write a source's number as this machine has it.
pub(crate) fn sources() -> impl Iterator<Item = Ipv4Addr> {
    (0..1u16 << ADDRESS_BITS).map(|number| {
        let [third, fourth] = number.to_ne_bytes();
        Ipv4Addr::new(198, 19, third, fourth)
    })
}

/// Eight datagrams in a row of each of 65,536 clients, or to it.
pub(crate) fn history(back: bool) -> Result<Vec<u8>> {
    let (client, server) = (address("198.18.0.0:7")?, address("198.18.0.2:53")?);
    let (from, to, place) = if back { (server, client, DESTINATION) } else { (client, server, SOURCE) };
    let frame = Frame::udp(from, to).payload(64).build();
    Ok(planned(frame, Plan { flow: (place, PORT, 16), shift: 3, ..Plan::default() }))
}
