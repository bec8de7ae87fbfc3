//! Programs on interfaces: attach with the best way this kernel has, and take everything off again.

use anyhow::{Context as _, bail};
use aya::programs::tc::{
    NlOptions, SchedClassifier, SchedClassifierLinkId, TcAttachOptions, qdisc_add_clsact, qdisc_detach_program,
};
use aya::programs::xdp::XdpLinkId;
use aya::programs::{LinkOrder, ProgramError, TcAttachType, TcError, XdpMode};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::load::{Hook, Kernel};
use crate::config::XdpMode as Choice;

/// How received packets are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpAttachment {
    /// `sensor_xdp` in the driver.
    Native,
    /// `sensor_ingress` at TC's ingress.
    Tc,
    /// `sensor_xdp` in the network stack.
    Generic,
}

impl XdpAttachment {
    /// The name in logs and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            XdpAttachment::Native => "native",
            XdpAttachment::Tc => "tc",
            XdpAttachment::Generic => "generic",
        }
    }
}

/// How the TC programs were attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcAttachment {
    /// By a BPF link (kernel 6.6), which ends with the agent.
    Tcx,
    /// As a filter under a clsact qdisc.
    Clsact,
}

impl TcAttachment {
    /// The name in logs and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            TcAttachment::Tcx => "tcx",
            TcAttachment::Clsact => "clsact",
        }
    }
}

/// One watched interface.
#[derive(Debug)]
pub struct Attached {
    /// Name.
    pub interface: String,
    /// Number.
    pub ifindex: u32,
    /// How ingress is seen.
    pub xdp: XdpAttachment,
    /// How egress is seen.
    pub egress: TcAttachment,
    /// Why native XDP was not used, where TC's ingress was the fallback.
    pub fallback: Option<String>,
    xdp_link: Option<XdpLinkId>,
    tc_links: Vec<(Hook, SchedClassifierLinkId)>,
    /// The qdisc is ours to remove.
    clsact_added: bool,
}

impl Kernel {
    /// Attaches all loaded programs to `interface`. On an error nothing stays attached.
    ///
    /// # Errors
    /// A missing interface, another XDP program on it, a driver without what `choice` asks for, missing privileges.
    pub fn attach(&mut self, interface: &str, choice: Choice, tcx: bool) -> anyhow::Result<Attached> {
        let ifindex = ifindex(interface)?;
        check_kind(interface)?;
        self.watch(ifindex)?;
        let (xdp, xdp_link, fallback) = self.attach_xdp(interface, ifindex, choice)?;
        let mut attached = Attached {
            interface: interface.to_owned(),
            ifindex,
            xdp,
            egress: if tcx { TcAttachment::Tcx } else { TcAttachment::Clsact },
            fallback,
            xdp_link,
            tc_links: Vec::new(),
            clsact_added: false,
        };
        match self.attach_tc(&mut attached) {
            Ok(()) => Ok(attached),
            Err(error) => {
                // The first error is the one that helps; what could not be undone ends with the process.
                let _ = self.detach(attached);
                Err(error)
            }
        }
    }

    fn attach_xdp(
        &mut self,
        interface: &str,
        ifindex: u32,
        choice: Choice,
    ) -> anyhow::Result<(XdpAttachment, Option<XdpLinkId>, Option<String>)> {
        let mut fallback = None;
        match choice {
            Choice::Auto | Choice::Native => match self.xdp_program()?.attach_to_if_index(ifindex, XdpMode::Driver) {
                Ok(link) => return Ok((XdpAttachment::Native, Some(link), None)),
                Err(error) if is_busy(&error) => bail!(busy(interface)),
                Err(error) if choice == Choice::Native => {
                    return Err(error).with_context(|| {
                        format!("{interface}: its driver does not take native XDP; use --xdp-mode auto or tc")
                    });
                }
                Err(error) => fallback = Some(chain(&error)),
            },
            Choice::Generic => match self.xdp_program()?.attach_to_if_index(ifindex, XdpMode::Skb) {
                Ok(link) => return Ok((XdpAttachment::Generic, Some(link), None)),
                Err(error) if is_busy(&error) => bail!(busy(interface)),
                Err(error) => {
                    return Err(error).with_context(|| format!("{interface}: XDP could not be attached"));
                }
            },
            Choice::Tc => {}
        }
        // Nothing keeps a second agent from TC's ingress, as a place for one program does from XDP. Only links (TCX) can
        // be asked for: what a filter (clsact) belongs to cannot be told from what a killed agent left.
        let there = SchedClassifier::query_tcx(interface, TcAttachType::Ingress).map(|(_, programs)| programs);
        if there.is_ok_and(|programs| programs.iter().any(|program| program.name_as_str() == Some(INGRESS))) {
            bail!("another sensor agent watches {interface} already: stop it");
        }
        self.load_stack_ingress()?;
        Ok((XdpAttachment::Tc, None, fallback))
    }

    fn attach_tc(&mut self, attached: &mut Attached) -> anyhow::Result<()> {
        let mut hooks = vec![(Hook::Egress, TcAttachType::Egress)];
        if attached.xdp == XdpAttachment::Tc {
            hooks.push((Hook::StackIngress, TcAttachType::Ingress));
        }
        if self.tagging() {
            hooks.push((Hook::Tag, TcAttachType::Ingress));
        }
        if attached.egress == TcAttachment::Clsact {
            match qdisc_add_clsact(&attached.interface) {
                Ok(()) => attached.clsact_added = true,
                // aya 0.14 has AlreadyAttached but passes the kernel's own answer on.
                Err(TcError::AlreadyAttached) => remove_leftovers(&attached.interface),
                Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {
                    remove_leftovers(&attached.interface);
                }
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("{}: qdisc clsact could not be added", attached.interface));
                }
            }
        }
        for (hook, direction) in hooks {
            let options = match attached.egress {
                TcAttachment::Tcx => TcAttachOptions::TcxOrder(LinkOrder::default()),
                TcAttachment::Clsact => TcAttachOptions::Netlink(NlOptions::default()),
            };
            let link = self
                .tc_program(hook)?
                .attach_with_options(&attached.interface, direction, options)
                .with_context(|| format!("{}: TC program for {hook:?} could not be attached", attached.interface))?;
            attached.tc_links.push((hook, link));
        }
        Ok(())
    }

    /// Takes the programs off an interface, and the qdisc if it was added here.
    ///
    /// # Errors
    /// The first failure, after everything was tried.
    pub fn detach(&mut self, attached: Attached) -> anyhow::Result<()> {
        let Attached { interface, tc_links, xdp_link, clsact_added, ifindex, xdp: _, egress: _, fallback: _ } =
            attached;
        let mut failures = Vec::new();
        if let Some(link) = xdp_link
            && let Err(error) = self.xdp_program()?.detach(link)
        {
            failures.push(format!("XDP: {}", chain(&error)));
        }
        for (hook, link) in tc_links {
            if let Err(error) = self.tc_program(hook)?.detach(link) {
                failures.push(format!("TC {hook:?}: {}", chain(&error)));
            }
        }
        if clsact_added && let Err(error) = super::qdisc::remove_clsact(ifindex) {
            failures.push(format!("qdisc clsact: {error:#}"));
        }
        if failures.is_empty() { Ok(()) } else { bail!("{interface}: detaching failed: {}", failures.join("; ")) }
    }
}

/// Refuses what the parser cannot read: frames without an Ethernet header (tunnels, PPP).
fn check_kind(interface: &str) -> anyhow::Result<()> {
    // ARPHRD_ETHER and ARPHRD_LOOPBACK (linux/if_arp.h). Another namespace's /sys may not show the interface: then only
    // the counter of packets that are not IP can tell.
    match std::fs::read_to_string(format!("/sys/class/net/{interface}/type")).as_deref().map(str::trim) {
        Ok("1") | Err(_) => Ok(()),
        Ok("772") => {
            tracing::warn!(
                "{interface}: each packet on the loopback interface is sent and received, and counted twice"
            );
            Ok(())
        }
        Ok(kind) => bail!(
            "{interface} carries no Ethernet frames (type {kind}): watch the interface that its packets leave the host by"
        ),
    }
}

/// The name of the program at TC's ingress.
const INGRESS: &str = "sensor_ingress";

/// Takes off filters that bear our names: an agent was killed, and on kernels before 6.6 its filters stayed (without
/// effect, because its lease has run out). With XDP that is sure, because its place was free; a living agent that sees
/// received packets at TC's ingress loses its filters to us, and says that it sees none.
fn remove_leftovers(interface: &str) {
    let ours = [
        ("sensor_egress", TcAttachType::Egress),
        (INGRESS, TcAttachType::Ingress),
        ("sensor_tag", TcAttachType::Ingress),
    ];
    for (name, direction) in ours {
        if qdisc_detach_program(interface, direction, name).is_ok() {
            tracing::warn!("{interface}: took off {name}, left behind by an agent that was killed");
        }
    }
}

/// Number of an interface of this thread's network namespace, which `/sys` may not show (`nsenter --net`).
///
/// # Errors
/// If there is none of that name; the error lists those there are.
pub fn ifindex(interface: &str) -> anyhow::Result<u32> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .context("no socket to ask for interfaces")?;
    match name_to_index(&socket, interface) {
        Ok(number) => Ok(number),
        Err(_) => bail!("there is no interface {interface:?}; this host has: {}", interfaces().join(", ")),
    }
}

/// Statistics of the interfaces of this thread's network namespace.
pub(crate) const STATISTICS: &str = "/proc/thread-self/net/dev";

fn interfaces() -> Vec<String> {
    let table = std::fs::read_to_string(STATISTICS).unwrap_or_default();
    let mut names: Vec<_> = table.lines().filter_map(|line| Some(line.rsplit_once(':')?.0.trim().to_owned())).collect();
    names.sort();
    names
}

fn busy(interface: &str) -> String {
    format!(
        "{interface} already has an XDP program: another sensor agent or another tool; stop it, or take it off with \
         `ip link set dev {interface} xdp off` and `xdpgeneric off`"
    )
}

/// The kernel says EBUSY or EEXIST for an interface that has a program.
fn is_busy(error: &ProgramError) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return matches!(io.raw_os_error(), Some(libc::EBUSY | libc::EEXIST));
        }
        source = error.source();
    }
    false
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
