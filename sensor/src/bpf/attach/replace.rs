//! Programs that an agent before this one left on interfaces: replaced by this one's, or taken off.

use anyhow::{Context as _, ensure};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcHandle};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, TcAttachType};

use super::clsact::FILTERS;
use super::interface::{ifindex, interfaces};
use super::{Attached, Choice, Held, Hook, TcAttachment, XdpAttachment};
use crate::bpf::load::Kernel;
use crate::bpf::pins::{Pins, netns};
use crate::bpf::sys::wait_for_programs;
use crate::bpf::{probe, qdisc};

impl Kernel {
    /// Puts this agent's XDP program in place of the one that was left, if that is attached as `choice` asks for. `None`:
    /// there is none to replace.
    pub(super) fn replace_xdp(
        &mut self,
        interface: &str,
        ifindex: u32,
        choice: Choice,
    ) -> anyhow::Result<Option<(XdpAttachment, Option<Held>)>> {
        let Some(pins) = self.pins.as_ref().filter(|_| self.adopted()) else { return Ok(None) };
        let Some(link) = pins.link(Hook::Ingress, ifindex)? else {
            // Received packets were seen at TC's ingress, by choice or because the driver has no XDP: so it goes on.
            let stack =
                matches!(choice, Choice::Auto | Choice::Tc) && pins.link(Hook::StackIngress, ifindex)?.is_some();
            if stack {
                self.load_stack_ingress()?;
            }
            return Ok(stack.then_some((XdpAttachment::Tc, None)));
        };
        let native = probe::interface(interface)?.xdp_attached.is_some_and(|there| there.mode == "native");
        let fits = match choice {
            Choice::Auto => true,
            Choice::Native => native,
            Choice::Generic => !native,
            Choice::Tc => false,
        };
        if !fits {
            tracing::info!("{interface}: XDP is attached anew, because xdp_mode is another than before");
            end(link)?;
            return Ok(None);
        }
        let link = XdpLink::try_from(FdLink::from(link)).context("the pinned link is not of XDP")?;
        let program = self.xdp_program()?;
        let replaced = program.attach_to_link(link).and_then(|id| program.take_link(id));
        if !self.has_replaced(replaced.map(drop), interface, Hook::Ingress, ifindex)? {
            return Ok(None);
        }
        let attachment = if native { XdpAttachment::Native } else { XdpAttachment::Generic };
        Ok(self.held(Hook::Ingress, ifindex)?.map(|held| (attachment, Some(held))))
    }

    /// Puts one of this agent's TC programs in place of the one that was left. `None`: there is none.
    pub(super) fn replace_tc(
        &mut self,
        attached: &Attached,
        hook: Hook,
        direction: TcAttachType,
    ) -> anyhow::Result<Option<Held>> {
        if !self.adopted() {
            return Ok(None);
        }
        let Attached { interface, ifindex, egress, .. } = attached;
        if *egress == TcAttachment::Clsact {
            let name = self.tc_name(hook);
            let filters = self.own_filters(*ifindex)?;
            let Some(filter) = filters.into_iter().find(|filter| filter.name == name) else { return Ok(None) };
            let handle = TcHandle::from(filter.handle);
            let old = SchedClassifierLink::attached(interface, direction, filter.priority, handle, None)?;
            let program = self.tc_program(hook)?;
            let id = program.attach_to_link(old).with_context(|| format!("{interface}: replacing {name}"))?;
            return Ok(Some(Held::Filter(program.take_link(id)?)));
        }
        let Some(link) = self.pins.as_ref().map_or(Ok(None), |pins| pins.link(hook, *ifindex))? else {
            return Ok(None);
        };
        let link = SchedClassifierLink::try_from(FdLink::from(link)).context("the pinned link is not of TC")?;
        let program = self.tc_program(hook)?;
        let replaced = program.attach_to_link(link).and_then(|id| program.take_link(id));
        if self.has_replaced(replaced.map(drop), interface, hook, *ifindex)? {
            self.held(hook, *ifindex)
        } else {
            Ok(None)
        }
    }

    /// A link whose interface is gone (another one has its number now) makes room for a new one.
    fn has_replaced(
        &self,
        result: Result<(), ProgramError>,
        interface: &str,
        hook: Hook,
        ifindex: u32,
    ) -> anyhow::Result<bool> {
        match result {
            Ok(()) => Ok(true),
            Err(error) if super::errno(&error) == Some(libc::ENOLINK) => {
                if let Some(link) = self.pins.as_ref().map_or(Ok(None), |pins| pins.link(hook, ifindex))? {
                    end(link)?;
                }
                Ok(false)
            }
            Err(error) => Err(error).with_context(|| format!("{interface}: replacing the program for {hook:?}")),
        }
    }

    fn held(&self, hook: Hook, ifindex: u32) -> anyhow::Result<Option<Held>> {
        let link = self.pins.as_ref().map_or(Ok(None), |pins| pins.link(hook, ifindex))?;
        Ok(link.map(Held::Pinned))
    }

    /// Takes off what the agent before had at TC of this interface, and this one has not.
    pub(super) fn drop_other_links(&mut self, ifindex: u32, wanted: &[(Hook, TcAttachType)]) -> anyhow::Result<()> {
        if !self.adopted() {
            return Ok(());
        }
        let is_wanted = |hook: Hook| wanted.iter().any(|(one, _)| *one == hook);
        for hook in [Hook::Egress, Hook::StackIngress, Hook::Tag].into_iter().filter(|hook| !is_wanted(*hook)) {
            if let Some(link) = self.pins.as_ref().map_or(Ok(None), |pins| pins.link(hook, ifindex))? {
                end(link)?;
            }
        }
        for filter in self.own_filters(ifindex)? {
            if !wanted.iter().any(|(hook, _)| self.tc_name(*hook) == filter.name) {
                qdisc::remove(ifindex, &filter)?;
            }
        }
        Ok(())
    }

    /// Takes the programs off interfaces that the agent before watched and this one does not, and lets go of what was left:
    /// from now on it is this agent's, and ends with it.
    ///
    /// # Errors
    /// If something cannot be taken off.
    pub fn settle(&mut self, attached: &[Attached]) -> anyhow::Result<()> {
        if self.adopted() {
            let mut others = self.watched()?;
            others.retain(|ifindex| attached.iter().all(|one| one.ifindex != *ifindex));
            for ifindex in others.iter().copied() {
                if let Some(link) = self.pins.as_ref().map_or(Ok(None), |pins| pins.link(Hook::Ingress, ifindex))? {
                    end(link)?;
                }
                self.drop_other_links(ifindex, &[])?;
                self.remove_clsact(&format!("interface {ifindex}"), ifindex)?;
            }
            if !others.is_empty() {
                wait_for_programs();
            }
            for ifindex in others {
                self.unwatch(ifindex)?;
            }
            self.earlier.clear();
            self.note_meta()?;
        }
        if let Some(pins) = &mut self.pins {
            pins.leave(false);
        }
        Ok(())
    }

    /// Filters under an interface's clsact that this agent or one before it on these maps attached.
    pub(super) fn own_filters(&self, ifindex: u32) -> anyhow::Result<Vec<qdisc::Filter>> {
        own_filters(ifindex, &self.filter_programs())
    }
}

/// Names can be those of another agent on the interface, so `programs` decides.
fn own_filters(ifindex: u32, programs: &[u32]) -> anyhow::Result<Vec<qdisc::Filter>> {
    let mut filters = qdisc::filters(ifindex)?;
    let is_own = |filter: &qdisc::Filter| filter.program.is_some_and(|program| programs.contains(&program));
    filters.retain(|filter| FILTERS.contains(&(filter.side, filter.name.as_str())) && is_own(filter));
    Ok(filters)
}

/// Removes what an agent left, its pins and what they do not hold: filters under clsact (kernels before 6.6) go on without
/// pins, with the maps and, if verdicts are to outlive the agent, with its drops, on any interface.
///
/// # Errors
/// As [`Pins::clear`].
pub fn clear(pins: &Pins) -> anyhow::Result<()> {
    // First, so that a filter that cannot be taken off has no effect.
    if let Err(error) = pins.end_lease() {
        tracing::warn!("{error:#}");
    }
    if let Err(error) = remove_filters(pins) {
        tracing::warn!("filters that an agent left may still be attached; they have no effect: {error:#}");
    }
    pins.clear()
}

fn remove_filters(pins: &Pins) -> anyhow::Result<()> {
    let Some(meta) = pins.meta()? else { return Ok(()) };
    ensure!(meta.netns == netns()?, "they are in another network namespace");
    for interface in interfaces() {
        // It may have gone meanwhile.
        let Ok(ifindex) = ifindex(&interface) else { continue };
        for filter in own_filters(ifindex, &meta.programs)? {
            qdisc::remove(ifindex, &filter)?;
            tracing::warn!("{interface}: took off {}, left behind by an agent that was killed", filter.name);
        }
        if meta.qdiscs.contains(&ifindex) {
            qdisc::remove_clsact(ifindex)?;
        }
    }
    Ok(())
}

/// Takes a link's program off.
pub(super) fn end(link: PinnedLink) -> anyhow::Result<()> {
    link.unpin().map(drop).context("removing the pin of a link")
}
