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

use sensor_common::context::{
    Ends, HostContext, Known, ServiceWindow, Set, SourceWindow, WINDOW_NAMES, WINDOWS, tick_of,
};
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

/// The values of a context by name, as in `src_new_flows_10s`; a value that is not known is `None`.
pub fn named(context: &HostContext) -> impl Iterator<Item = (String, Option<f64>)> {
    let share = |part: u32, of: u32| if of == 0 { None } else { Some(part as f64 / of as f64) };
    let source = move |w: SourceWindow| {
        let SourceWindow { new_flows, ports, hosts, unanswered, resets, judged, failed, bytes } = w;
        [
            ("src_new_flows", Some(new_flows as f64)),
            ("src_ports", Some(ports as f64)),
            ("src_hosts", Some(hosts as f64)),
            ("src_unanswered", Some(unanswered as f64)),
            ("src_resets", Some(resets as f64)),
            ("src_failed_share", share(failed, judged)),
            ("src_bytes", Some(bytes as f64)),
        ]
    };
    let service = move |w: ServiceWindow| {
        let ServiceWindow { new_flows, sources, unanswered, resets, judged, failed, bytes } = w;
        [
            ("svc_new_flows", Some(new_flows as f64)),
            ("svc_sources", Some(sources as f64)),
            ("svc_unanswered", Some(unanswered as f64)),
            ("svc_resets", Some(resets as f64)),
            ("svc_failed_share", share(failed, judged)),
            ("svc_bytes", Some(bytes as f64)),
        ]
    };
    let HostContext { source: of_source, service: of_service } = *context;
    (0..WINDOWS).flat_map(move |window| {
        let sources = source(of_source.map_or_else(SourceWindow::default, |windows| windows[window]));
        let services = service(of_service.map_or_else(ServiceWindow::default, |windows| windows[window]));
        let sources = sources.map(|(name, value)| (name, value.filter(|_| of_source.is_some())));
        let services = services.map(|(name, value)| (name, value.filter(|_| of_service.is_some())));
        sources
            .into_iter()
            .chain(services)
            .map(move |(name, value)| (format!("{name}_{}", WINDOW_NAMES[window]), value))
    })
}
