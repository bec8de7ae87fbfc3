//! A flood of forged UDP datagrams must not hide new connections, nor push out those that go on.
//!
//! Program runs under the replay clock: 90,000 tuples of four datagrams, 12,000 tuples a second, so that each comes
//! back before it counts as idle, against a table of the default size.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use sensor::bpf::load::Hook;
use sensor_common::counter::Cause;
use sensor_common::flow::state;
use sensor_tests::frames::Frame;

use crate::host::{Host, IFINDEX, SECOND_NS};

const TUPLES: u64 = 90_000;
/// Tuples a second, and how many datagrams each sends when it is its turn.
const RATE: u64 = 12_000;
const DATAGRAMS: u32 = 4;
/// Time between two requests of a connection: less than what counts as idle.
const REQUEST_EACH_NS: u64 = 5 * SECOND_NS;
/// Connections that are open before the flood, and those that begin in it.
const OLD: u32 = 200;
const NEW: u64 = 200;

fn client(number: u32, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0001 + number)), port)
}

/// The source of a forged tuple: an address of its own, anywhere.
fn forged(tuple: u64) -> SocketAddr {
    let address = 0x2000_0000 + (tuple as u32).wrapping_mul(0x9e37_79b1) / 2;
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from_bits(address)), 1024 + (tuple % 60_000) as u16)
}

#[test]
fn a_flood_of_forged_datagrams_hides_no_new_connection() {
    let mut host = Host::new(65_536);
    for old in 0..OLD {
        host.connect(client(old, 40_000));
    }
    let target: SocketAddr = "198.19.0.1:5000".parse().expect("an address");
    let turn = REQUEST_EACH_NS * RATE / SECOND_NS / u64::from(OLD);
    let (mut begun, mut recorded) = (0, 0);
    for number in 0..2 * TUPLES {
        host.now_ns += SECOND_NS / RATE;
        for _ in 0..DATAGRAMS {
            host.run(Hook::Ingress, &Frame::udp(forged(number % TUPLES), target));
        }
        // The connections that were open go on.
        if number.is_multiple_of(turn) {
            let (old, said) = (number / turn % u64::from(OLD), number / turn / u64::from(OLD));
            host.request(client(old as u32, 40_000), 1_101 + 100 * said as u32);
        }
        // The table is full in the second round.
        if number >= TUPLES && number.is_multiple_of(TUPLES / NEW) {
            let new = client(10_000 + begun as u32, 50_000);
            host.connect(new);
            begun += 1;
            recorded += u64::from(host.record(new).is_some_and(|record| record.packets() == 4));
        }
        while host.kernel.next_evicted().is_some() {}
    }
    let full = host.kernel.counters(IFINDEX).expect("watched").unrecorded[Cause::BucketFull as usize];
    let whole = |old: &u32| {
        let record = host.record(client(*old, 40_000));
        record.is_some_and(|record| record.state & state::INITIATOR_BY_SYN != 0)
    };
    let kept = (0..OLD).filter(whole).count();
    println!(
        "forged UDP: {recorded} of {begun} new connections have a record, {kept} of {OLD} kept theirs, {full} full"
    );
    assert_eq!((recorded, kept), (NEW, OLD as usize), "{full} packets found their bucket full");
}

/// Clients of one network that open connections as fast as they can, prove their addresses, and hold them with a
/// request each few seconds.
#[test]
fn connections_that_one_network_holds_open_hide_no_other() {
    let mut host = Host::new(65_536);
    for old in 0..OLD {
        host.connect(client(old, 40_000));
    }
    // 254 addresses of one /24, some 350 ports of each: more connections than the table has places.
    let held = |number: u64| {
        let address = 0x0b00_0001 + (number % 254) as u32;
        SocketAddr::new(IpAddr::V4(Ipv4Addr::from_bits(address)), 1024 + (number / 254) as u16)
    };
    for number in 0..TUPLES {
        host.now_ns += SECOND_NS / RATE;
        host.connect(held(number));
        while host.kernel.next_evicted().is_some() {}
    }
    let mut recorded = 0;
    for number in 0..NEW as u32 {
        host.now_ns += SECOND_NS / 1000;
        let new = client(10_000 + 256 * number, 50_000);
        host.connect(new);
        recorded += u64::from(host.record(new).is_some_and(|record| record.packets() == 4));
    }
    let kept = (0..OLD).filter(|old| host.record(client(*old, 40_000)).is_some()).count();
    println!("held connections: {recorded} of {NEW} new connections have a record, {kept} of {OLD} kept theirs");
    // A bucket in which the network holds no more than half of the ways is full of others.
    assert!(recorded >= NEW * 95 / 100, "{recorded} of {NEW} new connections have a record");
}
