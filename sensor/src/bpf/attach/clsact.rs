//! Filters under a clsact qdisc, where the kernel has no TCX (before 6.6): the qdisc, whose it is, and filters that an agent
//! that was killed left there.

use anyhow::Context as _;
use aya::programs::TcError;
use aya::programs::tc::qdisc_add_clsact;

use super::Attached;
use crate::bpf::load::Kernel;
use crate::bpf::qdisc;

impl Kernel {
    pub(super) fn add_clsact(&mut self, attached: &Attached) -> anyhow::Result<()> {
        let Attached { interface, ifindex, .. } = attached;
        match qdisc_add_clsact(interface) {
            Ok(()) => {
                self.qdiscs.push(*ifindex);
                return self.note_meta();
            }
            // aya 0.14 has AlreadyAttached but passes the kernel's own answer on.
            Err(TcError::AlreadyAttached) => {}
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("{interface}: qdisc clsact could not be added"));
            }
        }
        if self.adopted() { Ok(()) } else { remove_leftovers(interface, *ifindex) }
    }

    /// Removes the qdisc if an agent added it and nobody uses it.
    pub(super) fn remove_clsact(&mut self, interface: &str, ifindex: u32) -> anyhow::Result<()> {
        let Some(position) = self.qdiscs.iter().position(|number| *number == ifindex) else { return Ok(()) };
        self.qdiscs.swap_remove(position);
        if !qdisc::remove_clsact(ifindex)? {
            tracing::info!("{interface}: its qdisc clsact stays, because it holds filters of others");
        }
        Ok(())
    }
}

/// The name of the program at TC's ingress.
pub(super) const INGRESS: &str = "sensor_ingress";

/// Filters of ours, by side and name.
pub(super) const FILTERS: [(qdisc::Side, &str); 3] =
    [(qdisc::Side::Egress, "sensor_egress"), (qdisc::Side::Ingress, INGRESS), (qdisc::Side::Ingress, "sensor_tag")];

/// Whether a program of this name may be a filter.
pub(in crate::bpf) fn is_filter(program: &str) -> bool {
    FILTERS.iter().any(|(_, name)| *name == program)
}

/// Takes off filters that bear our names: an agent was killed, and on kernels before 6.6 its filters stayed (without
/// effect, because its lease has run out). With XDP that is sure, because its place was free; a living agent that sees
/// received packets at TC's ingress loses its filters to us, and says that it sees none.
fn remove_leftovers(interface: &str, ifindex: u32) -> anyhow::Result<()> {
    for filter in qdisc::filters(ifindex)? {
        if FILTERS.contains(&(filter.side, filter.name.as_str())) {
            qdisc::remove(ifindex, &filter)?;
            tracing::warn!("{interface}: took off {}, left behind by an agent that was killed", filter.name);
        }
    }
    Ok(())
}
