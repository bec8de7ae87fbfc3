//! Programs of one process after another on an interface, as filters (kernels before 6.6) and as links, beside what others
//! have there. The agent's own doors to the kernel are called, so that clsact is tried where there is TCX, too.

use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use bytemuck::Zeroable as _;
use sensor::bpf::attach::{Attached, ifindex};
use sensor::bpf::load::{Kernel, LoadOptions};
use sensor::bpf::pins::{Left, Pins};
use sensor::bpf::probe;
use sensor::bpf::sys::Counters;
use sensor::config::XdpMode;
use sensor_common::control::{Control, NO_DSCP};
use sensor_common::counter::{FREED, InterfaceCounters, MIN_INTERFACES};
use sensor_common::flow::FlowRecord;
use sensor_tests::checks::{Must as _, assert_clean};
use sensor_tests::clients::ping;
use sensor_tests::netns::Ns;
use sensor_tests::pins::PinMount;
use sensor_tests::stop::Stop;
use sensor_tests::topology::{EDGE_V4, HostSpec, Lab, LabSpec, UPLINK};

use crate::scene::{STREAM_PORT, Stream};

/// A classic filter that matches nothing.
pub(crate) const OTHERS: [&str; 7] = ["protocol", "ip", "pref", "7", "bpf", "bytecode", "1,6 0 0 0,"];

pub(crate) fn lab() -> Lab {
    Lab::build(&LabSpec { clients: vec![HostSpec::default()], ..LabSpec::default() }).must("build the hosts")
}

/// The directory of the pins, as an agent has it for its life.
fn own(mount: &PinMount) -> Pins {
    let mut pins = Pins::open(&mount.path()).must("open the pins");
    assert!(pins.own().must("lock the pins"), "nobody else has them");
    pins
}

/// One agent's time on the edge's interface.
pub(crate) struct Turn {
    pub(crate) kernel: Kernel,
    pub(crate) attached: Vec<Attached>,
    /// `sensor_tag` was attached by the agent before, and replaced.
    went_on_tagging: bool,
}

impl Turn {
    pub(crate) fn begin(netns: &Ns, mount: &PinMount, choice: XdpMode, tcx: bool) -> Turn {
        let pins = own(mount);
        let options = LoadOptions { frags: probe::kernel().xdp_frags, tagging: true, ..LoadOptions::default() };
        let within = netns.within(|| -> anyhow::Result<Turn> {
            let mut kernel = Kernel::load_pinned(&options, pins)?;
            kernel.resume()?;
            kernel.control.set(&Control { tag_dscp: NO_DSCP, ..bytemuck::Zeroable::zeroed() });
            let mut attached = vec![kernel.attach(UPLINK, choice, tcx)?];
            let went_on_tagging = attached[0].tags();
            kernel.set_tagging(&mut attached[0], true)?;
            kernel.settle(&attached)?;
            Ok(Turn { kernel, attached, went_on_tagging })
        });
        within.must("enter the edge").must("load and attach")
    }

    pub(crate) fn leave(self) -> Left {
        self.kernel.leave(self.attached).must("leave")
    }

    pub(crate) fn end(mut self, netns: &Ns) {
        let detach = || self.attached.into_iter().try_for_each(|one| self.kernel.detach(one));
        netns.within(detach).must("enter the edge").must("detach");
    }

    /// The stream's record.
    fn record(&self) -> FlowRecord {
        let table = &self.kernel.table;
        let mut records = (0..table.capacity()).filter_map(|slot| table.copy(slot));
        let of_stream = |record: &FlowRecord| [record.key.low_port, record.key.high_port].contains(&STREAM_PORT);
        records.find(of_stream).expect("the stream has a record")
    }
}

pub(crate) fn filters(netns: &Ns) -> Vec<String> {
    let list = |side| netns.run("tc", &["filter", "show", "dev", UPLINK, side]).must("list the filters");
    let lines: Vec<String> = [list("ingress"), list("egress")].concat().lines().map(str::to_owned).collect();
    lines.into_iter().filter(|line| line.contains("handle")).collect()
}

fn ours(filters: &[String]) -> usize {
    filters.iter().filter(|line| line.contains("sensor_")).count()
}

#[test]
fn filters_are_replaced_in_place_and_those_of_others_stay() {
    let (lab, mount) = (lab(), PinMount::new().must("mount a BPF file system"));
    let edge = &lab.edge.netns;
    let first = Turn::begin(edge, &mount, XdpMode::Tc, false);
    edge.run("tc", &[&["filter", "add", "dev", UPLINK, "egress"][..], &OTHERS].concat())
        .must("add a filter of somebody else");
    let stream = Stream::start(&lab);
    while stream.received() < 3_000 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let generation = first.record().generation;
    let before = filters(edge);
    assert_eq!((ours(&before), before.len()), (3, 4), "{before:#?}");
    drop(first.leave());
    assert_eq!(filters(edge), before, "what is left stays as it was");

    let second = Turn::begin(edge, &mount, XdpMode::Tc, false);
    assert!(second.kernel.adopted() && second.went_on_tagging);
    let after = filters(edge);
    assert_eq!((ours(&after), after.len()), (3, 4), "{after:#?}");
    for (old, new) in before.iter().zip(&after).filter(|(old, _)| old.contains("sensor_")) {
        let place = |line: &str| line.split(" id ").next().map(str::to_owned);
        assert_eq!(place(old), place(new), "the same priority and handle");
        assert_ne!(old, new, "another program");
    }
    let (sent, arrived) = stream.end();
    assert_eq!(arrived, sent);
    let record = second.record();
    assert_eq!((record.generation, record.forward().packets), (generation, sent), "each packet is in the record");
    second.end(edge);
    let left = filters(edge);
    assert_eq!((ours(&left), left.len()), (0, 1), "{left:#?}");

    // A third finds the qdisc in use, and leaves it; without filters of others it would have gone.
    Turn::begin(edge, &mount, XdpMode::Tc, false).end(edge);
    assert_eq!(filters(edge), left);
    edge.run("tc", &["qdisc", "del", "dev", UPLINK, "clsact"]).must("delete the qdisc");
    Turn::begin(edge, &mount, XdpMode::Tc, false).end(edge);
    assert_clean(edge, UPLINK);
    assert_eq!(mount.pins(), None, "pins are left");
}

#[test]
fn filters_that_were_left_go_with_the_pins() {
    let (lab, mount) = (lab(), PinMount::new().must("mount a BPF file system"));
    let edge = &lab.edge.netns;
    let first = Turn::begin(edge, &mount, XdpMode::Tc, false);
    // As with verdicts that outlive the agent.
    first.kernel.control.set_lease(u64::MAX);
    drop(first.leave());
    assert_eq!(ours(&filters(edge)), 3);
    let pins = own(&mount);
    edge.within(|| sensor::bpf::attach::clear(&pins)).must("enter the edge").must("clear");
    assert_clean(edge, UPLINK);
    assert_eq!(mount.pins(), Some(Vec::new()), "pins are left");
}

#[test]
fn programs_of_others_go_on() {
    if !probe::kernel().tcx {
        return;
    }
    let (lab, mount) = (lab(), PinMount::new().must("mount a BPF file system"));
    let edge = &lab.edge.netns;
    let mut other = Kernel::load(&LoadOptions::default()).must("load programs of somebody else");
    other.control.set(&Control { tag_dscp: NO_DSCP, ..bytemuck::Zeroable::zeroed() });
    let attach = edge.within(|| other.attach(UPLINK, XdpMode::Native, true)).must("enter the edge");
    let attached = attach.must("attach them");
    let ifindex = attached.ifindex;
    let seen = |kernel: &Kernel| {
        let sides = kernel.counters(ifindex).must("read the counters").seen;
        sides.map(|volumes| volumes.iter().map(|volume| volume.packets).sum::<u64>())
    };
    let ping =
        || ping(&lab.clients[0].netns, &["-c", "5", "-i", "0.02", &EDGE_V4.to_string()], &Stop::new()).must("ping");
    drop(Turn::begin(edge, &mount, XdpMode::Tc, true).leave());
    ping();
    let before = seen(&other);
    let second = Turn::begin(edge, &mount, XdpMode::Tc, true);
    ping();
    let between = seen(&other);
    assert!(between[0] >= before[0] + 5 && between[1] >= before[1] + 5, "{before:?}, {between:?}");
    assert!(seen(&second.kernel)[1] >= 10, "both turns are in the counters");
    second.end(edge);
    ping();
    let after = seen(&other);
    assert!(after[0] >= between[0] + 5 && after[1] >= between[1] + 5, "{between:?}, {after:?}");
    edge.within(|| other.detach(attached)).must("enter the edge").must("detach");
    assert_clean(edge, UPLINK);
}

#[test]
fn an_interface_that_was_made_anew_is_watched_anew() {
    for tcx in [true, false] {
        if tcx && !probe::kernel().tcx {
            continue;
        }
        let (lab, mount) = (lab(), PinMount::new().must("mount a BPF file system"));
        let edge = &lab.edge.netns;
        let first = Turn::begin(edge, &mount, XdpMode::Native, tcx);
        let old = first.attached[0].ifindex;
        drop(first.leave());
        edge.ip(&format!("link del {UPLINK}")).must("delete the interface");
        edge.ip(&format!("link add {UPLINK} type veth peer name peer")).must("make it anew");
        let second = Turn::begin(edge, &mount, XdpMode::Native, tcx);
        assert_ne!(second.attached[0].ifindex, old);
        assert_eq!(second.kernel.watched().must("list"), [second.attached[0].ifindex]);
        let pins = mount.pins().unwrap_or_default();
        assert!(!pins.iter().any(|pin| pin.starts_with(&format!("link-{old}-"))), "{pins:?}");
        second.end(edge);
        assert_clean(edge, UPLINK);
        assert_eq!(mount.pins(), None, "pins are left");
    }
}

#[test]
fn an_interface_that_cannot_be_watched_takes_no_slot_and_one_that_goes_takes_its_exemption_along() {
    if !probe::kernel().tcx {
        return;
    }
    let (lab, mount) = (lab(), PinMount::new().must("mount a BPF file system"));
    let edge = &lab.edge.netns;
    let pins = own(&mount);
    let mut kernel = Kernel::load_pinned(&LoadOptions::default(), pins).must("load");
    let ifindex = edge.within(|| ifindex(UPLINK)).must("enter the edge").must("find the interface");
    // In the place of the pin that comes after XDP was attached.
    let obstacle = mount.path().join(format!("link-{ifindex}-egress"));
    std::fs::create_dir(&obstacle).map_err(Into::into).must("make a directory");
    for _ in 0..3 {
        let attach = edge.within(|| kernel.try_attach(UPLINK, XdpMode::Native, true, true)).must("enter the edge");
        let refused = attach.expect_err("there is no place for the pin").error;
        assert!(format!("{refused:#}").contains("cannot pin a link"), "{refused:#}");
        assert_eq!(kernel.watched().must("list"), [0; 0]);
        assert_eq!(kernel.control.exempt_slots(), [0; 0]);
        assert_clean(edge, UPLINK);
    }
    std::fs::remove_dir(&obstacle).map_err(Into::into).must("remove the directory");

    let attach = edge.within(|| kernel.try_attach(UPLINK, XdpMode::Native, true, true)).must("enter the edge");
    let attached = attach.map_err(|refused| refused.error).must("attach");
    assert_eq!(kernel.watched().must("list"), [ifindex]);
    let slot = kernel.counters(ifindex).must("read the counters").slot;
    assert_eq!(kernel.control.exempt_slots(), [slot]);
    for (_, counters) in edge.within(|| kernel.let_go(vec![attached], true)).must("enter the edge") {
        assert_eq!(counters.must("let go").ifindex, ifindex);
    }
    assert_eq!((kernel.watched().must("list").len(), kernel.control.exempt_slots().len()), (0, 0));
    assert_clean(edge, UPLINK);
}

#[test]
fn what_an_agent_gave_up_when_it_was_killed_counts_once() {
    for cleared in [false, true] {
        let (lab, mount) = (lab(), PinMount::new().must("mount a BPF file system"));
        let edge = &lab.edge.netns;
        let first = Turn::begin(edge, &mount, XdpMode::Native, probe::kernel().tcx);
        let ifindex = first.attached[0].ifindex;
        ping(&lab.clients[0].netns, &["-c", "20", "-i", "0.02", &EDGE_V4.to_string()], &Stop::new()).must("ping");
        edge.ip(&format!("link set {UPLINK} down")).must("set the interface down");
        let counted = first.kernel.counters(ifindex).must("read the counters");
        drop(first.leave());

        // The steps of an agent that gives an interface up, until it is killed.
        let map = MapData::from_pin(mount.path().join("COUNTERS")).map_err(Into::into).must("open the map");
        let mut map = PerCpuArray::<_, Counters>::try_from(Map::PerCpuArray(map)).map_err(Into::into).must("open it");
        let mut write = |entry: u32, change: &dyn Fn(&mut [Counters])| {
            let mut values = map.get(&entry, 0).map_err(Into::into).must("read the counters").to_vec();
            change(&mut values);
            let values = PerCpuValues::try_from(values).map_err(Into::into).must("counters of all CPUs");
            map.set(entry, values, 0).map_err(Into::into).must("write the counters");
        };
        // Behind the slots.
        write(MIN_INTERFACES, &|gone| {
            gone[0].0.add(&counted);
            gone[0].0.ifindex = ifindex;
        });
        if cleared {
            let freed = InterfaceCounters { ifindex: FREED, ..InterfaceCounters::zeroed() };
            write(counted.slot, &|values| values.fill(Counters(freed)));
        }

        let second = Turn::begin(edge, &mount, XdpMode::Native, probe::kernel().tcx);
        let gone = second.kernel.gone().must("read the counters");
        assert_eq!((gone.ifindex, gone.seen), (0, counted.seen));
        let again = second.kernel.counters(ifindex).must("the interface is watched again");
        assert_eq!(again.seen, InterfaceCounters::zeroed().seen, "they are among the gone ones");
        second.end(edge);
        assert_clean(edge, UPLINK);
    }
}
