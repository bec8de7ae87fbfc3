//! Verdicts by flow, source and prefix hold for packets that have no record, and end with their time and with the lease.

use std::net::SocketAddr;

use sensor::bpf::load::{Hook, Kernel};
use sensor_common::counter;
use sensor_common::table::WAYS;
use sensor_common::tcp::{ACK, SYN};
use sensor_common::verdict::{Action, Entry, Origin, Rate, Verdict, round_expiry};
use sensor_tests::frames::Frame;

use crate::rig::{
    SECOND_NS, START_NS, TC_NEXT, TC_SHOT, XDP_DROP, XDP_PASS, at, counters, key, load, options, record, records, run,
    truth,
};
use crate::table::{colliding, server};

pub(crate) const UNTIL_NS: u64 = START_NS + 600 * SECOND_NS;

/// An operator's verdict that holds for the whole test.
pub(crate) fn entry(action: Action) -> Entry {
    Entry::new(action, Origin::Operator, 7, UNTIL_NS)
}

/// Programs under a lease, with an empty table.
pub(crate) fn kernel() -> Kernel {
    let kernel = load(&options());
    kernel.control.set_lease(u64::MAX);
    kernel
}

pub(crate) fn syn(from: &str, to: &str) -> Vec<u8> {
    Frame::tcp(at(from), at(to), SYN).build()
}

pub(crate) fn udp(from: &str, to: &str) -> Vec<u8> {
    Frame::udp(at(from), at(to)).payload(100).build()
}

pub(crate) fn prefix(text: &str) -> ipnet::IpNet {
    text.parse().expect("a prefix")
}

#[test]
fn a_dropped_flow_stays_dropped_when_its_slot_is_taken() {
    let mut kernel = kernel();
    let clients = colliding(WAYS + 1);
    let frame = |client: SocketAddr| Frame::tcp(client, server(), ACK).payload(10).build();
    let (first, dropped) = (frame(clients[0]), key(&frame(clients[0])));
    assert_eq!(run(&kernel, Hook::Ingress, &first), XDP_PASS);
    let (slot, before) = record(&kernel, &dropped).expect("a record");
    kernel.verdicts.set_flow(&dropped, &entry(Action::Drop)).expect("set");
    let word = entry(Action::Drop).word().with_generation(before.generation);
    kernel.table.store_verdict(slot, word.0);
    assert_eq!(run(&kernel, Hook::Ingress, &first), XDP_DROP);
    // Idle for long enough to be given up, while eight live connections want its bucket.
    kernel.control.set_replay_clock(START_NS + 60 * SECOND_NS);
    for client in &clients[1..] {
        (0..3).for_each(|_| assert_eq!(run(&kernel, Hook::Ingress, &frame(*client)), XDP_PASS));
        run(&kernel, Hook::Egress, &Frame::tcp(server(), *client, ACK).build());
    }
    assert_eq!(kernel.next_evicted().map(|record| (record.key, record.dropped)), Some((dropped, 1)));
    for _ in 0..3 {
        assert_eq!(run(&kernel, Hook::Ingress, &first), XDP_DROP);
    }
    let back = Frame::tcp(server(), clients[0], ACK).payload(10).build();
    assert_eq!(run(&kernel, Hook::Egress, &back), TC_SHOT, "nor does an answer leave");
    assert_eq!(record(&kernel, &dropped), None, "it takes no slot");
    let acted = kernel.verdicts.flow(&dropped).expect("read").expect("set");
    assert_eq!((acted.packets, acted.bytes), (4, (3 * first.len() + back.len()) as u64));
    assert_eq!(counters(&kernel).dropped_new, 4);
    // Another free slot changes nothing, its end does.
    let (_, victim) = record(&kernel, &key(&frame(clients[1]))).expect("a record");
    let (slot, _) = record(&kernel, &victim.key).expect("a record");
    kernel.table.release(slot, victim.generation, victim.last_ns).expect("released");
    assert_eq!(run(&kernel, Hook::Ingress, &first), XDP_DROP);
    kernel.control.set_replay_clock(round_expiry(UNTIL_NS) - 1);
    assert_eq!(run(&kernel, Hook::Ingress, &first), XDP_DROP);
    kernel.control.set_replay_clock(round_expiry(UNTIL_NS));
    assert_eq!(run(&kernel, Hook::Ingress, &first), XDP_PASS);
    let (_, after) = record(&kernel, &dropped).expect("a record");
    assert_eq!((after.frames(), after.verdict), (1, 0));
}

#[test]
fn blocked_sources_and_prefixes_take_no_slot() {
    let mut kernel = kernel();
    for blocked in ["198.18.1.1/32", "198.18.4.0/22", "2001:db8:1::1/128", "2001:db8:2::/48"] {
        kernel.verdicts.set_source(prefix(blocked), &entry(Action::Drop)).expect("set");
    }
    kernel.verdicts.set_source(prefix("198.18.5.9/32"), &entry(Action::Pass)).expect("an exception");
    let v4 = "198.19.0.1:80";
    let v6 = "[2001:db8:9::1]:80";
    let cases = [
        ("198.18.1.1:5", v4, XDP_DROP),
        ("198.18.1.2:5", v4, XDP_PASS),
        ("198.18.3.255:5", v4, XDP_PASS),
        ("198.18.4.0:5", v4, XDP_DROP),
        ("198.18.7.255:5", v4, XDP_DROP),
        ("198.18.8.0:5", v4, XDP_PASS),
        ("198.18.5.9:5", v4, XDP_PASS),
        ("[2001:db8:1::1]:5", v6, XDP_DROP),
        ("[2001:db8:1::2]:5", v6, XDP_PASS),
        ("[2001:db8:2:ffff::9]:5", v6, XDP_DROP),
        ("[2001:db8:3::9]:5", v6, XDP_PASS),
    ];
    for (from, to, expected) in cases {
        for frame in [syn(from, to), Frame::tcp(at(from), at(to), ACK).build(), udp(from, to)] {
            assert_eq!(run(&kernel, Hook::Ingress, &frame), expected, "{from}");
            assert_eq!(record(&kernel, &key(&frame)).is_some(), expected == XDP_PASS, "{from}: a slot");
        }
    }
    let counted = counters(&kernel);
    let dropped = counted.seen[counter::Hook::Ingress as usize][Action::Drop as usize];
    assert_eq!((dropped.packets, counted.dropped_new, counted.flows_created), (15, 15, 12));
    let acted = kernel.verdicts.sources().expect("read").iter().map(|(_, entry)| entry.packets).sum::<u64>();
    assert_eq!(acted, 15);
    truth(&kernel);
    // Taken back: the next packet passes.
    assert!(kernel.verdicts.remove_source(prefix("198.18.4.0/22")).expect("remove").is_some());
    assert_eq!(run(&kernel, Hook::Ingress, &syn("198.18.4.0:5", v4)), XDP_PASS);
    assert_eq!(kernel.verdicts.len(), [0, 4, 0]);
    truth(&kernel);
}

#[test]
fn all_of_one_family_is_nothing_of_the_other() {
    let mut kernel = kernel();
    kernel.verdicts.set_source(prefix("::/0"), &entry(Action::Drop)).expect("set");
    assert_eq!(run(&kernel, Hook::Ingress, &syn("198.18.1.1:5", "198.19.0.1:80")), XDP_PASS);
    assert_eq!(run(&kernel, Hook::Ingress, &syn("[2001:db8::1]:5", "[2001:db8::2]:80")), XDP_DROP);
}

#[test]
fn what_this_host_opens_to_a_blocked_source_is_its_own_business() {
    let mut kernel = kernel();
    kernel.verdicts.set_source(prefix("198.18.1.1/32"), &entry(Action::Drop)).expect("set");
    let (host, remote) = (at("198.19.0.1:4000"), at("198.18.1.1:443"));
    assert_eq!(run(&kernel, Hook::Egress, &Frame::tcp(host, remote, SYN).build()), TC_NEXT);
    assert_eq!(run(&kernel, Hook::Ingress, &Frame::tcp(remote, host, SYN | ACK).build()), XDP_PASS);
    assert_eq!(run(&kernel, Hook::Egress, &Frame::udp(host, remote).build()), TC_NEXT);
    // But a connection whose record is gone is taken for the source's, or a retransmission of this host would open the way.
    let gone = Frame::tcp(at("198.19.0.1:22"), at("198.18.1.1:7000"), ACK).payload(50).build();
    assert_eq!(run(&kernel, Hook::Egress, &gone), TC_SHOT);
    assert_eq!(run(&kernel, Hook::Ingress, &syn("198.18.1.1:7000", "198.19.0.1:22")), XDP_DROP);
    truth(&kernel);
}

#[test]
fn a_closed_connections_ports_give_a_blocked_source_no_way_in() {
    use sensor_common::tcp::RST;
    let mut kernel = kernel();
    let (from, to) = ("198.18.1.1:5", "198.19.0.1:80");
    for (flags, seq) in [(SYN, 0), (RST, 1)] {
        assert_eq!(run(&kernel, Hook::Ingress, &Frame::tcp(at(from), at(to), flags).seq(seq, 0).build()), XDP_PASS);
    }
    kernel.verdicts.set_source(prefix("198.18.1.1/32"), &entry(Action::Drop)).expect("set");
    assert_eq!(run(&kernel, Hook::Ingress, &syn(from, to)), XDP_DROP, "the closed record is not reopened");
    kernel.verdicts.remove_source(prefix("198.18.1.1/32")).expect("remove");
    assert_eq!(run(&kernel, Hook::Ingress, &syn(from, to)), XDP_PASS);
    assert_eq!(counters(&kernel).flows_created, 2);
}

#[test]
fn a_record_begins_with_the_verdict_that_its_first_packet_met() {
    let mut kernel = kernel();
    let tag = entry(Action::Tag).labelled(5);
    kernel.verdicts.set_source(prefix("198.18.1.0/24"), &tag).expect("set");
    let frame = syn("198.18.1.1:5", "198.19.0.1:80");
    for _ in 0..3 {
        assert_eq!(run(&kernel, Hook::Ingress, &frame), XDP_PASS);
    }
    let (_, begun) = record(&kernel, &key(&frame)).expect("a record");
    let word = Verdict(begun.verdict);
    assert_eq!(word, tag.word().with_generation(begun.generation));
    assert_eq!((word.action(), word.label(), word.origin()), (Action::Tag, 5, Origin::Operator as u8));
    let tagged = counters(&kernel).seen[counter::Hook::Ingress as usize][Action::Tag as usize].packets;
    assert_eq!((tagged, begun.frames()), (3, 3), "the first packet too");
    // Of a flow's and a source's verdict the stronger holds.
    let other = syn("198.18.1.2:5", "198.19.0.1:80");
    kernel.verdicts.set_flow(&key(&other), &entry(Action::Drop)).expect("set");
    assert_eq!(run(&kernel, Hook::Ingress, &other), XDP_DROP);
    truth(&kernel);
}

#[test]
fn the_lease_ends_every_kind_of_verdict() {
    let mut kernel = kernel();
    let dropped = syn("198.18.1.1:5", "198.19.0.1:80");
    let by_source = syn("198.18.2.1:5", "198.19.0.1:80");
    let limited = udp("198.18.3.1:5", "198.19.0.1:80");
    let attempt = |port: u16| syn(&format!("198.18.4.1:{port}"), "198.19.0.9:80");
    let slow = Rate { packets: 1, bytes: 0 };
    kernel.verdicts.set_flow(&key(&dropped), &entry(Action::Drop)).expect("set");
    kernel.verdicts.set_flow(&key(&limited), &entry(Action::Limit).limited(slow)).expect("set");
    kernel.verdicts.set_source(prefix("198.18.2.0/24"), &entry(Action::Drop)).expect("set");
    let service =
        sensor::bpf::verdicts::Service { address: "198.19.0.9".parse().expect("address"), port: 80, protocol: 6 };
    kernel.verdicts.set_service(service, &entry(Action::Limit).limited(slow)).expect("set");
    let answers = |kernel: &Kernel, port| {
        [&dropped, &by_source, &limited, &attempt(port)].map(|frame| run(kernel, Hook::Ingress, frame))
    };
    assert_eq!(answers(&kernel, 1), [XDP_DROP, XDP_DROP, XDP_PASS, XDP_PASS], "within the rates");
    assert_eq!(answers(&kernel, 2), [XDP_DROP; 4]);
    kernel.control.set_lease(START_NS);
    assert_eq!(answers(&kernel, 3), [XDP_PASS; 4], "a dead agent drops nothing");
    assert_eq!(counters(&kernel).lease_expired, 4);
    // The records that began meanwhile hold the verdicts, for an agent that comes back.
    kernel.control.set_lease(u64::MAX);
    assert_eq!(answers(&kernel, 4), [XDP_DROP; 4]);
    truth(&kernel);
    // And each ends with its own time.
    kernel.control.set_replay_clock(round_expiry(UNTIL_NS));
    assert_eq!(answers(&kernel, 5), [XDP_PASS; 4]);
    truth(&kernel);
}

#[test]
fn ten_thousand_verdicts_come_and_go() {
    let mut kernel = kernel();
    let source = |i: u32| std::net::IpAddr::from((0xc612_0000 + i).to_be_bytes());
    for i in 0..10_000 {
        kernel.verdicts.set_source(source(i).into(), &entry(Action::Drop)).expect("set");
    }
    assert_eq!(kernel.verdicts.len(), [0, 10_000, 0]);
    let frame = |i: u32| Frame::udp(SocketAddr::new(source(i), 9), server()).build();
    for i in (0..10_000).step_by(97) {
        assert_eq!(run(&kernel, Hook::Ingress, &frame(i)), XDP_DROP);
    }
    for i in 0..10_000 {
        assert!(kernel.verdicts.remove_source(source(i).into()).expect("remove").is_some());
    }
    assert!(kernel.verdicts.is_empty() && kernel.verdicts.sources().expect("read").is_empty());
    for i in (0..10_000).step_by(97) {
        assert_eq!(run(&kernel, Hook::Ingress, &frame(i)), XDP_PASS);
    }
    assert_eq!(records(&kernel).len(), 10_000usize.div_ceil(97));
}

#[test]
fn a_renewed_verdict_keeps_its_counts() {
    let mut kernel = kernel();
    let frame = udp("198.18.1.1:5", "198.19.0.1:80");
    kernel.verdicts.set_source(prefix("198.18.1.1/32"), &entry(Action::Drop)).expect("set");
    (0..3).for_each(|_| assert_eq!(run(&kernel, Hook::Ingress, &frame), XDP_DROP));
    kernel.verdicts.set_source(prefix("198.18.1.1/32"), &entry(Action::Drop)).expect("renewed");
    assert_eq!(run(&kernel, Hook::Ingress, &frame), XDP_DROP);
    let held = kernel.verdicts.source(prefix("198.18.1.1/32")).expect("read").expect("set");
    assert_eq!((held.packets, kernel.verdicts.len()), (4, [0, 1, 0]));
}
