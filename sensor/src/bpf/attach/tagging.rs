//! `sensor_tag` on an interface: it comes and goes with the mode while the other programs stay. Called by the poll thread, and at the
//! start where the configuration asks for a mode that tags.

use aya::programs::TcAttachType;

use super::replace::end;
use super::{Attached, Hook};
use crate::bpf::load::Kernel;
use crate::bpf::qdisc;

impl Attached {
    /// Whether `sensor_tag` is attached.
    pub fn tags(&self) -> bool {
        self.held.iter().any(|(hook, _)| *hook == Hook::Tag)
    }
}

impl Kernel {
    /// Attaches `sensor_tag` to an interface, or takes it off; without effect if it is not loaded. A program that does nothing
    /// costs each packet as much as its call, so it is not there in a mode without tags.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_tagging(&mut self, attached: &mut Attached, on: bool) -> anyhow::Result<()> {
        match attached.held.iter().position(|(hook, _)| *hook == Hook::Tag) {
            None if on && self.tagging() => {
                // What could not be taken off before.
                self.take_off_tag(attached.ifindex)?;
                let held = self.attach_new_tc(attached, Hook::Tag, TcAttachType::Ingress)?;
                attached.held.push((Hook::Tag, held));
                Ok(())
            }
            Some(place) if !on => match attached.held.swap_remove(place).1.detach() {
                Ok(()) => Ok(()),
                // Others may have taken it off, which is as good.
                Err(error) => self.take_off_tag(attached.ifindex).map_err(|_| error),
            },
            None | Some(_) => Ok(()),
        }
    }

    /// Takes `sensor_tag` off an interface, if it is there and nothing in this process holds it.
    fn take_off_tag(&self, ifindex: u32) -> anyhow::Result<()> {
        if let Some(link) = self.pins.as_ref().map_or(Ok(None), |pins| pins.link(Hook::Tag, ifindex))? {
            end(link)?;
        }
        let name = self.tc_name(Hook::Tag);
        let filters = self.own_filters(ifindex)?;
        filters.iter().filter(|filter| filter.name == name).try_for_each(|filter| qdisc::remove(ifindex, filter))
    }
}
