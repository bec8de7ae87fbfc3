//! Whose the qdisc is that filters hang under (kernels before 6.6): one of another tool is neither used where it has one side
//! only nor removed.

use sensor::bpf::load::{Kernel, LoadOptions};
use sensor::config::XdpMode;
use sensor_tests::checks::{Must as _, assert_clean, has_xdp};
use sensor_tests::netns::Ns;
use sensor_tests::pins::PinMount;
use sensor_tests::topology::UPLINK;

use crate::clsact::{OTHERS, Turn, filters, lab};

fn tc(netns: &Ns, verb: &str, kind: &str) {
    netns.run("tc", &["qdisc", verb, "dev", UPLINK, kind]).must("change the qdisc");
}

/// Whether the interface has a qdisc of this kind.
fn has(netns: &Ns, kind: &str) -> bool {
    netns.run("tc", &["qdisc", "show", "dev", UPLINK]).must("list the qdiscs").contains(&format!("qdisc {kind} "))
}

#[test]
fn a_qdisc_with_one_side_is_refused() {
    let lab = lab();
    let edge = &lab.edge.netns;
    tc(edge, "add", "ingress");
    edge.run("tc", &[&["filter", "add", "dev", UPLINK, "ingress"][..], &OTHERS].concat())
        .must("add a filter of somebody else");
    let before = edge.run("tc", &["filter", "show", "dev", UPLINK, "ingress"]).must("list the filters");
    let mut kernel = Kernel::load(&LoadOptions::default()).must("load");
    for choice in [XdpMode::Native, XdpMode::Tc] {
        let attach = edge.within(|| kernel.attach(UPLINK, choice, false)).must("enter the edge");
        let error = format!("{:#}", attach.expect_err("sent packets have no place there"));
        for words in ["qdisc \"ingress\" of another tool", &format!("tc qdisc add dev {UPLINK} clsact")] {
            assert!(error.contains(words), "{words:?} is not in: {error}");
        }
        let after = edge.run("tc", &["filter", "show", "dev", UPLINK, "ingress"]).must("list the filters");
        assert_eq!(after, before, "nothing was added or taken off");
        assert!(has(edge, "ingress") && !has_xdp(edge, UPLINK));
        assert_eq!(kernel.watched().must("list"), [0; 0]);
    }

    // As the error says.
    tc(edge, "del", "ingress");
    tc(edge, "add", "clsact");
    let attach = edge.within(|| kernel.attach(UPLINK, XdpMode::Tc, false)).must("enter the edge");
    let attached = attach.must("attach");
    assert_eq!(filters(edge).len(), 2);
    edge.within(|| kernel.detach(attached)).must("enter the edge").must("detach");
    assert!(filters(edge).is_empty() && has(edge, "clsact"), "it is not ours");
}

#[test]
fn what_an_agent_has_removed_is_not_the_next_ones() {
    let (lab, mount) = (lab(), PinMount::new().must("mount a BPF file system"));
    let edge = &lab.edge.netns;
    drop(Turn::begin(edge, &mount, XdpMode::Tc, false).leave());
    // The second adds a qdisc where the first has noted one already.
    tc(edge, "del", "clsact");
    let Turn { mut kernel, attached, .. } = Turn::begin(edge, &mount, XdpMode::Tc, false);
    assert!(kernel.adopted());
    let detach = || attached.into_iter().try_for_each(|one| kernel.detach(one));
    edge.within(detach).must("enter the edge").must("detach");
    assert_clean(edge, UPLINK);
    tc(edge, "add", "clsact");
    drop(kernel.leave(Vec::new()).must("leave"));

    let third = Turn::begin(edge, &mount, XdpMode::Tc, false);
    assert!(third.kernel.adopted());
    third.end(edge);
    assert!(filters(edge).is_empty() && has(edge, "clsact"), "the qdisc of somebody else is removed");
    assert_eq!(mount.pins(), None, "pins are left");
}

#[test]
fn what_came_in_place_of_an_agents_qdisc_stays() {
    let (lab, mount) = (lab(), PinMount::new().must("mount a BPF file system"));
    let edge = &lab.edge.netns;
    let Turn { mut kernel, attached, .. } = Turn::begin(edge, &mount, XdpMode::Native, false);
    tc(edge, "del", "clsact");
    tc(edge, "add", "ingress");
    for one in attached {
        let detach = edge.within(|| kernel.detach(one)).must("enter the edge");
        let error = format!("{:#}", detach.expect_err("its filters went with its qdisc"));
        assert!(!error.contains("qdisc clsact"), "{error}");
    }
    assert!(has(edge, "ingress") && !has_xdp(edge, UPLINK));
}
