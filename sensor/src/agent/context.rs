//! Host context in the poll thread: looks at each flow's record about a second after its start and once a second while it
//! sends, and enters what it finds into the ledger; puts the context of a flow together when it is asked for.
//!
//! Invariant: looks are bounded per poll; a flow that is not looked at now is looked at in a later poll or when it ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sensor_common::context::{HostContext, Key, tick_of};
use sensor_common::counter::{Cause, InterfaceCounters};
use sensor_common::flow::FlowRecord;
use sensor_common::hash::{Seed, hash};
use sensor_common::table::{WAYS, bucket_of, tag_of};

use crate::bpf::load::{ContextTables, Kernel};
use crate::bpf::sys::{Slot, Table};
use crate::config::ContextConfig;
use crate::context::{Brief, Ledger, Watch, ends_of, host_context};
use crate::verdicts::scope::Service;

/// Looks that one poll takes at most: 16 MB of records.
const LOOKS: usize = 16_384;

/// What the poll thread keeps of the context.
pub(super) struct Follower {
    ledger: Ledger,
    /// By slot.
    watches: Vec<Watch>,
    seed: Seed,
    looks: usize,
    /// Lost flows that were entered, of all interfaces.
    lost: u64,
}

impl Follower {
    /// `None` if context is off.
    pub(super) fn new(config: &ContextConfig, kernel: &Kernel) -> Option<Follower> {
        let (sources, services) = config.sizes()?;
        let follower = Follower {
            ledger: Ledger::new(sources, services),
            watches: vec![Watch::default(); kernel.table.capacity()],
            seed: kernel.seed(),
            looks: 0,
            lost: 0,
        };
        let bytes = follower.ledger.memory_bytes() + follower.watches.len() * size_of::<Watch>();
        tracing::info!(
            "host context: {sources} sources, {services} services; the agent's part: {:.1} MiB",
            bytes as f64 / (1 << 20) as f64
        );
        Some(follower)
    }

    /// Flows that were lost before this agent are of no window of its own.
    pub(super) fn begin_with<'a>(&mut self, counters: impl Iterator<Item = &'a InterfaceCounters>) {
        self.lost = counters.map(lost_flows).sum();
    }

    /// A poll begins.
    pub(super) fn begin(&mut self) {
        self.looks = 0;
    }

    /// The index shows `tag` and `seen` for this slot. Ticks for which there is nothing to look at, while it shows the same.
    pub(super) fn look(&mut self, table: &Table, slot: Slot, tag: u32, seen: u16, now_ns: u64) -> u32 {
        let now = tick_of(now_ns);
        // Writers inside at every try: the next poll looks again.
        if self.watches[slot].is_due(tag, seen, now)
            && self.looks < LOOKS
            && let Some(record) = table.copy(slot)
        {
            self.looks += 1;
            self.watches[slot].looked(seen, now);
            self.enter(Some(slot), &record, now_ns, false);
        }
        self.watches[slot].rest(seen, now)
    }

    /// A flow was released from this slot, or (without a slot) came out of the eviction ring.
    pub(super) fn ended(&mut self, slot: Option<Slot>, record: &FlowRecord, now_ns: u64) {
        let slot = slot.or_else(|| {
            let hash = hash(&record.key, |position| self.seed[position]);
            let first = bucket_of(hash, (self.watches.len() / WAYS) as u32) as usize * WAYS;
            let is_of = |slot: &Slot| self.watches[*slot].is_of(tag_of(hash), record.generation);
            (first..first + WAYS).find(is_of)
        });
        self.enter(slot, record, now_ns, true);
    }

    fn enter(&mut self, slot: Option<Slot>, record: &FlowRecord, now_ns: u64, ended: bool) {
        let ends = ends_of(record, &self.seed);
        let mut unseen = Watch::default();
        // A flow that was never looked at has nothing entered yet.
        let watch = match slot {
            Some(slot) => &mut self.watches[slot],
            None => &mut unseen,
        };
        watch.enter(&Brief::of(record), &ends, now_ns, ended, &mut self.ledger);
    }

    /// Takes over how many flows were lost so far, from the counters of all interfaces.
    pub(super) fn lost<'a>(&mut self, counters: impl Iterator<Item = &'a InterfaceCounters>, now_ns: u64) {
        let lost = counters.map(lost_flows).sum();
        self.ledger.lose(lost - self.lost.min(lost), tick_of(now_ns));
        self.lost = lost;
    }

    /// Services, and addresses (port 0), to which at least so many SYNs a second led to no connection. An address is
    /// not named for what goes to those of its services that are. Those in tunnels and VLANs are left out: a limit is
    /// by address.
    pub(super) fn half_open(&self, now_ns: u64, least: f64) -> Vec<Flood> {
        let found = self.ledger.half_open(tick_of(now_ns), least);
        let flood = |(key, rate, share)| Some(Flood { service: service_of(&key)?, rate, share });
        found.into_iter().filter_map(flood).collect()
    }

    /// The context of a flow.
    pub(super) fn context(&self, tables: &ContextTables, record: &FlowRecord, now_ns: u64) -> HostContext {
        host_context(tables, &self.ledger, &ends_of(record, &self.seed), now_ns)
    }
}

/// SYNs to a service or an address that led to no connection.
pub(super) struct Flood {
    /// Port 0: the address.
    pub(super) service: Service,
    /// A second, over the last ten.
    pub(super) rate: f64,
    /// Of these and the connections.
    pub(super) share: f64,
}

/// New flows that no record reached the agent of.
fn lost_flows(counters: &InterfaceCounters) -> u64 {
    let refused = |cause: Cause| counters.unrecorded[cause as usize];
    counters.evicted_lost_flows + refused(Cause::BucketFull) + refused(Cause::BucketBusy)
}

/// The service of a key of the context (see [`sensor_common::context::Key`]).
fn service_of(key: &Key) -> Option<Service> {
    let Key([a, b, c, d, place, vlans, tunnel]) = *key;
    let (protocol, family, port) = ((place >> 24) as u8, (place >> 16) as u8, place as u16);
    let address = match family {
        4 => IpAddr::V4(Ipv4Addr::from_bits(a)),
        6 => IpAddr::V6(Ipv6Addr::from_bits([a, b, c, d].iter().fold(0, |sum, word| sum << 32 | u128::from(*word)))),
        _ => return None,
    };
    (vlans == 0 && tunnel == 0).then_some(Service { address, port, protocol })
}
