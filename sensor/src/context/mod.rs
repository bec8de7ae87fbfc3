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
    /// What `read` makes of the set of a source with this hash; `None` if it cannot be read now.
    fn source<R>(&self, hash: u32, read: impl FnOnce(&Set) -> R) -> Option<R>;
    /// The same for the set of a service.
    fn service<R>(&self, hash: u32, read: impl FnOnce(&Set) -> R) -> Option<R>;
}

/// Source and service of a record's flow.
pub fn ends_of(record: &FlowRecord, seed: &Seed) -> Ends {
    Ends::new(&record.key, record.state & state::INITIATOR_HIGH != 0, |position| seed[position])
}

/// What is known of a flow's source and service at `now_ns`.
pub fn host_context(notes: &impl Notes, ledger: &Ledger, ends: &Ends, now_ns: u64) -> HostContext {
    let now = tick_of(now_ns);
    let noted = notes.source(ends.source_hash, |set| match set.find(&ends.source, ends.source_hash, now) {
        Known::Entry(entry, last) => Some(entry.source(last, now)),
        Known::Quiet => Some([SourceWindow::default(); WINDOWS]),
        Known::Unknown => None,
    });
    let source = noted.flatten().and_then(|noted| ledger.source(&ends.source, ends.source_hash, noted, now));
    let noted = notes.service(ends.service_hash, |set| match set.find(&ends.service, ends.service_hash, now) {
        Known::Entry(entry, last) => Some(entry.service(last, now)),
        Known::Quiet => Some([ServiceWindow::default(); WINDOWS]),
        Known::Unknown => None,
    });
    let service = noted.flatten().and_then(|noted| ledger.service(&ends.service, ends.service_hash, noted, now));
    HostContext { source, service }
}
