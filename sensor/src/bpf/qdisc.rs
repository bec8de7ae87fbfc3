//! The clsact qdisc (kernels before 6.6) and filters under it: aya adds both, but cannot say what is there or take the qdisc off.

use std::os::fd::OwnedFd;

use anyhow::{Context as _, bail};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// rtnetlink numbers (linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h).
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_TYPE_MASK: u16 = 0x3fff;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;
const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
/// nlmsghdr and tcmsg.
const HEADER_LEN: usize = 16;
const TCMSG_LEN: usize = 20;

/// What [`kind`] says of the qdisc that has both sides.
pub const CLSACT: &str = "clsact";

/// Where a filter hangs under clsact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Received packets.
    Ingress,
    /// Sent packets.
    Egress,
}

impl Side {
    const fn parent(self) -> u32 {
        match self {
            Side::Ingress => 0xffff_fff2,
            Side::Egress => 0xffff_fff3,
        }
    }
}

/// A filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Where it hangs.
    pub side: Side,
    /// Its priority.
    pub priority: u16,
    /// Protocol it is for, as the kernel has it (network order).
    protocol: u16,
    /// Its handle; 0 of what stands for a chain or a classifier as a whole.
    pub handle: u32,
    /// Name of its BPF program, empty if it has none.
    pub name: String,
    /// Number of its BPF program.
    pub program: Option<u32>,
}

/// What an interface has in the one place that clsact takes: that, or the older "ingress", which has one side only; `None` if nothing, or
/// the interface is gone.
///
/// # Errors
/// If netlink fails.
pub fn kind(ifindex: u32) -> anyhow::Result<Option<String>> {
    let socket = open()?;
    let mut found = None;
    // The answer to a question for one qdisc goes to whoever listens; a list is the asker's.
    send(&socket, RTM_GETQDISC, NLM_F_DUMP, 0, 0, 0, 0)?;
    while !read(&socket, |kind, body| {
        if kind == RTM_NEWQDISC && (word(body, 4), word(body, 12)) == (ifindex, TC_H_CLSACT) {
            let name = attributes(body.get(TCMSG_LEN..).unwrap_or_default()).find(|(kind, _)| *kind == TCA_KIND);
            found = name.map(|(_, value)| text(value));
        }
    })? {}
    Ok(found)
}

/// All filters under an interface's clsact; none if it has no such qdisc, or is gone.
///
/// # Errors
/// If netlink fails.
pub fn filters(ifindex: u32) -> anyhow::Result<Vec<Filter>> {
    let mut found = Vec::new();
    for side in [Side::Ingress, Side::Egress] {
        let socket = open()?;
        send(&socket, RTM_GETTFILTER, NLM_F_DUMP, ifindex, 0, side.parent(), 0)?;
        while !read(&socket, |kind, body| {
            if kind == RTM_NEWTFILTER {
                found.extend(filter(body, side));
            }
        })? {}
    }
    Ok(found)
}

/// Takes a filter off.
///
/// # Errors
/// If the kernel refuses.
pub fn remove(ifindex: u32, filter: &Filter) -> anyhow::Result<()> {
    let info = (filter.priority as u32) << 16 | filter.protocol as u32;
    request(RTM_DELTFILTER, ifindex, filter.handle, filter.side.parent(), info)
        .with_context(|| format!("the kernel did not remove filter {:?}", filter.name))
}

/// Deletes the clsact qdisc of an interface, unless filters of others hang under it. Whether it is gone.
///
/// # Errors
/// If the kernel refuses.
pub fn remove_clsact(ifindex: u32) -> anyhow::Result<bool> {
    // Somebody may have deleted it, and put another one in its place.
    if kind(ifindex)?.as_deref() != Some(CLSACT) {
        return Ok(true);
    }
    if !filters(ifindex)?.is_empty() {
        return Ok(false);
    }
    match request(RTM_DELQDISC, ifindex, CLSACT_HANDLE, TC_H_CLSACT, 0) {
        // The interface went, and the qdisc with it.
        Err(error) if is_no_device(&error) => Ok(true),
        result => result.map(|()| true).context("the kernel did not delete the qdisc"),
    }
}

fn is_no_device(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.raw_os_error() == Some(libc::ENODEV))
}

fn open() -> anyhow::Result<OwnedFd> {
    // NETLINK_ROUTE is protocol 0.
    rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
        .context("no netlink socket")
}

/// A request that is answered by an acknowledgement.
fn request(kind: u16, ifindex: u32, handle: u32, parent: u32, info: u32) -> anyhow::Result<()> {
    let socket = open()?;
    send(&socket, kind, NLM_F_ACK, ifindex, handle, parent, info)?;
    while !read(&socket, |_, _| {})? {}
    Ok(())
}

fn send(
    socket: &OwnedFd,
    kind: u16,
    flags: u16,
    ifindex: u32,
    handle: u32,
    parent: u32,
    info: u32,
) -> anyhow::Result<()> {
    let mut message = Vec::with_capacity(HEADER_LEN + TCMSG_LEN);
    message.extend(((HEADER_LEN + TCMSG_LEN) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    message.extend([0; 8]); // sequence number and port: one request, one answer
    message.extend([0; 4]); // family and padding
    for field in [ifindex, handle, parent, info] {
        message.extend(field.to_ne_bytes());
    }
    rustix::net::sendto(socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))
        .context("netlink request")?;
    Ok(())
}

/// One datagram of the answer; whether it was the last.
fn read(socket: &OwnedFd, mut message: impl FnMut(u16, &[u8])) -> anyhow::Result<bool> {
    let mut buffer = vec![0u8; 64 << 10];
    let (received, _) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty()).context("netlink answer")?;
    let mut rest = buffer.get(..received).unwrap_or_default();
    while rest.len() >= HEADER_LEN {
        let length = (word(rest, 0) as usize).max(HEADER_LEN);
        let kind = word(rest, 4) as u16;
        let body = rest.get(HEADER_LEN..length).unwrap_or_default();
        match (kind, word(body, 0) as i32) {
            (NLMSG_DONE, _) | (NLMSG_ERROR, 0) => return Ok(true),
            (NLMSG_ERROR, code) => return Err(std::io::Error::from_raw_os_error(-code).into()),
            _ => message(kind, body),
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    if received == 0 {
        bail!("netlink gave an empty answer");
    }
    Ok(false)
}

fn filter(body: &[u8], side: Side) -> Option<Filter> {
    let (handle, info) = (word(body, 8), word(body, 16));
    let mut filter = Filter {
        side,
        priority: (info >> 16) as u16,
        protocol: info as u16,
        handle,
        name: String::new(),
        program: None,
    };
    let options = attributes(body.get(TCMSG_LEN..)?).find(|(kind, _)| *kind == TCA_OPTIONS);
    for (kind, value) in attributes(options.map_or(&[], |(_, value)| value)) {
        match kind {
            TCA_BPF_NAME => filter.name = text(value),
            TCA_BPF_ID => filter.program = Some(word(value, 0)),
            _ => {}
        }
    }
    Some(filter)
}

fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = word(rest.get(..4)?, 0);
        let length = (head & 0xffff) as usize;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(((head >> 16) as u16 & NLA_TYPE_MASK, value))
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

/// The 32-bit word at `at`; 0 beyond the end.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}
