//! A model's verdict on a connection must not cut off the next one from the same port, and must not end for less than that.
//!
//! Program runs: records, map and packets as the agent and the wire would have them.

use std::net::SocketAddr;

use sensor::bpf::load::Hook;
use sensor_common::flow::note;
use sensor_common::tcp::{ACK, FIN, PSH, RST, SYN};
use sensor_common::verdict::{Action, Entry, Origin, Verdict};
use sensor_tests::frames::Frame;

use crate::host::{DROP, Host, PASS, SECOND_NS, key, server};

fn client() -> SocketAddr {
    "198.18.0.1:4000".parse().expect("an address")
}

/// A connection under a verdict of `origin` in its record and in the map.
fn condemned(origin: Origin) -> Host {
    let mut host = Host::new(8_192);
    host.connect(client());
    let until_ns = host.now_ns + 600 * SECOND_NS;
    host.kernel.verdicts.set_flow(&key(client()), &Entry::new(Action::Drop, origin, 7, until_ns)).expect("written");
    let (slot, record) = host.slot(client()).expect("recorded");
    let word = Verdict::new(Action::Drop, 1, record.generation, until_ns).of(origin);
    host.kernel.table.store_verdict(slot, word.0);
    host.now_ns += SECOND_NS;
    assert_eq!(host.request(client(), 1_101), DROP);
    host
}

fn send(host: &mut Host, flags: u8, seq: u32) -> u32 {
    host.now_ns += SECOND_NS / 10;
    host.run(Hook::Ingress, &Frame::tcp(client(), server(), flags).seq(seq, 9_001))
}

fn holds(host: &Host) -> bool {
    let entry = host.kernel.verdicts.flow(&key(client())).expect("read").expect("in the map");
    entry.action_at(host.now_ns) == Action::Drop
}

#[test]
fn the_next_connection_from_the_same_port_is_free() {
    let mut host = condemned(Origin::Model);
    let old = host.record(client()).expect("held");
    assert_eq!(send(&mut host, SYN, 777_000), PASS, "another connection");
    let new = host.record(client()).expect("recorded");
    assert_eq!((new.generation, new.packets()), (old.generation.wrapping_add(1), 1));
    assert_eq!((new.verdict, new.steady & note::FREED), (0, note::FREED), "and its record says so");
    assert_eq!(host.kernel.next_evicted().map(|record| record.packets()), Some(4), "the old record went to the agent");
    assert!(!holds(&host), "in the map, too");
    assert_eq!(send(&mut host, SYN, 777_000), PASS, "sent again");
    assert_eq!(host.record(client()).map(|record| record.packets()), Some(2), "in the same record");
    assert_eq!(send(&mut host, ACK, 777_001), PASS);
    assert_eq!(host.record(client()).map(|record| record.packets()), Some(3));
}

#[test]
fn the_next_connection_is_free_after_the_record_is_gone() {
    let mut host = condemned(Origin::Model);
    let (slot, record) = host.slot(client()).expect("held");
    host.kernel.table.release(slot, record.generation, record.last_ns).expect("released");
    assert_eq!(send(&mut host, ACK | PSH, 1_201), DROP, "what goes on stays under the verdict");
    assert_eq!(host.record(client()), None);
    assert_eq!(send(&mut host, SYN, 777_000), PASS);
    assert!(!holds(&host));
    assert_eq!(send(&mut host, ACK, 777_001), PASS);
}

#[test]
fn nothing_less_than_another_connection_ends_a_verdict() {
    let mut host = condemned(Origin::Model);
    for (flags, seq, what) in [
        (RST, 1_101, "a reset"),
        (RST | ACK, 55, "a reset that the server refuses"),
        (FIN | ACK, 1_101, "a close"),
        (SYN | ACK, 777_000, "an answer that nobody asked for"),
        (SYN | FIN, 777_000, "no SYN"),
        (ACK | PSH, 1_102, "what comes after them"),
    ] {
        assert_eq!(send(&mut host, flags, seq), DROP, "{what}");
        assert!(holds(&host), "{what}");
    }
    let mut host = condemned(Origin::Operator);
    assert_eq!(
        send(&mut host, SYN, 777_000),
        DROP,
        "what an operator says of the ports holds for all that comes on them"
    );
    assert!(holds(&host));
    let mut host = Host::new(8_192);
    assert_eq!(send(&mut host, SYN, 1_000), PASS);
    let (slot, record) = host.slot(client()).expect("recorded");
    let word = Verdict::new(Action::Drop, 1, record.generation, host.now_ns + 600 * SECOND_NS);
    host.kernel.table.store_verdict(slot, word.0);
    assert_eq!(send(&mut host, SYN, 1_000), DROP, "the same SYN again is the same connection");
}
