//! The never-drop list always wins: over every kind of verdict, at once when it changes, and for the local port only.

use sensor::bpf::load::{Hook, Kernel};
use sensor::bpf::verdicts::Service;
use sensor_common::packet::protocol;
use sensor_common::tcp::{ACK, SYN};
use sensor_common::verdict::{Action, Entry, Rate};
use sensor_tests::frames::Frame;

use crate::rig::{IFINDEX, TC_NEXT, TC_SHOT, XDP_DROP, XDP_PASS, at, counters, key, record, run, truth};
use crate::verdicts_scopes::{entry, kernel, prefix, syn, udp};

/// A rate of which the first packet takes all.
fn slow() -> Entry {
    entry(Action::Limit).limited(Rate { packets: 0, bytes: 1 })
}

/// Every kind of verdict on a packet from 198.18.1.1 to port 80 of 198.19.0.1, each with the frames that it stops.
const KINDS: [&str; 6] = ["record", "flow", "source", "flow limit", "source limit", "half-open limit"];

/// Gives the verdict, and runs until it holds; the frame that it stops now.
fn block(kernel: &mut Kernel, kind: &str) -> Vec<u8> {
    let frame = syn("198.18.1.1:5", "198.19.0.1:80");
    let flow = key(&frame);
    match kind {
        "record" => {
            assert_eq!(run(kernel, Hook::Ingress, &frame), XDP_PASS);
            let (slot, record) = record(kernel, &flow).expect("a record");
            let word = entry(Action::Drop).word().with_generation(record.generation);
            kernel.table.store_verdict(slot, word.0);
        }
        "flow" => kernel.verdicts.set_flow(&flow, &entry(Action::Drop)).expect("set"),
        "source" => kernel.verdicts.set_source(prefix("198.18.0.0/16"), &entry(Action::Drop)).expect("set"),
        "flow limit" => kernel.verdicts.set_flow(&flow, &slow()).expect("set"),
        "source limit" => kernel.verdicts.set_source(prefix("198.18.1.1/32"), &slow()).expect("set"),
        _ => {
            let address = "198.19.0.1".parse().expect("address");
            let limit = entry(Action::Limit).limited(Rate { packets: 1, bytes: 0 });
            kernel.verdicts.set_service(Service { address, port: 80, protocol: 6 }, &limit).expect("set");
            assert_eq!(run(kernel, Hook::Ingress, &syn("198.18.9.9:5", "198.19.0.1:80")), XDP_PASS);
        }
    }
    if kind.ends_with("limit") && !kind.starts_with("half") {
        assert_eq!(run(kernel, Hook::Ingress, &frame), XDP_PASS, "the first packet is within the rate");
    }
    assert_eq!(run(kernel, Hook::Ingress, &frame), XDP_DROP, "{kind}: holds");
    assert_eq!(run(kernel, Hook::Ingress, &frame), XDP_DROP, "{kind}: holds");
    frame
}

#[test]
fn a_prefix_on_the_list_wins_over_every_kind_of_verdict() {
    for kind in KINDS {
        for allowed in ["198.18.1.1/32", "198.18.0.0/15", "198.19.0.1/32", "0.0.0.0/0"] {
            let mut kernel = kernel();
            let frame = block(&mut kernel, kind);
            kernel.verdicts.allow(prefix(allowed)).expect("allow");
            let before = counters(&kernel).protected;
            assert_eq!(run(&kernel, Hook::Ingress, &frame), XDP_PASS, "{kind} against {allowed}: at once");
            assert_eq!(counters(&kernel).protected, before + 1, "{kind} against {allowed}: counted");
            assert!(kernel.verdicts.disallow(prefix(allowed)).expect("disallow"));
            // A half-open attempt that passed has its record, and is an attempt all the same.
            assert_eq!(run(&kernel, Hook::Ingress, &frame), XDP_DROP, "{kind} without {allowed}");
            kernel.verdicts.allow(prefix(allowed)).expect("allow");
            assert_eq!(run(&kernel, Hook::Ingress, &frame), XDP_PASS, "{kind} against {allowed}, again");
            truth(&kernel);
        }
    }
}

#[test]
fn an_allowed_session_wins_over_every_verdict_but_its_own_end() {
    for kind in ["record", "source", "source limit"] {
        let mut kernel = kernel();
        let frame = block(&mut kernel, kind);
        kernel.verdicts.set_flow(&key(&frame), &entry(Action::Pass)).expect("allow");
        assert_eq!(run(&kernel, Hook::Ingress, &frame), XDP_PASS, "{kind}");
        let back = Frame::tcp(at("198.19.0.1:80"), at("198.18.1.1:5"), SYN | ACK).build();
        assert_eq!(run(&kernel, Hook::Egress, &back), TC_NEXT, "{kind}");
        let other = syn("198.18.1.1:6", "198.19.0.1:80");
        if kind == "source" {
            assert_eq!(run(&kernel, Hook::Ingress, &other), XDP_DROP, "another flow of the source");
            kernel.verdicts.remove_flow(&key(&frame)).expect("remove");
            assert_eq!(run(&kernel, Hook::Ingress, &frame), XDP_PASS, "its record began while it was allowed");
        } else {
            kernel.verdicts.remove_flow(&key(&frame)).expect("remove");
            assert_eq!(run(&kernel, Hook::Ingress, &frame), XDP_DROP, "{kind}");
        }
        truth(&kernel);
    }
}

#[test]
fn ports_protect_at_the_local_end_only() {
    let mut kernel = kernel();
    kernel.verdicts.set_ports(&[22, 65_535], &[53]).expect("ports");
    assert_eq!(kernel.verdicts.ports().expect("read"), [vec![22, 65_535], vec![53]]);
    kernel.verdicts.set_source(prefix("198.18.1.0/24"), &entry(Action::Drop)).expect("set");
    let (a, host) = ("198.18.1.1", "198.19.0.1");
    let tcp = |from: &str, to: &str| Frame::tcp(at(from), at(to), ACK).build();
    let cases = [
        (Hook::Ingress, tcp(&format!("{a}:1000"), &format!("{host}:22")), true),
        (Hook::Ingress, tcp(&format!("{a}:1000"), &format!("{host}:65535")), true),
        (Hook::Ingress, tcp(&format!("{a}:22"), &format!("{host}:80")), false),
        (Hook::Ingress, tcp(&format!("{a}:1001"), &format!("{host}:23")), false),
        (Hook::Ingress, tcp(&format!("{a}:1001"), &format!("{host}:53")), false),
        (Hook::Ingress, udp(&format!("{a}:1000"), &format!("{host}:53")), true),
        (Hook::Ingress, udp(&format!("{a}:53"), &format!("{host}:1000")), false),
        (Hook::Ingress, udp(&format!("{a}:1000"), &format!("{host}:22")), false),
        (Hook::Egress, tcp(&format!("{host}:22"), &format!("{a}:3000")), true),
        (Hook::Egress, tcp(&format!("{host}:80"), &format!("{a}:22")), false),
        (Hook::StackIngress, tcp(&format!("{a}:1002"), &format!("{host}:22")), true),
        (Hook::StackIngress, tcp(&format!("{a}:1002"), &format!("{host}:80")), false),
    ];
    for (hook, frame, passes) in cases {
        let answer = run(&kernel, hook, &frame);
        let expected = match (hook, passes) {
            (Hook::Ingress, true) => XDP_PASS,
            (Hook::Ingress, false) => XDP_DROP,
            (_, true) => TC_NEXT,
            (_, false) => TC_SHOT,
        };
        assert_eq!(answer, expected, "{hook:?} {:?}", key(&frame));
        assert_eq!(run(&kernel, hook, &frame), expected, "the same again, from its record: {hook:?}");
    }
    // What was found for one end of a record is not believed for the other: forwarded traffic comes in at both.
    let (up, down) = (tcp("198.18.2.1:9000", "198.19.0.2:22"), tcp("198.19.0.2:22", "198.18.2.1:9000"));
    assert_eq!(run(&kernel, Hook::Ingress, &up), XDP_PASS);
    let (slot, begun) = record(&kernel, &key(&up)).expect("a record");
    kernel.table.store_verdict(slot, entry(Action::Drop).word().with_generation(begun.generation).0);
    for _ in 0..3 {
        assert_eq!(run(&kernel, Hook::Ingress, &down), XDP_DROP);
        assert_eq!(run(&kernel, Hook::Ingress, &up), XDP_PASS);
    }
    truth(&kernel);
}

#[test]
fn discovery_dhcp_and_path_mtu_are_never_dropped() {
    let mut kernel = kernel();
    for all in ["0.0.0.0/0", "::/0"] {
        kernel.verdicts.set_source(prefix(all), &entry(Action::Drop)).expect("set");
    }
    let (host, router) = ("[2001:db8::1]:0", "[2001:db8::2]:0");
    for kind in 128..=140u8 {
        let message = |hops| Frame::icmp(at(router), at(host), kind, 0).hops(hops, 0).build();
        let expected = if (133..=137).contains(&kind) { XDP_PASS } else { XDP_DROP };
        assert_eq!(run(&kernel, Hook::Ingress, &message(255)), expected, "ICMPv6 type {kind}");
        assert_eq!(run(&kernel, Hook::Ingress, &message(254)), XDP_DROP, "ICMPv6 type {kind}, not from this link");
    }
    for (from, to, kind, code, expected) in [
        (router, host, 2, 0, XDP_PASS),
        (router, host, 1, 0, XDP_DROP),
        ("198.18.0.1:0", "198.19.0.1:0", 3, 4, XDP_PASS),
        ("198.18.0.1:0", "198.19.0.1:0", 3, 1, XDP_DROP),
    ] {
        let frame = Frame::icmp(at(from), at(to), kind, code).payload(40).build();
        assert_eq!(run(&kernel, Hook::Ingress, &frame), expected, "{from}: type {kind}, code {code}");
    }
    // They share a record with other messages between the two, which a verdict of its own stops.
    let discovery = Frame::icmp(at(router), at(host), 135, 0).hops(255, 0).build();
    let (slot, begun) = record(&kernel, &key(&discovery)).expect("a record");
    kernel.table.store_verdict(slot, entry(Action::Drop).word().with_generation(begun.generation).0);
    for _ in 0..3 {
        let unreachable = Frame::icmp(at(router), at(host), 1, 0).payload(40).build();
        assert_eq!(run(&kernel, Hook::Ingress, &unreachable), XDP_DROP);
        assert_eq!(run(&kernel, Hook::Ingress, &discovery), XDP_PASS);
    }
    let dhcp = [
        (udp("198.18.0.1:67", "255.255.255.255:68"), XDP_PASS),
        (udp("0.0.0.0:68", "255.255.255.255:67"), XDP_PASS),
        (udp("[fe80::1]:547", "[fe80::2]:546"), XDP_PASS),
        (udp("198.18.0.1:67", "198.19.0.1:53"), XDP_DROP),
        (udp("198.18.0.1:53", "198.19.0.1:68"), XDP_DROP),
        (Frame::tcp(at("198.18.0.1:67"), at("198.19.0.1:68"), SYN).build(), XDP_DROP),
    ];
    for (frame, expected) in dhcp {
        assert_eq!(run(&kernel, Hook::Ingress, &frame), expected, "{:?}", key(&frame));
        assert_eq!(run(&kernel, Hook::Ingress, &frame), expected, "again {:?}", key(&frame));
    }
    assert_eq!(key(&discovery).protocol, protocol::ICMPV6);
    truth(&kernel);
}

/// What no router forwards passes where it can be what it says, and is made up elsewhere. (The frames of test runs come
/// in by the loopback interface.)
#[test]
fn addresses_of_a_link_are_never_dropped_where_they_can_be() {
    let mut kernel = kernel();
    for all in ["0.0.0.0/0", "::/0"] {
        kernel.verdicts.set_source(prefix(all), &entry(Action::Drop)).expect("set");
    }
    let frame = |from: &str, to: &str, hops: u8| Frame::udp(at(from), at(to)).hops(hops, 0).payload(40).build();
    let look = |kernel: &Kernel, from: &str, to: &str, hops: u8, expected: u32| {
        let answer = run(kernel, Hook::Ingress, &frame(from, to, hops));
        assert_eq!(answer, expected, "{from} to {to}, hop limit {hops}");
    };
    // Twice each: what a packet of a flow met is not believed of the next one.
    for _ in 0..2 {
        for (from, to, hops, expected) in [
            ("224.0.0.251:5353", "198.19.0.1:80", 255, XDP_DROP),
            ("255.255.255.255:9", "198.19.0.1:80", 64, XDP_DROP),
            ("169.254.1.9:9", "198.19.0.1:80", 64, XDP_DROP),
            ("[ff02::1]:9", "[2001:db8::1]:80", 255, XDP_DROP),
            ("[fe80::9]:9", "[2001:db8::1]:80", 64, XDP_DROP),
            ("198.18.0.1:5353", "224.0.0.251:5353", 255, XDP_PASS),
            ("169.254.1.9:9", "169.254.1.1:80", 64, XDP_PASS),
            ("[fe80::9]:9", "[2001:db8::1]:80", 255, XDP_PASS),
            ("[fe80::9]:9", "[fe80::1]:80", 64, XDP_PASS),
            ("[2001:db8::9]:5353", "[ff02::fb]:5353", 255, XDP_PASS),
            ("127.0.0.1:9", "127.0.0.1:80", 64, XDP_PASS),
            ("[::1]:9", "[::1]:80", 64, XDP_PASS),
        ] {
            look(&kernel, from, to, hops, expected);
        }
    }
    kernel.set_link_local(IFINDEX, true).expect("watched");
    look(&kernel, "169.254.1.9:9", "198.19.0.1:80", 64, XDP_PASS);
    kernel.set_link_local(IFINDEX, false).expect("watched");
    look(&kernel, "169.254.1.9:9", "198.19.0.1:80", 64, XDP_DROP);
    // A flood in the name of a group does not cut this host's own packets to that group off.
    let forged = frame("224.0.0.251:5353", "198.19.0.1:5353", 64);
    let own = frame("198.19.0.1:5353", "224.0.0.251:5353", 255);
    kernel.verdicts.set_flow(&key(&forged), &entry(Action::Drop)).expect("set");
    for _ in 0..3 {
        assert_eq!(run(&kernel, Hook::Ingress, &forged), XDP_DROP);
        assert_eq!(run(&kernel, Hook::Egress, &own), TC_NEXT);
    }
    truth(&kernel);
}

#[test]
fn an_exempt_interface_drops_nothing() {
    for kind in KINDS {
        let mut kernel = kernel();
        let frame = block(&mut kernel, kind);
        kernel.exempt(&[IFINDEX]).expect("exempt");
        assert_eq!(run(&kernel, Hook::Ingress, &frame), XDP_PASS, "{kind}");
        kernel.exempt(&[]).expect("exempt");
        assert_eq!(run(&kernel, Hook::Ingress, &frame), XDP_DROP, "{kind}");
        truth(&kernel);
    }
}

#[test]
fn a_tag_is_no_drop_and_needs_no_protection() {
    let mut kernel = kernel();
    kernel.verdicts.allow(prefix("198.18.1.1/32")).expect("allow");
    kernel.verdicts.set_source(prefix("198.18.1.1/32"), &entry(Action::Tag)).expect("set");
    let frame = syn("198.18.1.1:5", "198.19.0.1:80");
    (0..2).for_each(|_| assert_eq!(run(&kernel, Hook::Ingress, &frame), XDP_PASS));
    let counted = counters(&kernel);
    assert_eq!((counted.seen[0][Action::Tag as usize].packets, counted.protected), (2, 0));
}
