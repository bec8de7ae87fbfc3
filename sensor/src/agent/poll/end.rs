//! How the poll thread ends: it takes everything off, or leaves programs, maps and verdicts to another agent.

use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::oneshot;

use super::super::clock::now_ns;
use super::Poller;
use crate::bpf::pins::Left;
use crate::metrics::EndReason;
use crate::view::HandOverView;

/// How and whether the poll thread is to end.
#[derive(Debug, Default)]
pub(in crate::agent) struct Ending(AtomicU8);

impl Ending {
    const STOP: u8 = 1;
    const LEAVE: u8 = 2;

    /// Take everything off; unless [`Ending::leave`] was called before.
    pub(in crate::agent) fn stop(&self) {
        let _ = self.0.compare_exchange(0, Ending::STOP, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Leave programs and maps to the next agent.
    pub(in crate::agent) fn leave(&self) {
        self.0.store(Ending::LEAVE, Ordering::Relaxed);
    }

    pub(super) fn is_asked_for(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    pub(super) fn leaves(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Ending::LEAVE
    }
}

/// The agent that takes over.
pub(super) struct Heir {
    pub(super) pid: u32,
    pub(super) reply: oneshot::Sender<Result<HandOverView, String>>,
}

impl Poller {
    /// Leaves programs, maps and verdicts to another agent.
    pub(super) fn leave(mut self) -> anyhow::Result<Left> {
        // What is written below can take longer than a short lease.
        self.renew_lease(now_ns());
        let heir = self.heir.take().map(|Heir { pid, reply }| {
            let (version, flows) = (env!("CARGO_PKG_VERSION").to_owned(), self.occupied);
            // Before anything waits for a disk: who does not answer in time is taken for one that hangs, and killed. That all is
            // left is told by the lock on the pins.
            let _ = reply.send(Ok(HandOverView { pid: std::process::id(), version, flows }));
            pid
        });
        self.end_enforcement();
        // The lease runs on until the other agent renews it.
        self.renew_lease(now_ns());
        self.publish_books();
        let attached = std::mem::take(&mut self.attached);
        for one in &attached {
            self.publish_counters(&one.interface, one.ifindex);
        }
        let Poller { kernel, metrics, occupied, .. } = self;
        let left = kernel.leave(attached)?;
        let totals = metrics.totals();
        let to = heir.map_or_else(|| "whoever takes over".to_owned(), |pid| format!("pid {pid}"));
        tracing::info!(
            packets = totals.packets,
            flows = totals.flows_created,
            verdicts = totals.verdicts,
            "left programs, {occupied} flows and all verdicts to {to}"
        );
        Ok(left)
    }

    /// Ends every flow, publishes the last counters, takes the programs off.
    pub(super) fn shut_down(mut self) -> anyhow::Result<()> {
        // Lease first: from here on nothing is dropped or marked.
        self.kernel.control.set_lease(0);
        self.metrics.lease(false);
        self.end_enforcement();
        let mut failures = Vec::new();
        let interfaces: Vec<_> = self.attached.iter().map(|one| (one.interface.clone(), one.ifindex)).collect();
        for attached in std::mem::take(&mut self.attached) {
            if let Err(error) = self.kernel.detach(attached) {
                failures.push(format!("{error:#}"));
            }
        }
        // After detaching, so that the last packets are in the published totals.
        for (interface, ifindex) in interfaces {
            self.publish_counters(&interface, ifindex);
        }
        self.take_evicted(now_ns());
        self.publish_books();
        self.metrics.flows_ended(EndReason::Shutdown, self.occupied);
        let totals = self.metrics.totals();
        tracing::info!(
            packets = totals.packets,
            flows = totals.flows_created,
            scored = totals.scored,
            verdicts = totals.verdicts,
            would_verdicts = totals.would_verdicts,
            dropped = totals.dropped,
            lost = totals.lost,
            "stopped; programs detached"
        );
        anyhow::ensure!(failures.is_empty(), "{}", failures.join("; "));
        Ok(())
    }
}
