//! Programs on interfaces: attach with the best way this kernel has, and take everything off again.
//!
//! Where an agent before this one left programs attached ([`super::pins`]), they are replaced in one step ([`replace`]): each
//! packet sees the old one or the new one.

mod clsact;
mod interface;
mod replace;
pub mod still;
mod tagging;

use anyhow::{Context as _, bail};
use aya::programs::links::{FdLink, Link as _, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifier, SchedClassifierLink, TcAttachOptions};
use aya::programs::xdp::XdpLink;
use aya::programs::{LinkOrder, ProgramError, TcAttachType, XdpMode};
use bytemuck::Zeroable as _;

use self::clsact::INGRESS;
pub(super) use self::clsact::is_filter;
pub(crate) use self::interface::STATISTICS;
use self::interface::{check_kind, name};
pub use self::interface::{ifindex, present_name};
pub use self::replace::clear;
use super::load::{Hook, Kernel};
use super::pins::Pins;
use super::probe;
use crate::config::XdpMode as Choice;
use sensor_common::counter::InterfaceCounters;

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
    held: Vec<(Hook, Held)>,
}

/// What keeps a program on an interface.
#[derive(Debug)]
enum Held {
    /// A link, which ends with its descriptor.
    Link(FdLink),
    /// A link, which ends with descriptor and pin.
    Pinned(PinnedLink),
    /// XDP's, not pinned: aya has it as one that need not be a link.
    Xdp(XdpLink),
    /// A filter under clsact: it ends when it is taken off.
    Filter(SchedClassifierLink),
}

impl Held {
    /// A link; pinned, if links are.
    fn link(link: FdLink, pins: Option<&Pins>, hook: Hook, ifindex: u32) -> anyhow::Result<Held> {
        match pins {
            Some(pins) => Ok(Held::Pinned(pins.pin_link(link, hook, ifindex)?)),
            None => Ok(Held::Link(link)),
        }
    }

    fn detach(self) -> anyhow::Result<()> {
        match self {
            Held::Link(link) => link.detach()?,
            Held::Pinned(link) => link.unpin().context("removing the pin of its link")?.detach()?,
            Held::Xdp(link) => link.detach()?,
            Held::Filter(link) => link.detach()?,
        }
        Ok(())
    }
}

impl Attached {
    /// Lets go of the interface without taking anything off.
    pub(super) fn leave(self) {
        for (_, held) in self.held {
            match held {
                Held::Link(_) | Held::Pinned(_) => {}
                // Dropping these takes the program off.
                Held::Xdp(link) => std::mem::forget(link),
                Held::Filter(link) => std::mem::forget(link),
            }
        }
    }
}

/// An interface that is not watched.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub error: anyhow::Error,
    /// What was counted there while some of the programs were attached; the kernel maps have it among those that are gone.
    pub counted: Box<InterfaceCounters>,
}

impl From<anyhow::Error> for Refused {
    fn from(error: anyhow::Error) -> Refused {
        Refused { error, counted: Box::new(InterfaceCounters::zeroed()) }
    }
}

impl Kernel {
    /// As [`Kernel::try_attach`], where what was counted before a failure, and what is never dropped, does not matter.
    ///
    /// # Errors
    /// As there.
    pub fn attach(&mut self, interface: &str, choice: Choice, tcx: bool) -> anyhow::Result<Attached> {
        self.try_attach(interface, choice, tcx, false).map_err(|refused| refused.error)
    }

    /// Attaches all loaded programs but `sensor_tag` ([`Kernel::set_tagging`]) to `interface`; if it is `exempt`, nothing is dropped
    /// there from its first packet on. On an error nothing stays attached, and the slot of its counters is free again, if it was
    /// before.
    ///
    /// # Errors
    /// A missing interface, another XDP program on it, a driver without what `choice` asks for, missing privileges.
    pub fn try_attach(
        &mut self,
        interface: &str,
        choice: Choice,
        tcx: bool,
        exempt: bool,
    ) -> Result<Attached, Refused> {
        let ifindex = ifindex(interface)?;
        check_kind(interface)?;
        let is_new = self.watch(ifindex)?;
        let error = match self.attach_watched(interface, ifindex, choice, tcx, exempt) {
            Ok(attached) => return Ok(attached),
            Err(error) => error,
        };
        if !is_new {
            // An agent before this one watched it, and what it left attached may go on counting.
            return Err(error.into());
        }
        let counted = self.unwatch(ifindex).unwrap_or_else(|error| {
            tracing::warn!("{interface}, number {ifindex}: its counters stay in use: {error:#}");
            InterfaceCounters::zeroed()
        });
        Err(Refused { error, counted: Box::new(counted) })
    }

    fn attach_watched(
        &mut self,
        interface: &str,
        ifindex: u32,
        choice: Choice,
        tcx: bool,
        exempt: bool,
    ) -> anyhow::Result<Attached> {
        if exempt {
            self.control.set_exempt(self.counters(ifindex)?.slot, true);
        }
        let (xdp, held, fallback) = self.attach_xdp(interface, ifindex, choice)?;
        let mut attached = Attached {
            interface: interface.to_owned(),
            ifindex,
            xdp,
            egress: if tcx { TcAttachment::Tcx } else { TcAttachment::Clsact },
            fallback,
            held: held.into_iter().map(|held| (Hook::Ingress, held)).collect(),
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
    ) -> anyhow::Result<(XdpAttachment, Option<Held>, Option<String>)> {
        if let Some((xdp, held)) = self.replace_xdp(interface, ifindex, choice)? {
            return Ok((xdp, held, None));
        }
        let mut fallback = None;
        match choice {
            // Before it is known that anybody loses anything by it: TCP over the link falls to a quarter.
            Choice::Auto if probe::is_veth(interface) => {
                fallback = Some("on a veth link, XDP would take segmentation offload from the other end".to_owned());
            }
            Choice::Auto | Choice::Native => match self.attach_new_xdp(ifindex, XdpMode::Driver)? {
                Ok(held) => {
                    if probe::is_veth(interface) {
                        tracing::info!(
                            "{interface}: native XDP on a veth link takes segmentation offload from the other end, and TCP \
                             gets slower; xdp_mode auto or tc do not"
                        );
                    }
                    return Ok((XdpAttachment::Native, Some(held), None));
                }
                Err(error) if is_busy(&error) => bail!(busy(interface)),
                Err(error) if choice == Choice::Native => {
                    return Err(error).with_context(|| {
                        format!("{interface}: its driver does not take native XDP; use --xdp-mode auto or tc")
                    });
                }
                Err(error) => fallback = Some(chain(&error)),
            },
            Choice::Generic => match self.attach_new_xdp(ifindex, XdpMode::Skb)? {
                Ok(held) => return Ok((XdpAttachment::Generic, Some(held), None)),
                Err(error) if is_busy(&error) => bail!(busy(interface)),
                Err(error) => {
                    return Err(error).with_context(|| format!("{interface}: XDP could not be attached"));
                }
            },
            Choice::Tc => {}
        }
        let there = SchedClassifier::query_tcx(interface, TcAttachType::Ingress).map(|(_, programs)| programs);
        if there.is_ok_and(|programs| programs.iter().any(|program| program.name_as_str() == Some(INGRESS))) {
            bail!(watched(interface));
        }
        self.load_stack_ingress()?;
        Ok((XdpAttachment::Tc, None, fallback))
    }

    /// The inner error is the kernel's answer to the attempt.
    fn attach_new_xdp(&mut self, ifindex: u32, mode: XdpMode) -> anyhow::Result<Result<Held, ProgramError>> {
        let program = self.xdp_program()?;
        let link = match program.attach_to_if_index(ifindex, mode).and_then(|id| program.take_link(id)) {
            Ok(link) => link,
            Err(error) => return Ok(Err(error)),
        };
        if self.pins.is_none() {
            return Ok(Ok(Held::Xdp(link)));
        }
        Held::link(link.try_into()?, self.pins.as_ref(), Hook::Ingress, ifindex).map(Ok)
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
            self.add_clsact(attached)?;
        }
        self.drop_other_links(attached.ifindex, &hooks)?;
        for (hook, direction) in hooks {
            let held = match self.replace_tc(attached, hook, direction)? {
                Some(held) => held,
                // Who takes over goes on tagging; else it begins when a mode asks for it.
                None if hook == Hook::Tag => continue,
                None => self.attach_new_tc(attached, hook, direction)?,
            };
            attached.held.push((hook, held));
        }
        Ok(())
    }

    fn attach_new_tc(&mut self, attached: &Attached, hook: Hook, direction: TcAttachType) -> anyhow::Result<Held> {
        let options = match attached.egress {
            // Ahead of programs that end the chain, whenever they came; but behind `sensor_ingress`, if that is there.
            TcAttachment::Tcx if hook == Hook::Tag && attached.xdp != XdpAttachment::Tc => {
                TcAttachOptions::TcxOrder(LinkOrder::first())
            }
            TcAttachment::Tcx => TcAttachOptions::TcxOrder(LinkOrder::default()),
            TcAttachment::Clsact => TcAttachOptions::Netlink(NlOptions::default()),
        };
        // It may have got another name, and another interface its own.
        let interface = name(attached.ifindex)?;
        let program = self.tc_program(hook)?;
        let id = program.attach_with_options(&interface, direction, options);
        let link = id
            .and_then(|id| program.take_link(id))
            .with_context(|| format!("{}: TC program for {hook:?} could not be attached", interface))?;
        match attached.egress {
            TcAttachment::Clsact => Ok(Held::Filter(link)),
            TcAttachment::Tcx => Held::link(link.try_into()?, self.pins.as_ref(), hook, attached.ifindex),
        }
    }

    /// Takes the programs off interfaces and gives their slots back; what was counted on each, by name. `there`: some of them are
    /// there; else all are gone, and the programs went with them.
    pub fn let_go(&mut self, attached: Vec<Attached>, there: bool) -> Vec<(String, anyhow::Result<InterfaceCounters>)> {
        let interfaces: Vec<_> = attached.iter().map(|one| (one.interface.clone(), one.ifindex)).collect();
        for one in attached {
            let interface = one.interface.clone();
            match self.detach(one) {
                Err(error) if there => tracing::warn!("{interface}: {error:#}"),
                // Of one that is gone, pins and descriptors were left.
                Err(error) => tracing::debug!("{interface}: {error:#}"),
                Ok(()) => {}
            }
        }
        if there {
            // A packet on its way through a program is counted before the slot is read and given back.
            super::sys::wait_for_programs();
        }
        interfaces.into_iter().map(|(interface, ifindex)| (interface, self.unwatch(ifindex))).collect()
    }

    /// Takes the programs off an interface, and the qdisc if it was added here and nobody else uses it.
    ///
    /// # Errors
    /// The first failure, after everything was tried.
    pub fn detach(&mut self, attached: Attached) -> anyhow::Result<()> {
        let Attached { interface, ifindex, held, xdp: _, egress: _, fallback: _ } = attached;
        let mut failures = Vec::new();
        for (hook, held) in held {
            if let Err(error) = held.detach() {
                failures.push(format!("{hook:?}: {error:#}"));
            }
        }
        if let Err(error) = self.remove_clsact(&interface, ifindex) {
            failures.push(format!("qdisc clsact: {error:#}"));
        }
        if failures.is_empty() { Ok(()) } else { bail!("{interface}: detaching failed: {}", failures.join("; ")) }
    }
}

/// Nothing keeps a second agent from TC, as a place for one program does from XDP: packets would be counted twice, and
/// each agent would enforce what the other does not know of. Only links (TCX) can be asked for: what a filter (clsact)
/// belongs to cannot be told from what a killed agent left.
///
/// # Errors
/// The program of sent packets is there, which every agent has at TC.
pub fn refuse_second(interface: &str) -> anyhow::Result<()> {
    let there = SchedClassifier::query_tcx(interface, TcAttachType::Egress).map(|(_, programs)| programs);
    if there.is_ok_and(|programs| programs.iter().any(|program| program.name_as_str() == Some("sensor_egress"))) {
        bail!(watched(interface));
    }
    Ok(())
}

fn watched(interface: &str) -> String {
    format!("another sensor agent watches {interface} already: stop it, or take over from it with --takeover")
}

fn busy(interface: &str) -> String {
    format!(
        "{interface} already has an XDP program: another sensor agent or another tool; stop it, or take it off with \
         `ip link set dev {interface} xdp off` and `xdpgeneric off`"
    )
}

/// The kernel says EBUSY or EEXIST for an interface that has a program.
fn is_busy(error: &ProgramError) -> bool {
    matches!(errno(error), Some(libc::EBUSY | libc::EEXIST))
}

/// The kernel's own answer inside of an error.
fn errno(error: &ProgramError) -> Option<i32> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return io.raw_os_error();
        }
        source = error.source();
    }
    None
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
