//! Rate limits keep their rates, by the replay clock; limits of half-open attempts spare the sources that proved themselves.

use sensor::bpf::load::{Hook, Kernel};
use sensor::bpf::verdicts::Service;
use sensor_common::counter;
use sensor_common::tcp::{ACK, SYN};
use sensor_common::verdict::known::KNOWN_TICK_NS;
use sensor_common::verdict::{Action, Entry, KNOWN_NS, Origin, Rate};
use sensor_tests::frames::Frame;

use crate::rig::{
    SECOND_NS, START_NS, TC_NEXT, TC_SHOT, XDP_DROP, XDP_PASS, at, counters, key, record, records, run, truth,
};
use crate::verdicts_scopes::{UNTIL_NS, entry, kernel, prefix, syn, udp};

fn limited(packets: u64, bytes: u64) -> Entry {
    entry(Action::Limit).limited(Rate { packets, bytes })
}

/// Frames that pass in `seconds` of one every `every_ns`, the frames taking turns.
fn passed(kernel: &Kernel, frames: &[(Hook, Vec<u8>)], every_ns: u64, seconds: u64) -> u64 {
    let mut passed = 0;
    for number in 0..seconds * SECOND_NS / every_ns {
        kernel.control.set_replay_clock(START_NS + number * every_ns);
        let (hook, frame) = &frames[number as usize % frames.len()];
        // (XDP's "pass" is TC's "drop".)
        let (pass, drop) = if *hook == Hook::Ingress { (XDP_PASS, XDP_DROP) } else { (TC_NEXT, TC_SHOT) };
        let answer = run(kernel, *hook, frame);
        assert!([pass, drop].contains(&answer), "{answer}");
        passed += u64::from(answer == pass);
    }
    passed
}

/// `of` 5 %.
fn close(found: u64, wanted: u64) {
    let off = (found as f64 - wanted as f64).abs() / wanted as f64;
    println!("{found} of {wanted}: {:.2} % off", 100.0 * off);
    assert!(off <= 0.05, "{found} is not within 5 % of {wanted}");
}

#[test]
fn packets_and_bytes_a_second_are_kept_within_five_percent() {
    const SECONDS: u64 = 10;
    // 2,000 packets a second of 142 bytes, IPv4 and IPv6.
    for (from, to) in [("198.18.1.1:5", "198.19.0.1:80"), ("[2001:db8::1]:5", "[2001:db8::2]:80")] {
        let frame = udp(from, to);
        let length = frame.len() as u64;
        for (rate, wanted) in [
            (Rate { packets: 500, bytes: 0 }, 500 * SECONDS),
            (Rate { packets: 1777, bytes: 0 }, 1777 * SECONDS),
            (Rate { packets: 0, bytes: 100_000 }, 100_000 * SECONDS / length),
            (Rate { packets: 300, bytes: 100_000 }, 300 * SECONDS),
            (Rate { packets: 1000, bytes: 50_000 }, 50_000 * SECONDS / length),
        ] {
            let mut kernel = kernel();
            kernel.verdicts.set_flow(&key(&frame), &limited(rate.packets, rate.bytes)).expect("set");
            close(passed(&kernel, &[(Hook::Ingress, frame.clone())], 500_000, SECONDS), wanted);
            let counted = counters(&kernel);
            let [_, _, within, over] = counted.seen[counter::Hook::Ingress as usize];
            assert_eq!(within.packets + over.packets, 2000 * SECONDS);
            let held = kernel.verdicts.flow(&key(&frame)).expect("read").expect("set");
            assert_eq!((held.packets, held.bytes), (over.packets, over.bytes), "counted where it was dropped");
            let (_, record) = record(&kernel, &key(&frame)).expect("a record");
            assert_eq!(record.frames(), within.packets, "what passed is in the record");
            truth(&kernel);
        }
    }
}

#[test]
fn a_flows_rate_is_for_both_directions_and_a_sources_for_what_it_sends() {
    let up = udp("198.18.1.1:5", "198.19.0.1:80");
    let down = udp("198.19.0.1:80", "198.18.1.1:5");
    let both = [(Hook::Ingress, up.clone()), (Hook::Egress, down)];
    let mut flow = kernel();
    flow.verdicts.set_flow(&key(&up), &limited(500, 0)).expect("set");
    close(passed(&flow, &both, 500_000, 5), 2500);
    truth(&flow);
    let mut source = kernel();
    source.verdicts.set_source(prefix("198.18.1.1/32"), &limited(500, 0)).expect("set");
    close(passed(&source, &both, 500_000, 5), 2500 + 5000);
    truth(&source);
}

#[test]
fn a_prefix_shares_one_rate_among_its_sources_and_flows() {
    let frames: Vec<_> = (1..=50)
        .map(|host| (Hook::Ingress, udp(&format!("198.18.1.{}:{}", host % 10, 1000 + host), "198.19.0.1:80")))
        .collect();
    let mut kernel = kernel();
    kernel.verdicts.set_source(prefix("198.18.1.0/24"), &limited(200, 0)).expect("set");
    close(passed(&kernel, &frames, 500_000, 10), 2000);
    truth(&kernel);
    let v6: Vec<_> =
        (1..=20).map(|host| (Hook::Ingress, udp(&format!("[2001:db8:7::{host}]:9"), "[2001:db8::2]:80"))).collect();
    kernel.verdicts.set_source(prefix("2001:db8:7::/48"), &limited(0, 71_000)).expect("set");
    let length = v6[0].1.len() as u64;
    close(passed(&kernel, &v6, 500_000, 10), 710_000 / length);
    truth(&kernel);
}

fn service(kernel: &mut Kernel, rate: u64) -> Service {
    let service = Service { address: "198.19.0.1".parse().expect("address"), port: 80, protocol: 6 };
    let limit = Entry::new(Action::Limit, Origin::Operator, 7, UNTIL_NS + 60 * SECOND_NS);
    kernel.verdicts.set_service(service, &limit.limited(Rate { packets: rate, bytes: 0 })).expect("set");
    service
}

/// A spoofed flood of half-open attempts: each from another address.
fn flood(kernel: &Kernel, packets: u32, every_ns: u64) -> u64 {
    let mut passed = 0;
    for number in 0..packets {
        kernel.control.set_replay_clock(START_NS + u64::from(number) * every_ns);
        let source = std::net::Ipv4Addr::from(0xc612_0000 + number);
        passed += u64::from(run(kernel, Hook::Ingress, &syn(&format!("{source}:7"), "198.19.0.1:80")) == XDP_PASS);
    }
    passed
}

#[test]
fn half_open_attempts_are_bounded_for_their_service_alone() {
    let mut kernel = kernel();
    let service = service(&mut kernel, 100);
    // 5 s of 1,000 a second: beyond the rate, none passes at its first try. What does is the burst.
    let passed = flood(&kernel, 5000, 1_000_000);
    assert!((10..=15).contains(&passed), "{passed}");
    let counted = counters(&kernel);
    assert_eq!((counted.dropped_half_open, counted.dropped_new), (5000 - passed, 5000 - passed));
    assert_eq!(records(&kernel).len() as u64, passed, "what is dropped takes no slot");
    for other in ["198.19.0.1:81", "198.19.0.2:80"] {
        assert_eq!(run(&kernel, Hook::Ingress, &syn("198.18.250.1:7", other)), XDP_PASS);
    }
    let old = Frame::tcp(at("198.18.250.1:9"), at("198.19.0.1:80"), ACK).build();
    assert_eq!(run(&kernel, Hook::Ingress, &old), XDP_PASS, "a connection in its middle is no attempt");
    assert_eq!(run(&kernel, Hook::Egress, &syn("198.19.0.9:7", "198.19.0.1:80")), TC_NEXT, "nor is what goes out");
    let held = kernel.verdicts.services().expect("read");
    assert_eq!((held.len(), held[0].0, held[0].1.packets), (1, service, 5000 - passed));
    truth(&kernel);
    kernel.verdicts.remove_service(service).expect("remove").expect("was set");
    assert_eq!(run(&kernel, Hook::Ingress, &syn("198.18.251.1:7", "198.19.0.1:80")), XDP_PASS);
}

#[test]
fn over_the_limit_a_syn_passes_when_it_comes_again() {
    let mut kernel = kernel();
    let service = service(&mut kernel, 100);
    flood(&kernel, 1000, 1_000_000);
    let begun_ns = START_NS + SECOND_NS;
    let send = |kernel: &Kernel, after_ms: u64, frame: &[u8]| {
        kernel.control.set_replay_clock(begun_ns + after_ms * 1_000_000);
        run(kernel, Hook::Ingress, frame)
    };
    let first = |seq: u32| Frame::tcp(at("198.18.220.1:4000"), at("198.19.0.1:80"), SYN).seq(seq, 0).build();
    assert_eq!(send(&kernel, 0, &first(7)), XDP_DROP, "asked to repeat itself");
    assert_eq!(send(&kernel, 200, &first(7)), XDP_DROP, "too early");
    // The flood goes on.
    for number in 0..2000u32 {
        let source = std::net::Ipv4Addr::from(0xc613_8000 + number);
        assert_eq!(send(&kernel, u64::from(number) / 4 + 200, &syn(&format!("{source}:7"), "198.19.0.1:80")), XDP_DROP);
    }
    assert_eq!(send(&kernel, 1000, &first(8)), XDP_DROP, "another sequence number is another attempt");
    let before = records(&kernel).len();
    assert_eq!(send(&kernel, 1000, &first(7)), XDP_PASS);
    assert_eq!(records(&kernel).len(), before + 1, "and has its record");
    // Each SYN counts, those of a flow that has its record, too: to be had for repeating them, and no sooner.
    let dropped = counters(&kernel).dropped_half_open;
    assert_eq!(send(&kernel, 1001, &first(9)), XDP_DROP);
    assert_eq!(counters(&kernel).dropped_half_open, dropped + 1);
    let held = kernel.verdicts.services().expect("read");
    assert_eq!((held[0].0, held[0].1.packets), (service, counters(&kernel).dropped_half_open));
    truth(&kernel);
}

#[test]
fn observe_drops_nothing_and_asks_nobody() {
    let mut kernel = kernel();
    service(&mut kernel, 100);
    kernel.verdicts.set_ceilings(|_| Action::Pass);
    assert_eq!(flood(&kernel, 1000, 1_000_000), 1000);
    let counted = counters(&kernel);
    let withheld = counted.withheld[Action::Drop as usize].packets;
    assert!(withheld > 980 && counted.dropped_half_open == 0, "{withheld}");
    truth(&kernel);
}

#[test]
fn an_address_has_a_limit_for_all_of_its_ports() {
    let mut kernel = kernel();
    let address = "198.19.0.1".parse().expect("address");
    let all = Service { address, port: 0, protocol: 6 };
    kernel.verdicts.set_service(all, &limited(100, 0)).expect("set");
    let own = Service { address, port: 443, protocol: 6 };
    kernel.verdicts.set_service(own, &limited(1_000_000, 0)).expect("set");
    let mut passed = [0u64; 2];
    for number in 0..600u32 {
        kernel.control.set_replay_clock(START_NS + u64::from(number) * 500_000);
        let source = std::net::Ipv4Addr::from(0xc612_0000 + number);
        let port = 1000 + number % 600;
        let frame = syn(&format!("{source}:7"), &format!("198.19.0.1:{port}"));
        passed[0] += u64::from(run(&kernel, Hook::Ingress, &frame) == XDP_PASS);
        let frame = syn(&format!("{source}:8"), "198.19.0.1:443");
        passed[1] += u64::from(run(&kernel, Hook::Ingress, &frame) == XDP_PASS);
    }
    assert!(passed[0] <= 15 && passed[1] == 600, "600 ports share one limit, 443 has its own: {passed:?}");
    let frame = |number: u32| syn("198.18.230.1:9", &format!("198.19.0.1:{}", 1000 + number % 600));
    // SYNs of flows that have records are counted like those of others.
    kernel.verdicts.remove_service(all).expect("remove").expect("was set");
    (0..600).for_each(|number| assert_eq!(run(&kernel, Hook::Ingress, &frame(number)), XDP_PASS));
    kernel.verdicts.set_service(all, &limited(100, 0)).expect("set");
    let again = (0..6000).filter(|number| run(&kernel, Hook::Ingress, &frame(*number)) == XDP_PASS).count();
    assert!(again <= 15, "{again} of 6000");
    truth(&kernel);
}

/// A connection of four packets; `forged`: by somebody who does not see what the server answers.
fn connect(kernel: &Kernel, client: &str, forged: bool) {
    let client = at(client);
    let server = if client.is_ipv4() { at("198.19.0.1:443") } else { at("[2001:db8::1]:443") };
    let ack = if forged { 0x1234_5678 } else { 5001 };
    assert_eq!(run(kernel, Hook::Ingress, &Frame::tcp(client, server, SYN).seq(100, 0).build()), XDP_PASS);
    assert_eq!(run(kernel, Hook::Egress, &Frame::tcp(server, client, SYN | ACK).seq(5000, 101).build()), TC_NEXT);
    for payload in [0, 10, 20, 30, 40, 50, 60] {
        let seq = 101 + (0..payload).step_by(10).sum::<usize>() as u32;
        let frame = Frame::tcp(client, server, ACK).seq(seq, ack).payload(payload).build();
        assert_eq!(run(kernel, Hook::Ingress, &frame), XDP_PASS);
    }
}

#[test]
fn sources_that_completed_a_handshake_are_exempt_for_a_while() {
    let mut kernel = kernel();
    kernel.verdicts.set_note_known(true);
    connect(&kernel, "198.18.200.1:4000", false);
    connect(&kernel, "198.18.200.2:4000", true);
    // One that this host opened says nothing of who comes in.
    let (host, remote) = (at("198.19.0.1:5000"), at("198.18.200.3:443"));
    run(&kernel, Hook::Egress, &Frame::tcp(host, remote, SYN).seq(100, 0).build());
    run(&kernel, Hook::Ingress, &Frame::tcp(remote, host, SYN | ACK).seq(5000, 101).build());
    (0..4).for_each(|_| {
        run(&kernel, Hook::Egress, &Frame::tcp(host, remote, ACK).seq(101, 5001).build());
    });
    let knows = |source: &str| kernel.verdicts.knows(source.parse().expect("address"), START_NS).expect("read");
    assert!(knows("198.18.200.1"));
    let known = kernel.verdicts.known_sources().expect("read");
    assert_eq!(known, 1, "neither forged acknowledgements nor connections of this host");
    service(&mut kernel, 10);
    flood(&kernel, 1000, 1_000_000);
    for port in 1..20 {
        assert_eq!(run(&kernel, Hook::Ingress, &syn(&format!("198.18.200.1:{port}"), "198.19.0.1:80")), XDP_PASS);
        for other in ["198.18.200.2", "198.18.200.3"] {
            assert_eq!(run(&kernel, Hook::Ingress, &syn(&format!("{other}:{port}"), "198.19.0.1:80")), XDP_DROP);
        }
    }
    // Long after, it is like any other.
    kernel.verdicts.know("198.18.200.9".parse().expect("address"), START_NS).expect("know");
    kernel.control.set_replay_clock(START_NS + KNOWN_NS - 1);
    run(&kernel, Hook::Ingress, &syn("198.18.201.1:1", "198.19.0.1:80"));
    let mut port = 1;
    // Each is another: who repeats itself passes.
    let mut stranger = || {
        port += 1;
        syn(&format!("198.18.201.1:{port}"), "198.19.0.1:80")
    };
    // Nothing of the rate is left then.
    while run(&kernel, Hook::Ingress, &stranger()) == XDP_PASS {}
    assert_eq!(run(&kernel, Hook::Ingress, &syn("198.18.200.9:1", "198.19.0.1:80")), XDP_PASS);
    // Two ticks of the memory later.
    kernel.control.set_replay_clock(START_NS + KNOWN_NS + 2 * KNOWN_TICK_NS);
    while run(&kernel, Hook::Ingress, &stranger()) == XDP_PASS {}
    assert_eq!(run(&kernel, Hook::Ingress, &syn("198.18.200.9:2", "198.19.0.1:80")), XDP_DROP);
    truth(&kernel);
}

/// A client of IPv6 is a /64; a network cannot push others out of the memory.
#[test]
fn one_network_does_not_make_known_clients_forgotten() {
    let mut kernel = kernel();
    let known = |client: u32| -> std::net::IpAddr { std::net::Ipv4Addr::from(0xc612_0a00 + client).into() };
    (0..40).for_each(|client| kernel.verdicts.know(known(client), START_NS).expect("know"));
    for number in 0..40_000u64 {
        let host = std::net::Ipv6Addr::from_bits(0x2001_0db8_0066_0000_u128 << 64 | u128::from(number + 1));
        kernel.verdicts.know(host.into(), START_NS + number * 250_000).expect("know");
    }
    assert_eq!(kernel.verdicts.known_sources().expect("read"), 41, "one place for all of them");
    let still =
        (0..40).filter(|client| kernel.verdicts.knows(known(*client), START_NS + 10 * SECOND_NS).expect("read"));
    assert_eq!(still.count(), 40);
    let knows = |source: &str| kernel.verdicts.knows(source.parse().expect("address"), START_NS + 10 * SECOND_NS);
    assert!(knows("2001:db8:66::ffff:1").expect("read") && !knows("2001:db8:66:1::1").expect("read"));
}

#[test]
fn handshakes_of_one_ipv6_network_take_one_place() {
    let mut kernel = kernel();
    kernel.verdicts.set_note_known(true);
    for number in 1..=300 {
        connect(&kernel, &format!("[2001:db8:66::{number:x}]:4000"), false);
    }
    assert_eq!(kernel.verdicts.known_sources().expect("read"), 1);
    kernel.verdicts.know("2001:db8:67::1".parse().expect("address"), START_NS).expect("know");
    let limit = limited(1, 0);
    let address = "2001:db8::1".parse().expect("address");
    kernel.verdicts.set_service(Service { address, port: 443, protocol: 6 }, &limit).expect("set");
    let attempt = |from: &str| run(&kernel, Hook::Ingress, &syn(from, "[2001:db8::1]:443"));
    let passed = (1..=40).filter(|port| attempt(&format!("[2001:db8:99::1]:{port}")) == XDP_PASS).count();
    assert!(passed <= 2, "{passed} of 40 within a limit of 1");
    assert_eq!(attempt("[2001:db8:66::abcd]:9"), XDP_PASS, "an address of a /64 that is known");
    assert_eq!(attempt("[2001:db8:67::2]:9"), XDP_PASS, "the same, said by the agent");
    assert_eq!(attempt("[2001:db8:66:1::1]:9"), XDP_DROP, "another /64");
}

#[test]
fn nobody_is_remembered_unless_asked_for() {
    let kernel = kernel();
    connect(&kernel, "198.18.200.1:4000", false);
    assert_eq!(kernel.verdicts.known_sources().expect("read"), 0);
}
