//! The host context on the agent's side: what the programs' tables say of new flows ([`Notes`]), what the records say of
//! their fate ([`Ledger`]), and both put together for one flow ([`host_context`]).
//!
//! Pure: sets, records and times go in. The agent's poll thread and the replay run the same code; the replay's tables
//! ([`HostNotes`]) are filled by the code that the programs run.

mod ledger;
mod notes;
mod replay;
mod watch;

#[cfg(test)]
mod tests;

use sensor_common::context::{Ends, HostContext, Known, ServiceWindow, Set, SourceWindow, WINDOWS, tick_of};
use sensor_common::flow::{FlowRecord, state};
use sensor_common::hash::Seed;

pub use self::ledger::Ledger;
pub use self::notes::HostNotes;
pub use self::replay::{REPLAY_SEED, Replay};
pub use self::watch::{Brief, Watch};

/// The tables of new flows, wherever they are.
pub trait Notes {
    /// The set of a source with this hash; `None` if it cannot be read now.
    fn source(&self, hash: u32) -> Option<Set>;
    /// The set of a service, likewise.
    fn service(&self, hash: u32) -> Option<Set>;
}

/// Source and service of a record's flow.
pub fn ends_of(record: &FlowRecord, seed: &Seed) -> Ends {
    Ends::new(&record.key, record.state & state::INITIATOR_HIGH != 0, |position| seed[position])
}

/// What is known of a flow's source and service at `now_ns`.
pub fn host_context(notes: &impl Notes, ledger: &Ledger, ends: &Ends, now_ns: u64) -> HostContext {
    let now = tick_of(now_ns);
    let source = notes.source(ends.source_hash).and_then(|set| {
        let noted = match set.find(&ends.source, ends.source_hash, now) {
            Known::Entry(entry, last) => entry.source(last, now),
            Known::Quiet => [SourceWindow::default(); WINDOWS],
            Known::Unknown => return None,
        };
        ledger.source(&ends.source, ends.source_hash, noted, now)
    });
    let service = notes.service(ends.service_hash).and_then(|set| {
        let noted = match set.find(&ends.service, ends.service_hash, now) {
            Known::Entry(entry, last) => entry.service(last, now),
            Known::Quiet => [ServiceWindow::default(); WINDOWS],
            Known::Unknown => return None,
        };
        ledger.service(&ends.service, ends.service_hash, noted, now)
    });
    HostContext { source, service }
}
