//! The maps of verdicts by flow, source, prefix and service, the never-drop list, and the part of the control page that
//! says what of all this the programs look at.
//!
//! Invariant: the control page never says that a map is empty while it is not, and the epoch of the never-drop list moves
//! on after each change of it. Owned by the poll thread ([`super::load::Kernel::verdicts`]); expired entries have no effect, but stay
//! until they are removed, and one of a prefix hides a shorter prefix around it.

mod allow;
mod sources;

use std::net::IpAddr;

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError};
use ipnet::IpNet;
use sensor_common::flow::FlowKey;
use sensor_common::hash::Seed;
use sensor_common::verdict::{Action, Entry, KnownSet, Origin, PrefixData, ServiceKey, known};

use self::sources::Sources;
use super::sys::{ControlPage, Plain};

/// 16 bytes of an address, IPv4 mapped ([`sensor_common::verdict::mapped`]).
type Address = [u8; 16];

/// Verdict maps and never-drop list of the loaded programs.
pub struct Verdicts {
    flows: HashMap<MapData, Plain<FlowKey>, Plain<Entry>>,
    sources: Sources,
    services: HashMap<MapData, Plain<ServiceKey>, Plain<Entry>>,
    allowed: LpmTrie<MapData, Plain<PrefixData>, u32>,
    ports: Array<MapData, u64>,
    known: Array<MapData, KnownSet>,
    seed: Seed,
    control: ControlPage,
    /// Entries of `flows` and `services`.
    entries: [u32; 2],
    epoch: u32,
}

impl std::fmt::Debug for Verdicts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verdicts").field("entries", &self.len()).field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// Places in [`Verdicts::entries`].
const FLOWS: usize = 0;
const SERVICES: usize = 1;

/// A destination service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    /// Its address.
    pub address: IpAddr,
    /// Its port; 0: all ports of the address.
    pub port: u16,
    /// IP protocol number; limits of half-open attempts concern TCP (6) only.
    pub protocol: u8,
}

impl Verdicts {
    /// Takes the maps of a loaded object. What is in them (maps of an earlier agent) stays. `control`: a mapping of the
    /// control page of its own. `seed`: the hash keys of this load. `adopted`: another agent may still write all of this; nothing is touched before
    /// [`Verdicts::look_again`].
    ///
    /// # Errors
    /// If the object lacks a map, or the kernel refuses to read one.
    pub(super) fn new(ebpf: &mut Ebpf, control: ControlPage, seed: Seed, adopted: bool) -> anyhow::Result<Verdicts> {
        let mut take = |name: &str| -> anyhow::Result<Map> {
            ebpf.take_map(name).with_context(|| format!("the eBPF object has no map {name}: rebuild it"))
        };
        let mut verdicts = Verdicts {
            flows: HashMap::try_from(take("FLOW_VERDICTS")?).context("map FLOW_VERDICTS")?,
            sources: Sources::new(take("SINGLE_SOURCES")?, take("SOURCE_VERDICTS")?)?,
            services: HashMap::try_from(take("SERVICE_LIMITS")?).context("map SERVICE_LIMITS")?,
            allowed: LpmTrie::try_from(take("ALLOWED")?).context("map ALLOWED")?,
            ports: Array::try_from(take("ALLOWED_PORTS")?).context("map ALLOWED_PORTS")?,
            known: Array::try_from(take("KNOWN")?).context("map KNOWN")?,
            epoch: 0,
            seed,
            control,
            entries: [0; 2],
        };
        if !adopted {
            verdicts.look_again()?;
        }
        Ok(verdicts)
    }

    /// Takes over what is in the maps: another agent wrote them, up to now.
    ///
    /// # Errors
    /// If the kernel refuses to read a map.
    pub(super) fn look_again(&mut self) -> anyhow::Result<()> {
        self.sources.look_again()?;
        self.entries = [self.flows.keys().count() as u32, self.services.keys().count() as u32];
        self.publish();
        self.move_on();
        Ok(())
    }

    /// Entries of verdicts on flows, on sources and prefixes, and of services with a limit, expired ones included.
    pub fn len(&self) -> [u32; 3] {
        let [flows, services] = self.entries;
        [flows, self.sources.len(), services]
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == [0; 3]
    }

    /// The strongest action that is done for verdicts of each origin. One store: it holds for the next packet.
    pub fn set_ceilings(&self, ceiling: impl Fn(Origin) -> Action) {
        self.control.set_ceilings(Origin::ALL.map(ceiling));
    }

    /// Adds or renews the verdict on a flow; a renewed one keeps its counts and the state of its rate. The flow's record, if
    /// there is one, is the caller's to stamp ([`super::sys::Table::store_verdict`]); one that is started from now on has the
    /// verdict at once. Action pass makes the flow one that is never dropped.
    ///
    /// # Errors
    /// If the map is full (`policy.max_verdicts`), or the kernel refuses.
    pub fn set_flow(&mut self, key: &FlowKey, entry: &Entry) -> anyhow::Result<()> {
        let key = Plain(*key);
        let before = found(self.flows.get(&key, 0)).context("reading map FLOW_VERDICTS")?;
        let value = renewed(entry, before);
        self.flows.insert(key, value, 0).context("writing map FLOW_VERDICTS (full? see policy.max_verdicts)")?;
        self.count(FLOWS, before.is_none(), 1);
        self.exempted(before, Some(value));
        Ok(())
    }

    /// Takes a flow's verdict back; what it was. A word in the flow's record is the caller's to clear.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove_flow(&mut self, key: &FlowKey) -> anyhow::Result<Option<Entry>> {
        let key = Plain(*key);
        let before = found(self.flows.get(&key, 0)).context("reading map FLOW_VERDICTS")?;
        if before.is_some() {
            self.flows.remove(&key).context("writing map FLOW_VERDICTS")?;
            self.count(FLOWS, true, -1);
            self.exempted(before, None);
        }
        Ok(before.map(|entry| entry.0))
    }

    /// The verdict on a flow.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn flow(&self, key: &FlowKey) -> anyhow::Result<Option<Entry>> {
        let entry = found(self.flows.get(&Plain(*key), 0)).context("reading map FLOW_VERDICTS")?;
        Ok(entry.map(|entry| entry.0))
    }

    /// All verdicts on flows.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn flows(&self) -> anyhow::Result<Vec<(FlowKey, Entry)>> {
        let all = self.flows.iter().map(|pair| pair.map(|(key, entry)| (key.0, entry.0)));
        all.collect::<Result<_, _>>().context("reading map FLOW_VERDICTS")
    }

    /// Adds or renews the verdict on the sources in a prefix (of one address: /32 or /128). It concerns flows that they
    /// start, from their next packet that has no record; records that there are, are the caller's to stamp. Of several
    /// prefixes that hold a source, the longest counts.
    ///
    /// # Errors
    /// If the map is full (`policy.max_verdicts`), or the kernel refuses.
    pub fn set_source(&mut self, prefix: IpNet, entry: &Entry) -> anyhow::Result<()> {
        if self.sources.set(prefix, entry)? {
            self.publish();
        }
        Ok(())
    }

    /// Takes the verdict on exactly this prefix back; what it was.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove_source(&mut self, prefix: IpNet) -> anyhow::Result<Option<Entry>> {
        let before = self.sources.remove(prefix)?;
        if before.is_some() {
            self.publish();
        }
        Ok(before)
    }

    /// The verdict on exactly this prefix.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn source(&self, prefix: IpNet) -> anyhow::Result<Option<Entry>> {
        self.sources.get(prefix)
    }

    /// All verdicts on sources and prefixes.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn sources(&self) -> anyhow::Result<Vec<(IpNet, Entry)>> {
        self.sources.all()
    }

    /// Bounds the half-open attempts to a service, or to an address (port 0: to those of its ports that have no limit
    /// of their own). While more TCP SYNs come from outside than the entry's packet rate, those that no verdict
    /// concerns are dropped the first time, but for those of known clients ([`Verdicts::set_note_known`]), and pass
    /// when they come again ([`sensor_common::verdict::repeat`]).
    ///
    /// # Errors
    /// If the map is full ([`sensor_common::verdict::MAX_SERVICES`]), or the kernel refuses.
    pub fn set_service(&mut self, service: Service, entry: &Entry) -> anyhow::Result<()> {
        let key = Plain(service_key(service));
        let before = found(self.services.get(&key, 0)).context("reading map SERVICE_LIMITS")?;
        self.services.insert(key, renewed(entry, before), 0).context("writing map SERVICE_LIMITS (full?)")?;
        self.count(SERVICES, before.is_none(), 1);
        Ok(())
    }

    /// Takes a service's limit back; what it was.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove_service(&mut self, service: Service) -> anyhow::Result<Option<Entry>> {
        let key = Plain(service_key(service));
        let before = found(self.services.get(&key, 0)).context("reading map SERVICE_LIMITS")?;
        if before.is_some() {
            self.services.remove(&key).context("writing map SERVICE_LIMITS")?;
            self.count(SERVICES, true, -1);
        }
        Ok(before.map(|entry| entry.0))
    }

    /// All services with a limit.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn services(&self) -> anyhow::Result<Vec<(Service, Entry)>> {
        let service = |key: ServiceKey| Service {
            address: address_of(bytemuck::cast(key.address)),
            port: key.port,
            protocol: key.protocol,
        };
        let all = self.services.iter().map(|pair| pair.map(|(key, entry)| (service(key.0), entry.0)));
        all.collect::<Result<_, _>>().context("reading map SERVICE_LIMITS")
    }

    /// Whether the programs remember sources that complete a handshake, so that limits of half-open attempts exempt them
    /// for [`sensor_common::verdict::KNOWN_NS`]. Worth switching on before there is a limit.
    pub fn set_note_known(&self, note: bool) {
        self.control.set_note_known(note);
    }

    /// Remembers a source as of a handshake at `at_ns` (monotonic).
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn know(&mut self, source: IpAddr, at_ns: u64) -> anyhow::Result<()> {
        let place = self.place(source);
        let mut set = self.known.get(&place.set, 0).context("reading map KNOWN")?;
        set[known::way_of(&set, place, at_ns)] = known::word(place, at_ns);
        self.known.set(place.set, set, 0).context("writing map KNOWN")
    }

    /// Whether a source completed a handshake not long before `now_ns` (monotonic).
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn knows(&self, source: IpAddr, now_ns: u64) -> anyhow::Result<bool> {
        let place = self.place(source);
        let set = self.known.get(&place.set, 0).context("reading map KNOWN")?;
        Ok(set.iter().any(|word| known::holds(*word, place, now_ns)))
    }

    /// Sources that are remembered for a handshake, however long ago.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn known_sources(&self) -> anyhow::Result<usize> {
        let used = |set: Result<KnownSet, MapError>| Ok(set?.iter().filter(|word| **word != 0).count());
        self.known.iter().map(used).sum::<Result<_, MapError>>().context("reading map KNOWN")
    }

    fn place(&self, source: IpAddr) -> known::Place {
        known::place(&bytemuck::cast(address_key(source)), |position| self.seed[position])
    }

    fn count(&mut self, map: usize, changed: bool, by: i32) {
        if changed {
            self.entries[map] = self.entries[map].saturating_add_signed(by);
            self.publish();
        }
    }

    fn publish(&self) {
        let [flows, services] = self.entries;
        self.control.set_verdict_counts(flows, self.sources.maps(), services);
    }

    /// A flow that is allowed now, or is not any more, changes the never-drop list.
    fn exempted(&mut self, before: Option<Plain<Entry>>, after: Option<Plain<Entry>>) {
        let passes = |entry: Option<Plain<Entry>>| entry.is_some_and(|entry| entry.0.action == Action::Pass as u8);
        if passes(before) || passes(after) {
            self.move_on();
        }
    }
}

fn renewed(entry: &Entry, before: Option<Plain<Entry>>) -> Plain<Entry> {
    let mut entry = *entry;
    if let Some(Plain(before)) = before {
        entry.carry_on(&before);
    }
    Plain(entry)
}

/// A key that is not there is no error.
fn found<T>(outcome: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

fn address_key(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn address_of(key: Address) -> IpAddr {
    IpAddr::from(key).to_canonical()
}

fn service_key(service: Service) -> ServiceKey {
    let Service { address, port, protocol } = service;
    ServiceKey { address: bytemuck::cast(address_key(address)), port, protocol, reserved: 0 }
}
