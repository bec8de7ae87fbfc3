//! Single addresses and prefixes are in two maps, and the longest match is what counts, as if they were in one.

use sensor::bpf::load::{Hook, Kernel, LoadOptions};
use sensor_common::verdict::{Action, Entry, Origin, Rate, round_expiry};

use crate::rig::{SECOND_NS, START_NS, XDP_DROP, XDP_PASS, counters, load, options, run, truth};
use crate::verdicts_scopes::{UNTIL_NS, entry, kernel, prefix, syn, udp};

const V4: &str = "198.19.0.1:80";
const V6: &str = "[2001:db8:9::1]:80";

/// What a new flow of this source meets.
fn answer(kernel: &Kernel, from: &str) -> u32 {
    let port = counters(kernel).flows_created + counters(kernel).dropped_new + 1;
    let (from, to) = if from.contains(':') { (format!("[{from}]:{port}"), V6) } else { (format!("{from}:{port}"), V4) };
    run(kernel, Hook::Ingress, &syn(&from, to))
}

fn packets(kernel: &Kernel, of: &str) -> u64 {
    kernel.verdicts.source(prefix(of)).expect("read").expect("set").packets
}

#[test]
fn an_address_goes_before_the_prefixes_around_it_and_each_counts_its_own() {
    let mut kernel = kernel();
    let wide = [("198.18.1.0/24", "198.18.1"), ("2001:db8:1::/48", "2001:db8:1:")];
    for (number, (around, start)) in wide.into_iter().enumerate() {
        let (dot, host) = if number == 0 { (".", "/32") } else { (":", "/128") };
        let address = |last: u32| format!("{start}{dot}{last}");
        let single = |last: u32| prefix(&format!("{}{host}", address(last)));
        // Of one kind only, then of both, then of one again: what the programs skip changes each time.
        kernel.verdicts.set_source(single(1), &entry(Action::Drop)).expect("set");
        assert_eq!([1, 2].map(|last| answer(&kernel, &address(last))), [XDP_DROP, XDP_PASS], "an address");
        kernel.verdicts.set_source(prefix(around), &entry(Action::Drop)).expect("set");
        kernel.verdicts.set_source(single(3), &entry(Action::Pass)).expect("an exception");
        assert_eq!([1, 2, 3].map(|last| answer(&kernel, &address(last))), [XDP_DROP, XDP_DROP, XDP_PASS], "both");
        assert_eq!(packets(&kernel, &single(1).to_string()), 2);
        assert_eq!((packets(&kernel, around), packets(&kernel, &single(3).to_string())), (1, 0));
        // The network's own address, too, is another entry than the network.
        kernel.verdicts.set_source(single(0), &entry(Action::Tag)).expect("set");
        assert_eq!(answer(&kernel, &address(0)), XDP_PASS);
        assert_eq!(packets(&kernel, around), 1);
        assert_eq!(kernel.verdicts.len(), [0, 4, 0]);
        truth(&kernel);
        for last in [0, 1, 3] {
            assert!(kernel.verdicts.remove_source(single(last)).expect("remove").is_some());
            assert!(kernel.verdicts.remove_source(single(last)).expect("remove").is_none(), "gone");
        }
        assert_eq!([0, 1, 3].map(|last| answer(&kernel, &address(last))), [XDP_DROP; 3], "the prefix alone");
        assert_eq!(kernel.verdicts.remove_source(prefix(around)).expect("remove").expect("set").packets, 4);
        assert_eq!([0, 1, 2].map(|last| answer(&kernel, &address(last))), [XDP_PASS; 3], "nothing");
        assert!(kernel.verdicts.is_empty());
    }
    truth(&kernel);
}

#[test]
fn an_ipv4_address_is_not_its_ipv6_form() {
    let mut kernel = kernel();
    kernel.verdicts.set_source(prefix("198.18.1.1/32"), &entry(Action::Drop)).expect("set");
    assert_eq!(answer(&kernel, "198.18.1.1"), XDP_DROP);
    assert_eq!(answer(&kernel, "::ffff:198.18.1.1"), XDP_PASS);
    kernel.verdicts.set_source(prefix("c612:101::/128"), &entry(Action::Drop)).expect("set");
    kernel.verdicts.remove_source(prefix("198.18.1.1/32")).expect("remove");
    assert_eq!(answer(&kernel, "198.18.1.1"), XDP_PASS);
}

#[test]
fn an_address_whose_time_is_over_hides_no_prefix() {
    let mut kernel = kernel();
    let early = |action| Entry::new(action, Origin::Operator, 8, START_NS + 60 * SECOND_NS);
    let after = round_expiry(START_NS + 60 * SECOND_NS);
    for (single, action) in [("198.18.1.1", Action::Pass), ("198.18.1.2", Action::Drop)] {
        kernel.verdicts.set_source(prefix(&format!("{single}/32")), &early(action)).expect("set");
    }
    kernel.verdicts.set_source(prefix("198.18.1.3/32"), &early(Action::Drop)).expect("set");
    kernel.verdicts.set_source(prefix("198.18.1.0/31"), &entry(Action::Drop)).expect("set");
    kernel.verdicts.set_source(prefix("198.18.1.2/32"), &early(Action::Drop)).expect("renewed");
    let all = |kernel: &Kernel| ["198.18.1.1", "198.18.1.2", "198.18.1.3"].map(|from| answer(kernel, from));
    assert_eq!(all(&kernel), [XDP_PASS, XDP_DROP, XDP_DROP]);
    kernel.control.set_replay_clock(after - 1);
    assert_eq!(all(&kernel), [XDP_PASS, XDP_DROP, XDP_DROP]);
    // The entries are still there: no agent has taken them out.
    kernel.control.set_replay_clock(after);
    assert_eq!(all(&kernel), [XDP_DROP, XDP_PASS, XDP_PASS], "only the first has a prefix around it");
    assert_eq!((packets(&kernel, "198.18.1.0/31"), packets(&kernel, "198.18.1.2/32")), (1, 2));
    kernel.control.set_replay_clock(round_expiry(UNTIL_NS));
    assert_eq!(all(&kernel), [XDP_PASS; 3]);
    // Among prefixes, one whose time is over hides those around it until it is removed (decision 0013).
    let mut kernel = self::kernel();
    kernel.verdicts.set_source(prefix("198.18.1.0/24"), &entry(Action::Drop)).expect("set");
    kernel.verdicts.set_source(prefix("198.18.1.0/28"), &early(Action::Drop)).expect("set");
    kernel.control.set_replay_clock(after);
    assert_eq!(answer(&kernel, "198.18.1.1"), XDP_PASS);
    kernel.verdicts.remove_source(prefix("198.18.1.0/28")).expect("remove");
    assert_eq!(answer(&kernel, "198.18.1.1"), XDP_DROP);
    truth(&kernel);
}

#[test]
fn a_rate_is_that_of_the_address_or_else_of_the_prefix() {
    let mut kernel = kernel();
    let rate = |until| {
        let entry = Entry::new(Action::Limit, Origin::Operator, 8, until);
        entry.limited(Rate { packets: 0, bytes: 1 })
    };
    kernel.verdicts.set_source(prefix("198.18.1.0/24"), &rate(UNTIL_NS)).expect("set");
    kernel.verdicts.set_source(prefix("198.18.1.1/32"), &rate(START_NS + 60 * SECOND_NS)).expect("set");
    let frame = udp("198.18.1.1:5", V4);
    let of = |kernel: &Kernel| ["198.18.1.1/32", "198.18.1.0/24"].map(|of| packets(kernel, of));
    // The first packet begins a record, which has the verdict, and the entry is asked for the rate at each one.
    assert_eq!([(); 3].map(|()| run(&kernel, Hook::Ingress, &frame)), [XDP_PASS, XDP_DROP, XDP_DROP]);
    assert_eq!(of(&kernel), [2, 0]);
    kernel.verdicts.remove_source(prefix("198.18.1.1/32")).expect("remove");
    assert_eq!([(); 3].map(|()| run(&kernel, Hook::Ingress, &frame)), [XDP_PASS, XDP_DROP, XDP_DROP]);
    assert_eq!(packets(&kernel, "198.18.1.0/24"), 2);
    truth(&kernel);
}

#[test]
fn the_never_drop_list_wins_over_an_address() {
    let mut kernel = kernel();
    for blocked in ["198.18.1.1/32", "2001:db8:1::1/128"] {
        kernel.verdicts.set_source(prefix(blocked), &entry(Action::Drop)).expect("set");
        kernel.verdicts.allow(prefix(blocked)).expect("allow");
    }
    let answers = |kernel: &Kernel| ["198.18.1.1", "2001:db8:1::1"].map(|from| answer(kernel, from));
    assert_eq!((answers(&kernel), counters(&kernel).protected), ([XDP_PASS; 2], 2));
    for blocked in ["198.18.1.1/32", "2001:db8:1::1/128"] {
        assert!(kernel.verdicts.disallow(prefix(blocked)).expect("disallow"));
    }
    assert_eq!(answers(&kernel), [XDP_DROP; 2]);
}

#[test]
fn addresses_beyond_the_hash_map_hold_in_the_tree() {
    let mut kernel = load(&LoadOptions { max_verdicts: 7, ..options() });
    kernel.control.set_lease(u64::MAX);
    let address = |last: u32| format!("198.18.1.{last}");
    let single = |last: u32| prefix(&format!("198.18.1.{last}/32"));
    for round in 1..=2 {
        for last in 0..7 {
            kernel.verdicts.set_source(single(last), &entry(Action::Drop)).expect("set, then renewed");
        }
        let answers: Vec<u32> = (0..8).map(|last| answer(&kernel, &address(last))).collect();
        assert_eq!(answers, [[XDP_DROP; 7].as_slice(), &[XDP_PASS]].concat(), "round {round}");
        let held = kernel.verdicts.sources().expect("read");
        assert_eq!((held.len(), kernel.verdicts.len()), (7, [0, 7, 0]));
        assert!(held.iter().all(|(_, entry)| entry.packets == round), "{held:?}");
    }
    // One that is in the tree stays there when the hash map has room again.
    assert!(kernel.verdicts.remove_source(single(0)).expect("remove").is_some());
    kernel.verdicts.set_source(single(6), &entry(Action::Drop)).expect("renewed");
    assert_eq!([0, 6].map(|last| answer(&kernel, &address(last))), [XDP_PASS, XDP_DROP]);
    for last in 1..7 {
        assert!(kernel.verdicts.remove_source(single(last)).expect("remove").is_some());
        assert_eq!(answer(&kernel, &address(last)), XDP_PASS);
    }
    assert!(kernel.verdicts.is_empty() && kernel.verdicts.sources().expect("read").is_empty());
    truth(&kernel);
}
