//! The interfaces of this network namespace, and how they change: a thread that listens to rtnetlink (RTNLGRP_LINK).
//!
//! Invariant: what [`Links::now`] gives is what the kernel had a moment ago. Changes are applied one by one; when the
//! kernel had to leave some out (ENOBUFS), and once a second anyway, everything is listed anew. The thread, not its
//! reader, waits for the kernel's lock on interfaces, which others can hold for long. Called by `agent::interfaces`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socket_with, sockopt};

use super::netlink::{
    IFINFO_SIZE, IFLA_EXT_MASK, NLMSG_ERROR, NLMSG_HEADER, RTEXT_FILTER_SKIP_STATS, Request, attributes, find, open,
    text, word,
};
use crate::interfaces::Link;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTMGRP_LINK: u32 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_DONE: u16 = 3;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_LINK_NETNSID: u16 = 37;
const ARPHRD_ETHER: u16 = 1;
const IFF_LOOPBACK: u32 = 1 << 3;

/// The longest message that the kernel sends at once.
const MESSAGE: usize = 64 << 10;
/// Room for changes that were not read yet: some thousand.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Time between two lists when nothing seems to change.
const LIST_INTERVAL: Duration = Duration::from_secs(1);
/// How often a list is asked for again that changed while it was made.
const TRIES: usize = 5;

/// Interfaces by number.
pub type Table = BTreeMap<u32, Link>;

/// All interfaces there are.
///
/// # Errors
/// If netlink fails.
pub fn list() -> anyhow::Result<Table> {
    dump(true).context("cannot list the interfaces over netlink")
}

/// The thread's work, for its reader. It ends soon after this is dropped.
#[derive(Debug)]
pub struct Links(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    table: Mutex<Arc<Table>>,
    changes: AtomicU64,
    overruns: AtomicU64,
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut Table)) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut table));
        self.changes.fetch_add(1, Ordering::Release);
    }
}

impl Links {
    /// Begins to listen in this thread's network namespace.
    ///
    /// # Errors
    /// If the interfaces cannot be listed, or there can be no thread.
    pub fn follow() -> anyhow::Result<Links> {
        // Before the list, so that no change falls between the two.
        let socket = subscribe();
        if let Err(error) = &socket {
            tracing::warn!("the kernel does not tell of changes of interfaces, they are listed once a second: {error}");
        }
        let table = Mutex::new(Arc::new(list()?));
        let shared = Arc::new(Shared { table, changes: AtomicU64::new(1), overruns: AtomicU64::new(0) });
        let own = Arc::downgrade(&shared);
        std::thread::Builder::new()
            .name("sensor-links".to_owned())
            .spawn(move || listen(socket.ok().as_ref(), &own))
            .context("cannot start the thread that follows the interfaces")?;
        Ok(Links(shared))
    }

    /// The interfaces.
    pub fn now(&self) -> Arc<Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Grows with each change; never 0.
    pub fn changes(&self) -> u64 {
        self.0.changes.load(Ordering::Acquire)
    }

    /// Times that the kernel had no room for a change, and all was listed anew.
    pub fn overruns(&self) -> u64 {
        self.0.overruns.load(Ordering::Relaxed)
    }
}

fn subscribe() -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(LIST_INTERVAL))?;
    // Beyond what others may take (CAP_NET_ADMIN); less room only means that more is listed.
    if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER);
    }
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, RTMGRP_LINK))?;
    Ok(socket)
}

fn listen(socket: Option<&OwnedFd>, shared: &Weak<Shared>) {
    let mut buffer = vec![0; MESSAGE];
    let (mut listed, mut failed) = (Instant::now(), false);
    loop {
        let read = match socket {
            Some(socket) => rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty()).map(|(length, _)| length),
            None => {
                std::thread::sleep(LIST_INTERVAL);
                Err(rustix::io::Errno::AGAIN)
            }
        };
        let Some(shared) = shared.upgrade() else { return };
        let mut stale = listed.elapsed() >= LIST_INTERVAL;
        match read {
            Ok(length) => apply(&buffer[..length], &shared),
            Err(rustix::io::Errno::NOBUFS) => {
                shared.overruns.fetch_add(1, Ordering::Relaxed);
                // What is left of the changes is older than the list will be.
                if let Some(socket) = socket {
                    while rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT).is_ok() {}
                }
                stale = true;
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // Not a reason to run in a circle.
            Err(_) => std::thread::sleep(LIST_INTERVAL),
        }
        if !stale {
            continue;
        }
        listed = Instant::now();
        match dump(false) {
            Ok(table) => {
                failed = false;
                let is_new = **shared.table.lock().unwrap_or_else(PoisonError::into_inner) != table;
                if is_new {
                    shared.change(|old| *old = table);
                }
            }
            // Changes are coming in, so nothing is missed; the next second has another try.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if !failed => {
                failed = true;
                tracing::warn!("the interfaces cannot be listed, and new ones may not be seen: {error}");
            }
            Err(_) => {}
        }
    }
}

/// Takes over changes.
fn apply(datagram: &[u8], shared: &Shared) {
    for (kind, _, body) in messages(datagram) {
        // Bridges tell of their ports with messages of the same kinds, of another family.
        let is_link = body.first() == Some(&0);
        let Some(link) = parse(body).filter(|_| is_link) else { continue };
        let known = shared.table.lock().unwrap_or_else(PoisonError::into_inner).get(&link.ifindex).cloned();
        match kind {
            RTM_NEWLINK if known.as_ref() != Some(&link) => shared.change(|table| {
                table.insert(link.ifindex, link);
            }),
            RTM_DELLINK if known.is_some() => shared.change(|table| {
                table.remove(&link.ifindex);
            }),
            _ => {}
        }
    }
}

/// `torn`: rather a list that changed while it was made than none.
fn dump(torn: bool) -> io::Result<Table> {
    for number in 0..TRIES {
        let (table, whole) = dump_once()?;
        if whole || (torn && number + 1 == TRIES) {
            return Ok(table);
        }
    }
    Err(io::Error::new(io::ErrorKind::Interrupted, "the list changes while it is made"))
}

/// And whether nothing changed meanwhile, so that nothing can be missing.
fn dump_once() -> io::Result<(Table, bool)> {
    let socket = open(None)?;
    let mut request = Request::dump(RTM_GETLINK, &[0; IFINFO_SIZE], NLM_F_DUMP);
    request.attribute(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    request.send(&socket)?;
    let (mut table, mut whole) = (Table::new(), true);
    let mut buffer = vec![0; MESSAGE];
    loop {
        let (length, _) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        if length == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "netlink gave an empty answer"));
        }
        for (kind, flags, body) in messages(&buffer[..length]) {
            whole &= flags & NLM_F_DUMP_INTR == 0;
            match kind {
                NLMSG_DONE => return Ok((table, whole)),
                NLMSG_ERROR => return Err(io::Error::from_raw_os_error((word(body) as i32).wrapping_neg())),
                RTM_NEWLINK => table.extend(parse(body).map(|link| (link.ifindex, link))),
                _ => {}
            }
        }
    }
}

/// Kind, flags and body of each message; ends at the first that is cut off.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = (u16, u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<NLMSG_HEADER>()?;
        let length = word(header) as usize;
        let body = rest.get(NLMSG_HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        Some((half(4), half(6), body))
    })
}

/// A link of its message (struct ifinfomsg and attributes); `None` if it has no number or name.
fn parse(body: &[u8]) -> Option<Link> {
    let kind = u16::from_ne_bytes([*body.get(2)?, *body.get(3)?]);
    let flags = word(body.get(8..)?);
    let ethernet = kind == ARPHRD_ETHER && flags & IFF_LOOPBACK == 0;
    let mut link = Link { ifindex: word(body.get(4..)?), ethernet, ..Link::default() };
    let mut elsewhere = false;
    for (kind, value) in attributes(body.get(IFINFO_SIZE..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_LINK => link.lower = Some(word(value)).filter(|lower| *lower != 0),
            IFLA_MASTER => link.master = Some(word(value)),
            IFLA_LINKINFO => link.kind = find(value, IFLA_INFO_KIND).map(text),
            // The number is one of another network namespace.
            IFLA_LINK_NETNSID => elsewhere = true,
            _ => {}
        }
    }
    if elsewhere {
        link.lower = None;
    }
    (link.ifindex != 0 && !link.name.is_empty()).then_some(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, family: u8, ifindex: u32, name: &str) -> Vec<u8> {
        let mut body = vec![family, 0];
        body.extend(ARPHRD_ETHER.to_ne_bytes());
        body.extend(ifindex.to_ne_bytes());
        body.extend([0; 8]);
        let mut request = Request::dump(kind, &body, 0);
        request.attribute(IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
        request.attribute(IFLA_MASTER, &9u32.to_ne_bytes());
        request.finish()
    }

    #[test]
    fn changes_are_applied_one_by_one() {
        let shared = Shared { table: Mutex::default(), changes: AtomicU64::new(1), overruns: AtomicU64::new(0) };
        let links = Links(Arc::new(shared));
        let mut datagram = message(RTM_NEWLINK, 0, 7, "veth1");
        datagram.extend(message(RTM_NEWLINK, 0, 8, "veth2"));
        apply(&datagram, &links.0);
        assert_eq!((links.changes(), links.now().len()), (3, 2));
        assert_eq!((links.now()[&7].name.as_str(), links.now()[&7].master), ("veth1", Some(9)));
        apply(&datagram, &links.0);
        assert_eq!(links.changes(), 3, "nothing new");
        apply(&message(RTM_NEWLINK, 0, 7, "lan0"), &links.0);
        apply(&message(RTM_DELLINK, 7, 7, "lan0"), &links.0);
        assert_eq!(links.now()[&7].name, "lan0", "a bridge lost a port, and no interface is gone");
        apply(&message(RTM_DELLINK, 0, 7, "lan0"), &links.0);
        assert_eq!((links.changes(), links.now().len()), (5, 1));
        for length in 0..datagram.len() {
            apply(&datagram[..length], &links.0);
        }
    }

    #[test]
    fn this_machine_has_a_loopback_interface_that_no_pattern_takes() {
        let table = list().expect("netlink");
        let loopback = &table[&1];
        assert_eq!((loopback.name.as_str(), loopback.ethernet), ("lo", false));
        let links = Links::follow().expect("netlink");
        assert_eq!(links.now()[&1], table[&1]);
        assert_eq!(links.overruns(), 0);
    }
}
