//! Filters under a clsact qdisc, where the kernel has no TCX (before 6.6): the qdisc, whose it is, and filters that an agent
//! that was killed left there.

use anyhow::{Context as _, bail};
use aya::programs::TcError;
use aya::programs::tc::qdisc_add_clsact;

use super::Attached;
use crate::bpf::load::Kernel;
use crate::bpf::qdisc;

/// How often the qdisc is added, if others remove it at the same time.
const TRIES: usize = 3;

impl Kernel {
    /// Sees to it that the interface has a clsact qdisc.
    pub(super) fn add_clsact(&mut self, attached: &Attached) -> anyhow::Result<()> {
        let Attached { interface, ifindex, .. } = attached;
        for _ in 0..TRIES {
            match qdisc_add_clsact(interface) {
                Ok(()) => {
                    if !self.qdiscs.contains(ifindex) {
                        self.qdiscs.push(*ifindex);
                    }
                    return self.note_meta();
                }
                // aya 0.14 has AlreadyAttached but passes the kernel's own answer on.
                Err(TcError::AlreadyAttached) => {}
                Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("{interface}: qdisc clsact could not be added"));
                }
            }
            match qdisc::kind(*ifindex)?.as_deref() {
                Some(qdisc::CLSACT) if self.adopted() => return Ok(()),
                Some(qdisc::CLSACT) => return remove_leftovers(interface, *ifindex),
                // The kernel takes a filter for egress there, too, and shows it what is received.
                Some(kind) => bail!(
                    "{interface} has a qdisc {kind:?} of another tool where clsact must be, which sees sent packets, too: \
                     replace it (tc qdisc del dev {interface} {kind}; tc qdisc add dev {interface} clsact) and add its \
                     filters again, which clsact takes as they are; from kernel 6.6 on neither is needed"
                ),
                None => {}
            }
        }
        bail!("{interface}: another tool adds and removes qdiscs at the same time: try again")
    }

    /// Removes the qdisc if an agent added it and nobody uses it.
    pub(super) fn remove_clsact(&mut self, interface: &str, ifindex: u32) -> anyhow::Result<()> {
        if !self.qdiscs.contains(&ifindex) {
            return Ok(());
        }
        self.qdiscs.retain(|number| *number != ifindex);
        // First: what is not noted any more cannot be removed by a later agent after somebody else has made another. Killed in
        // between, this one leaves an empty qdisc, which does nothing.
        let noted = self.note_meta();
        if !qdisc::remove_clsact(ifindex)? {
            tracing::info!("{interface}: its qdisc clsact stays, because it holds filters of others");
        }
        noted
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
