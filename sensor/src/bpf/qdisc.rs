//! Removes the clsact qdisc that an agent added (kernels before 6.6): aya adds it, but has no way to take it off.

use anyhow::{Context as _, bail};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// rtnetlink numbers (linux/rtnetlink.h, linux/pkt_sched.h).
const RTM_DELQDISC: u16 = 37;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const NLMSG_ERROR: u16 = 2;
const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
/// nlmsghdr and tcmsg.
const MESSAGE_LEN: u32 = 16 + 20;

/// Deletes the clsact qdisc of an interface, and with it every filter on it.
///
/// # Errors
/// If the kernel refuses.
pub fn remove_clsact(ifindex: u32) -> anyhow::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None, // NETLINK_ROUTE is protocol 0
    )
    .context("no netlink socket")?;
    let mut message = Vec::with_capacity(MESSAGE_LEN as usize);
    message.extend(MESSAGE_LEN.to_ne_bytes());
    message.extend(RTM_DELQDISC.to_ne_bytes());
    message.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    message.extend([0; 8]); // sequence number and port: one request, one answer
    message.extend([0; 4]); // family and padding
    message.extend(ifindex.to_ne_bytes());
    message.extend(CLSACT_HANDLE.to_ne_bytes());
    message.extend(TC_H_CLSACT.to_ne_bytes());
    message.extend([0; 4]); // info
    rustix::net::sendto(&socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))
        .context("netlink request")?;
    let mut answer = [0u8; 256];
    let (received, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty()).context("netlink answer")?;
    let field = |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; 4]);
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    if received < 20 || kind != NLMSG_ERROR {
        bail!("netlink gave an answer of type {kind}, {received} bytes, to a request to delete a qdisc");
    }
    match i32::from_ne_bytes(field(16)) {
        0 => Ok(()),
        code => Err(std::io::Error::from_raw_os_error(-code)).context("the kernel did not delete the qdisc"),
    }
}
