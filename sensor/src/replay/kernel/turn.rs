//! One frame on its way through host and kernel: when it runs, and where its flow's record is then.
//!
//! Called by [`super::engine`], through [`super::KernelReplay::turn`].

use anyhow::Result;
use sensor_common::flow::{FlowKey, FlowRecord, note, state};

use super::super::table::Reason;
use super::KernelReplay;

/// One frame on its way through host and kernel, see [`KernelReplay::turn`].
#[derive(Debug)]
pub struct Turn<'a> {
    pub(super) replay: &'a mut KernelReplay,
    /// When the frame arrived, until it ran.
    pub(super) time_ns: Option<u64>,
    /// Its flow.
    pub(super) key: Option<FlowKey>,
}

impl Turn<'_> {
    /// The kernel's record of the flow of which the host hands over `host`; taken out of the table if it ended. `None`
    /// if the table had no room for the flow.
    ///
    /// # Errors
    /// If the kernel does not run the frame.
    pub fn fetch(&mut self, host: &FlowRecord, reason: Reason) -> Result<Option<FlowRecord>> {
        let found = match reason {
            Reason::Snapshot(_) => {
                self.run()?;
                self.replay.find(&host.key)?.map(|(_, record)| record)
            }
            Reason::Reopened => {
                // The programs hand the old connection's record over when they see the new one's first packet.
                self.run()?;
                let evicted = &mut self.replay.evicted;
                let position = evicted.iter().position(|record| record.key == host.key);
                position.map(|position| evicted.swap_remove(position))
            }
            Reason::Cut => {
                // As an agent does: the programs hand the record over when they see the flow's next packet.
                self.replay.mark_due(&host.key)?;
                self.run()?;
                let evicted = &mut self.replay.evicted;
                let position = evicted.iter().position(|record| record.key == host.key);
                let found = position.map(|position| evicted.swap_remove(position));
                // The mark took the bits of the fast path away, so that the packet went the long way.
                found.map(|record| FlowRecord { steady: record.steady | host.steady & !note::ALL, ..record })
            }
            Reason::Idle | Reason::Active | Reason::Closed | Reason::Evicted | Reason::Clock | Reason::End => {
                self.replay.take(&host.key)?
            }
        };
        // The interface of test runs is nobody's, and the host has no buckets whose occupied ways it could keep.
        let state = |record: &FlowRecord| record.state & ((1 << state::WAYS_SHIFT) - 1);
        // Nor does it have to be told when to go on.
        let steady = |record: &FlowRecord| record.steady & !(note::CUT | note::DUE);
        let same =
            |record: FlowRecord| FlowRecord { ifindex: 0, state: state(&record), steady: steady(&record), ..record };
        Ok(found.map(same))
    }

    /// Runs the frame if it did not run yet.
    ///
    /// # Errors
    /// If the kernel does not run the frame.
    pub fn finish(mut self) -> Result<()> {
        self.run()
    }

    fn run(&mut self) -> Result<()> {
        let Some(time_ns) = self.time_ns.take() else { return Ok(()) };
        if let Some(key) = &self.key {
            self.replay.make_room(key)?;
        }
        self.replay.run(time_ns)
    }
}
