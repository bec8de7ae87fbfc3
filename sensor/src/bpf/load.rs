//! Embedded object → loaded programs and mapped tables. Called by the agent at start, and by tests and benches that
//! run the programs without an interface.
//!
//! [`options`] are what is decided before, [`watch`] keeps the table of interfaces in the counters, [`adopt`] is what agents leave to
//! each other.

mod adopt;
mod options;
mod watch;

use std::io::Read as _;

use anyhow::{Context as _, bail};
use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use aya::programs::{Program, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use bytemuck::Zeroable as _;
use sensor_common::control::{CLOCK_KERNEL, CLOCK_REPLAY};
use sensor_common::counter::{MAX_INTERFACES, MIN_INTERFACES};
use sensor_common::flow::FlowRecord;
use sensor_common::fragment;
use sensor_common::hash::{SEED_WORDS, Seed};
use sensor_common::schema::{self, Meta};
use sensor_common::table::{MAX_BUCKETS, MIN_BUCKETS, WAYS};
use sensor_common::verdict::MAX_VERDICTS;

use self::adopt::{filter_programs, places};
pub use self::options::LoadOptions;
use super::books;
pub use super::context::ContextTables;
use super::context::context_sets;
use super::memory::Memory;
use super::object::Object;
use super::pins::{Pins, Size};
pub use super::run::{Hook, ProgramInfo, Runner, TestRunOptions, TestRunResult};
use super::sys::{ControlPage, Counters, Sets, Table};
use super::verdicts::Verdicts;

/// Ring of the programs' messages.
const LOG_BYTES: u32 = 1 << 17;
/// The largest page that a kernel of this architecture has, the least that a ring can be.
const PAGE: u32 = if cfg!(target_arch = "x86_64") { 1 << 12 } else { 1 << 16 };

/// The programs in the kernel and the memory shared with them.
pub struct Kernel {
    pub(super) ebpf: Ebpf,
    /// The flow table.
    pub table: Table,
    /// The control page.
    pub control: ControlPage,
    /// Verdicts by flow, source and service, and the never-drop list.
    pub verdicts: Verdicts,
    /// The host context that the programs keep, if it is on.
    pub context: Option<ContextTables>,
    counters: PerCpuArray<MapData, Counters>,
    /// Interfaces that the counters' table has slots for.
    slots: u32,
    evicted: RingBuf<MapData>,
    /// A record of the ring that the last agent had counted, but not taken.
    counted: Option<u64>,
    /// The same ring as it was opened first: programs that are loaded later name it by that descriptor.
    first_evicted: Option<RingBuf<MapData>>,
    pub(super) xdp: &'static str,
    stack_ingress: bool,
    tagging: bool,
    memory: Memory,
    seed: Seed,
    pub(super) pins: Option<Pins>,
    adopted: bool,
    /// Interfaces on which the clsact qdisc is ours to remove.
    pub(super) qdiscs: Vec<u32>,
    /// Programs of agents before this one that may still be filters under clsact.
    pub(super) earlier: Vec<u32>,
    logs: Option<Logs>,
    /// Programs that are loaded later name maps by their descriptors: these stay open.
    #[expect(dead_code, reason = "held, not used")]
    maps: Vec<aya::maps::Map>,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("table", &self.table).field("xdp", &self.xdp).finish_non_exhaustive()
    }
}

impl Kernel {
    /// Loads programs and maps. Nothing is attached.
    ///
    /// # Errors
    /// If the kernel refuses a map or a program; the error ends with the verifier's last lines.
    pub fn load(options: &LoadOptions) -> anyhow::Result<Kernel> {
        Kernel::load_at(options, None)
    }

    /// As [`Kernel::load`], with maps pinned in `pins`: those that are there if another agent left them, else new ones. The
    /// agent that left them may run still; then [`Kernel::resume`] is for when it does not any more.
    ///
    /// # Errors
    /// As [`Kernel::load`], or the maps that are there do not fit ([`Pins::check`]).
    pub fn load_pinned(options: &LoadOptions, pins: Pins) -> anyhow::Result<Kernel> {
        Kernel::load_at(options, Some(pins))
    }

    fn load_at(options: &LoadOptions, mut pins: Option<Pins>) -> anyhow::Result<Kernel> {
        let buckets = u32::try_from(options.flows / WAYS).context("the flow table is too large")?;
        if !options.flows.is_power_of_two() || !(MIN_BUCKETS..=MAX_BUCKETS).contains(&buckets) {
            bail!(
                "a flow table of {} flows is not possible: use a power of two from {} to {}",
                options.flows,
                MIN_BUCKETS as usize * WAYS,
                MAX_BUCKETS as usize * WAYS
            );
        }
        if !(1..=MAX_VERDICTS).contains(&options.max_verdicts) {
            bail!("{} verdicts are not possible: use a number from 1 to {MAX_VERDICTS}", options.max_verdicts);
        }
        let slots = options.interfaces;
        if !slots.is_power_of_two() || !(MIN_INTERFACES..=MAX_INTERFACES).contains(&slots) {
            bail!("{slots} interfaces are not possible: use a power of two from {MIN_INTERFACES} to {MAX_INTERFACES}");
        }
        let (source_sets, service_sets) = context_sets(options.context)?;
        let sizes = options.sizes();
        let left = pins.as_ref().map_or(Ok(None), Pins::meta)?;
        if let (Some(pins), Some(meta)) = (&pins, &left) {
            pins.check(meta, &sizes)?;
        }
        let seed = match (&left, options.seed) {
            (Some(meta), _) => meta.seed,
            (None, Some(seed)) => seed,
            (None, None) => random_seed()?,
        };
        // Nothing is written where the programs are to be silent.
        let log_bytes = if options.log_level > 0 { LOG_BYTES } else { PAGE };
        let clock = if options.replay_clock { CLOCK_REPLAY } else { CLOCK_KERNEL };
        // x86-64 does not reorder stores; elsewhere a lock is given back with a full barrier.
        let strong_order = cfg!(target_arch = "x86_64") as u8;
        let xdp = if options.frags { "sensor_xdp_frags" } else { "sensor_xdp" };
        let object = Object::of(options);
        let mut loader = EbpfLoader::new();
        for map in pins.iter().flat_map(|_| schema::MAPS) {
            loader.map_pin_path(map.name, pins.as_ref().map_or_else(Default::default, |pins| pins.map_path(map.name)));
        }
        for Size { map, entries, setting: _, spare: _ } in &sizes {
            loader.map_max_entries(map, *entries);
        }
        for (map, entries) in &object.entries {
            loader.map_max_entries(map, *entries);
        }
        for (name, value) in &object.globals {
            loader.override_global(name, value, true);
        }
        let mut ebpf = loader
            .override_global("BUCKETS", &buckets, true)
            .override_global("INTERFACE_SLOTS", &slots, true)
            .override_global("SEED", &seed[..], true)
            .override_global("CLOCK", &clock, true)
            .override_global("TUNNELS", &options.parser.tunnels, true)
            .override_global("VXLAN_PORTS", &options.parser.vxlan_ports.packed(), true)
            .override_global("GENEVE_PORTS", &options.parser.geneve_ports.packed(), true)
            .override_global("PAYLOAD_HINTS", &(options.parser.payload_hints as u8), true)
            .override_global("STRONG_ORDER", &strong_order, true)
            .override_global("LOCK_PATIENCE_NS", &options.lock_patience_ns, true)
            .map_max_entries("AYA_LOGS", log_bytes)
            .override_global("AYA_LOG_LEVEL", &options.log_level, false)
            .override_global("SOURCE_SETS", &source_sets, true)
            .override_global("SERVICE_SETS", &service_sets, true)
            .load(object.bytes)
            .context("the kernel refused the maps (is this root, or CAP_BPF and CAP_NET_ADMIN? see `sensor doctor`)")?;
        check_maps(&ebpf, &object)?;
        let memory = Memory::of(&ebpf)?;
        memory.check(&ebpf, options.max_memory)?;
        let mut kernel_programs = vec![xdp, "sensor_egress"];
        if options.tagging {
            kernel_programs.push("sensor_tag");
        }
        kernel_programs.extend(object.programs);
        for name in kernel_programs {
            load_program(&mut ebpf, name)?;
        }
        let index = take(&mut ebpf, "INDEX")?;
        let records = take(&mut ebpf, "RECORDS")?;
        let control_map = take(&mut ebpf, "CONTROL")?;
        let mut maps = Vec::new();
        let context = match options.context {
            Some(_) => {
                let (sources, services) = (take(&mut ebpf, "SOURCES")?, take(&mut ebpf, "SERVICES")?);
                let tables = ContextTables {
                    sources: Sets::new(array_fd(&sources)?, source_sets as usize).context("sources of the context")?,
                    services: Sets::new(array_fd(&services)?, service_sets as usize)
                        .context("services of the context")?,
                };
                maps.extend([sources, services]);
                Some(tables)
            }
            None => None,
        };
        let table = Table::new(array_fd(&index)?, array_fd(&records)?, buckets as usize)?;
        let control = ControlPage::new(array_fd(&control_map)?)?;
        let verdicts = Verdicts::new(&mut ebpf, ControlPage::new(array_fd(&control_map)?)?, seed, left.is_some())?;
        let counters = PerCpuArray::try_from(take(&mut ebpf, "COUNTERS")?).context("map COUNTERS")?;
        let evicted = RingBuf::try_from(take(&mut ebpf, "EVICTED")?).context("map EVICTED")?;
        let logs = if options.log_level > 0 { Some(logs(&mut ebpf)?) } else { None };
        maps.extend([index, records, control_map]);
        let adopted = left.is_some();
        if let Some(pins) = &mut pins {
            // What another agent left stays until all of it is taken over.
            pins.leave(adopted);
        }
        if let (Some(pins), None) = (&pins, left) {
            let netns = super::pins::netns()?;
            let programs = places(&filter_programs(&ebpf));
            let pid = std::process::id();
            pins.set_meta(&Meta { version: schema::VERSION, netns, seed, pid, programs, ..Meta::zeroed() })?;
        }
        Ok(Kernel {
            pins,
            adopted,
            qdiscs: left.map_or_else(Vec::new, |meta| meta.qdiscs.into_iter().filter(|number| *number != 0).collect()),
            earlier: left
                .map_or_else(Vec::new, |meta| meta.programs.into_iter().filter(|number| *number != 0).collect()),
            ebpf,
            table,
            control,
            verdicts,
            context,
            counters,
            slots,
            evicted,
            counted: None,
            first_evicted: None,
            xdp,
            stack_ingress: false,
            tagging: options.tagging,
            memory,
            seed,
            logs,
            maps,
        })
    }

    /// Memory of all maps.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// The hash keys of this load, for whoever looks a flow up in the table (tests, and captures through the programs).
    pub fn seed(&self) -> Seed {
        self.seed
    }

    /// Forgets the datagrams whose later fragments would find their flow. Only while no program runs.
    ///
    /// # Errors
    /// If the kernel refuses to write the map.
    pub fn forget_fragments(&mut self) -> anyhow::Result<()> {
        const EMPTY: [u8; size_of::<fragment::Slot>()] = [0; size_of::<fragment::Slot>()];
        let map = self.ebpf.map_mut("FRAGMENTS").context("the eBPF object has no map FRAGMENTS: rebuild it")?;
        let mut slots = Array::<_, [u8; EMPTY.len()]>::try_from(map).context("map FRAGMENTS")?;
        for number in 0..fragment::SLOTS {
            slots.set(number, EMPTY, 0).context("writing map FRAGMENTS")?;
        }
        Ok(())
    }

    /// Loads `sensor_ingress`, if it was not loaded: only interfaces whose driver has no XDP need it.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub fn load_stack_ingress(&mut self) -> anyhow::Result<()> {
        if !self.stack_ingress {
            load_program(&mut self.ebpf, "sensor_ingress")?;
            self.stack_ingress = true;
            self.note_meta()?;
        }
        Ok(())
    }

    /// Whether `sensor_tag` was loaded.
    pub fn tagging(&self) -> bool {
        self.tagging
    }

    /// The next record that the programs gave up for a new flow.
    pub fn next_evicted(&mut self) -> Option<FlowRecord> {
        let item = self.evicted.next()?;
        let record: FlowRecord = bytemuck::try_pod_read_unaligned(item.get(..size_of::<FlowRecord>())?).ok()?;
        // The last agent may have been killed after it had counted this one.
        if self.counted.take() != Some(books::fingerprint(&record)) {
            self.control.begin_eviction(&record);
            self.control.add_up();
        }
        drop(item);
        self.control.moved();
        Some(record)
    }

    /// Frees a slot as [`Table::release_into`], and writes what is taken into the books.
    pub fn release(&self, slot: usize, generation: u32, last_ns: u64) -> Option<FlowRecord> {
        self.table.release_into(slot, generation, last_ns, Some(&self.control))
    }

    pub(super) fn xdp_program(&mut self) -> anyhow::Result<&mut Xdp> {
        program(&mut self.ebpf, self.xdp)
    }

    pub(super) fn tc_program(&mut self, hook: Hook) -> anyhow::Result<&mut SchedClassifier> {
        let name = self.tc_name(hook);
        program(&mut self.ebpf, name)
    }

    pub(super) fn tc_name(&self, hook: Hook) -> &'static str {
        match hook {
            Hook::Tag => "sensor_tag",
            Hook::StackIngress => "sensor_ingress",
            _ => "sensor_egress",
        }
    }

    /// What passes on the messages that the programs wrote since its last call, through the `log` facade; `None` if they
    /// were loaded with log level 0. A call can take as long as the programs go on writing.
    pub fn take_logs(&mut self) -> Option<Logs> {
        self.logs.take()
    }
}

/// Reads the programs' messages. (aya-log's logger names the `log` crate in its type; a closure does not.)
pub type Logs = Box<dyn FnMut() + Send>;

fn logs(ebpf: &mut Ebpf) -> anyhow::Result<Logs> {
    let mut logger = aya_log::EbpfLogger::init(ebpf).context("messages of the programs (--bpf-log)")?;
    Ok(Box::new(move || logger.flush()))
}

fn take(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<aya::maps::Map> {
    ebpf.take_map(name).with_context(|| format!("the eBPF object has no map {name}: rebuild it (`cargo xtask ebpf`)"))
}

fn array_fd(map: &aya::maps::Map) -> anyhow::Result<std::os::fd::BorrowedFd<'_>> {
    match map {
        aya::maps::Map::Array(data) => Ok(std::os::fd::AsFd::as_fd(data.fd())),
        other => bail!("expected an array map, found {other:?}"),
    }
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program = ebpf.program_mut(name).with_context(|| no_program(name))?;
    program.try_into().with_context(|| format!("program {name} is of another type"))
}

fn no_program(name: &str) -> String {
    format!("the eBPF object has no program {name}: rebuild it (`cargo xtask ebpf`)")
}

pub(super) fn load_program(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<()> {
    let result = match ebpf.program_mut(name).with_context(|| no_program(name))? {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => bail!("program {name} is of another type"),
    };
    result.with_context(|| format!("the kernel's verifier refused program {name}"))
}

/// What is not in the schema would not be carried over to the next agent, or with another layout.
fn check_maps(ebpf: &Ebpf, object: &Object) -> anyhow::Result<()> {
    for (name, map) in ebpf.maps() {
        // Constants, the messages of the programs, and what no agent has.
        let is_own = object.own_maps.is_some_and(|prefix| name.starts_with(prefix));
        if name.starts_with('.') || name.starts_with("AYA_LOG") || is_own {
            continue;
        }
        let data = super::pins::map_data(map).with_context(|| format!("map {name} is of a type that is not pinned"))?;
        let info = data.info().with_context(|| format!("what the kernel says of map {name}"))?;
        let is_known = |known: &&schema::Map| {
            let sizes = (known.key_size, known.value_size);
            known.name == name && sizes == (info.key_size(), info.value_size())
        };
        if !schema::MAPS.iter().any(|known| is_known(&known)) {
            bail!("map {name} of the eBPF object is not in sensor_common::schema::MAPS, or there with other sizes");
        }
    }
    Ok(())
}

fn random_seed() -> anyhow::Result<Seed> {
    let mut bytes = [0u8; SEED_WORDS * 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .context("no random hash keys from /dev/urandom")?;
    Ok(bytemuck::cast(bytes))
}
