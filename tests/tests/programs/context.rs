//! The host context in the programs: the same integers as on the host, and what attacks look like in it.

use std::net::SocketAddr;
use std::time::Instant;

use bytemuck::Zeroable as _;
use sensor::bpf::load::{Hook, Kernel, LoadOptions, TestRunOptions};
use sensor::context::{HostNotes, Ledger, Notes as _, ends_of, host_context};
use sensor_common::context::{DEFAULT_SERVICES, DEFAULT_SOURCES, Ends, HostContext, Set};
use sensor_common::counter::Cause;
use sensor_common::flow::starts_high;
use sensor_common::packet;
use sensor_common::tcp::{ACK, RST, SYN};
use sensor_tests::frames::Frame;
use sensor_tests::rng::Rng;

use crate::rig::{SECOND_NS, START_NS, XDP_PASS, at, counters, establish, load, options, records, run, seed};

/// Programs, and the host's tables beside them.
struct Pair {
    kernel: Kernel,
    host: HostNotes,
    now_ns: u64,
}

impl Pair {
    fn new(options: &LoadOptions) -> Pair {
        let host = HostNotes::new(seed(), DEFAULT_SOURCES, DEFAULT_SERVICES);
        Pair { kernel: load(options), host, now_ns: START_NS }
    }

    /// A received frame that starts a flow.
    fn starts(&mut self, frame: &[u8]) {
        self.goes_on(frame);
        self.host.note(&packet::parse(frame).expect("well-formed"), self.now_ns);
    }

    /// A received frame of a flow that is known.
    fn goes_on(&mut self, frame: &[u8]) {
        self.kernel.control.set_replay_clock(self.now_ns);
        assert_eq!(run(&self.kernel, Hook::Ingress, frame), XDP_PASS);
    }

    fn compare(&self) {
        let (sources, services) = self.host.sets();
        let context = self.kernel.context.as_ref().expect("is on");
        for (map, sets, what) in [(&context.sources, sources, "source"), (&context.services, services, "service")] {
            assert_eq!(map.sets(), sets.len());
            for (number, host) in sets.iter().enumerate() {
                let kernel = map.copy(number).expect("nobody writes now");
                assert!(
                    Set { sequence: 0, ..kernel } == *host,
                    "{what} set {number}\nkernel: {kernel:?}\nhost: {host:?}"
                );
            }
        }
        let counters = counters(&self.kernel);
        assert_eq!((counters.context_replaced, counters.context_lost), (self.host.replaced(), 0));
    }

    /// The context of the flow that `frame` starts, by what the programs know alone.
    fn context(&self, frame: &[u8]) -> HostContext {
        let packet = packet::parse(frame).expect("well-formed");
        let ends = Ends::new(&packet.key, starts_high(&packet), |position| seed()[position]);
        let ledger = Ledger::new(4, 4);
        host_context(self.kernel.context.as_ref().expect("is on"), &ledger, &ends, self.now_ns)
    }
}

fn client(number: u32, port: u16) -> SocketAddr {
    SocketAddr::from(([198, 18 | (number >> 16 & 1) as u8, (number >> 8) as u8, number as u8], port))
}

#[test]
fn the_kernel_keeps_the_integers_of_the_host() {
    let mut pair = Pair::new(&options());
    let mut rng = Rng::new(7);
    // Six minutes, so that windows roll and entries grow old; more sources than entries.
    for number in 0..12_000u32 {
        pair.now_ns += rng.next_u64() % (60_000_000);
        let host = (rng.next_u64() % 6_000) as u32;
        let from = client(if host < 3_000 { host % 50 } else { host }, 1024 + (number % 60_000) as u16);
        let port = if number % 3 == 0 { (rng.next_u64() % 2_000) as u16 } else { 443 };
        let to = SocketAddr::from(([198, 19, 200, (rng.next_u64() % 9) as u8], port));
        // The number in the ports and the key tell flows apart, so each starts one.
        let frame = match number % 7 {
            0 => Frame::udp(from, to),
            1 => Frame::tcp(from, to, SYN | ACK),
            2 => Frame::tcp(from, to, ACK),
            _ => Frame::tcp(from, to, SYN),
        };
        pair.starts(&frame.build());
    }
    pair.compare();
    assert!(pair.host.replaced() > 100, "full sets are part of it: {}", pair.host.replaced());
}

#[test]
fn only_first_packets_count_and_port_reuse_is_a_new_flow() {
    let mut pair = Pair::new(&options());
    let (from, to) = (at("198.18.0.1:4000"), at("198.19.0.1:80"));
    let syn = Frame::tcp(from, to, SYN).build();
    pair.starts(&syn);
    for frame in [Frame::tcp(to, from, SYN | ACK), Frame::tcp(from, to, ACK), Frame::tcp(to, from, RST | ACK)] {
        pair.now_ns += 1_000_000;
        pair.goes_on(&frame.build());
    }
    pair.starts(&syn);
    pair.compare();
    let context = pair.context(&syn);
    assert_eq!(
        context.source.expect("known").map(|window| (window.new_flows, window.ports, window.hosts)),
        [(2, 1, 1); 3]
    );
    assert_eq!(context.service.expect("known").map(|window| (window.new_flows, window.sources)), [(2, 1); 3]);
    pair.now_ns += 3 * SECOND_NS;
    let [second, ten, _] = pair.context(&syn).source.expect("known");
    assert_eq!((second.new_flows, second.ports, ten.ports), (0, 0, 1));
}

#[test]
fn a_port_scan_shows_in_ports_and_a_sweep_in_hosts() {
    let mut pair = Pair::new(&options());
    let scanner = at("198.18.0.1:4000");
    let mut syn = Vec::new();
    for port in 1..=1000u16 {
        pair.now_ns += 500_000;
        syn = Frame::tcp(scanner, SocketAddr::from(([198, 19, 0, 1], port)), SYN).build();
        pair.starts(&syn);
    }
    let [second, ten, minute] = pair.context(&syn).source.expect("known");
    for window in [second, ten, minute] {
        assert_eq!((window.new_flows, window.hosts), (1000, 1));
        assert!((600..1500).contains(&window.ports), "{window:?}");
    }
    assert_eq!(pair.context(&syn).service.expect("known")[2].new_flows, 1, "each port is a service of its own");

    let sweeper = at("198.18.0.2:4000");
    for host in 0..1000u32 {
        pair.now_ns += 500_000;
        syn = Frame::tcp(sweeper, client(1 << 16 | host, 22), SYN).build();
        pair.starts(&syn);
    }
    let minute = pair.context(&syn).source.expect("known")[2];
    assert_eq!((minute.new_flows, minute.ports), (1000, 1));
    assert!((600..1500).contains(&minute.hosts), "{minute:?}");
    pair.compare();
}

/// Each SYN from another address, at the smallest flow table, with nobody who reads the ring.
#[test]
fn a_spoofed_flood_shows_in_the_service_and_spares_sources_with_history() {
    let mut pair = Pair::new(&options());
    let server = at("198.19.0.1:80");
    let benign: Vec<_> = (0..200u32).map(|number| client(1 << 16 | number, 0)).collect();
    for connection in 0..5u16 {
        for from in &benign {
            pair.now_ns += 2_000_000;
            let from = SocketAddr::new(from.ip(), 5000 + connection);
            pair.starts(&Frame::tcp(from, at("198.19.0.9:443"), SYN).build());
        }
    }
    const FLOOD: u32 = 120_000;
    let begun = Instant::now();
    let mut syn = Frame::tcp(client(0, 1), server, SYN).build();
    for number in 0..FLOOD {
        pair.now_ns += 20_000;
        // Every address another one, in no order: multiplication by an odd number is a permutation.
        let address = (10 << 24 | number.wrapping_mul(0x9e_3779) & 0x00ff_ffff).to_be_bytes();
        syn[26..30].copy_from_slice(&address);
        pair.starts(&syn);
    }
    println!("{} ns per new flow and run, host's table included", begun.elapsed().as_nanos() / FLOOD as u128);
    pair.compare();
    let kernel = counters(&pair.kernel);
    assert!(kernel.evicted_lost_flows > 100_000, "the agent never saw them: {kernel:?}");
    assert_eq!(records(&pair.kernel).len(), 8192, "the table is full");
    let [second, ten, _] = pair.context(&syn).service.expect("the victim's own entry is the heaviest");
    assert!((45_000..55_000).contains(&second.new_flows), "{second:?}");
    assert_eq!(ten.new_flows, FLOOD);
    assert!((FLOOD * 6 / 10..FLOOD * 3 / 2).contains(&ten.sources), "{ten:?}");
    let mut known = 0;
    for from in &benign {
        let syn = Frame::tcp(SocketAddr::new(from.ip(), 5004), at("198.19.0.9:443"), SYN).build();
        let context = pair.context(&syn);
        assert_eq!(context.service.expect("known")[2].new_flows, 1000);
        if let Some([_, _, minute]) = context.source {
            assert_eq!((minute.new_flows, minute.hosts), (5, 1));
            known += 1;
        }
    }
    assert!(known >= 190, "{known} of {} sources with history survived", benign.len());
    // What the agent makes of it: nothing was judged, and all of these flows were lost.
    let mut ledger = Ledger::new(4, 4);
    ledger.lose(kernel.evicted_lost_flows, sensor_common::context::tick_of(pair.now_ns));
    let packet = packet::parse(&syn[..]).expect("well-formed");
    let ends = Ends::new(&packet.key, starts_high(&packet), |position| seed()[position]);
    let context = host_context(pair.kernel.context.as_ref().expect("is on"), &ledger, &ends, pair.now_ns);
    let ten = context.service.expect("known")[1];
    assert!(ten.unanswered > FLOOD * 8 / 10 && ten.unanswered <= ten.new_flows, "{ten:?}");
}

/// Flows that find no place count all the same.
#[test]
fn a_full_bucket_does_not_hide_new_flows() {
    let mut pair = Pair::new(&options());
    let server = at("198.19.0.1:80");
    // A live connection in every way.
    for number in 0..30_000u32 {
        establish(&pair.kernel, client(number, 2000), server);
    }
    let before = counters(&pair.kernel).unrecorded[Cause::BucketFull as usize];
    assert!(before > 10_000, "{before}");
    let from = at("198.18.250.1:7");
    for port in 1..=64u16 {
        pair.goes_on(&Frame::tcp(from, SocketAddr::from(([198, 19, 7, 7], port)), SYN).build());
        pair.goes_on(&Frame::tcp(from, SocketAddr::from(([198, 19, 7, 7], port)), ACK).build());
    }
    let last = Frame::tcp(from, at("198.19.7.7:64"), SYN).build();
    let minute = pair.context(&last).source.expect("the heaviest of its set")[2];
    assert_eq!(minute.new_flows, 64, "the SYN counts, what follows does not");
    assert!((40..100).contains(&minute.ports), "{minute:?}");
}

/// Two CPUs at one service: every new flow is counted, or counted as lost.
#[test]
fn cpus_at_one_service_lose_nothing_unseen() {
    const REPEAT: u32 = 100_000;
    let kernel = load(&options());
    let server = at("198.19.0.1:80");
    // No bucket has a place, so each run is a new flow that finds none.
    for number in 0..30_000u32 {
        establish(&kernel, client(number, 2000), server);
    }
    let before = counters(&kernel);
    let service = at("198.19.9.9:443");
    let runner = kernel.runner();
    std::thread::scope(|scope| {
        for from in ["198.18.254.1:1", "198.18.254.2:1"] {
            scope.spawn(move || {
                let frame = Frame::tcp(at(from), service, SYN).build();
                let options = TestRunOptions { data_in: Some(&frame), repeat: REPEAT, ..TestRunOptions::default() };
                runner.run(Hook::Ingress, options).expect("runs");
            });
        }
    });
    let after = counters(&kernel);
    assert_eq!(after.flows_created, before.flows_created, "none found a place");
    let packet = packet::parse(&Frame::tcp(at("198.18.254.1:1"), service, SYN).build()[..]).expect("well-formed");
    let ends = Ends::new(&packet.key, starts_high(&packet), |position| seed()[position]);
    let tables = kernel.context.as_ref().expect("is on");
    let context = host_context(tables, &Ledger::new(4, 4), &ends, START_NS);
    let minute = context.service.expect("known")[2];
    println!("{} of {} lost", after.context_lost, 2 * REPEAT);
    assert_eq!((minute.new_flows as u64) + after.context_lost - before.context_lost, 2 * REPEAT as u64);
    assert_eq!(minute.sources, 2);
}

#[test]
fn switched_off_it_is_not_there() {
    let kernel = load(&LoadOptions { context: None, ..options() });
    assert!(kernel.context.is_none());
    let on = load(&options());
    assert_eq!(
        on.memory().taken - kernel.memory().taken,
        (size_of::<Set>() * ((DEFAULT_SOURCES + DEFAULT_SERVICES) as usize / 4 - 2)) as u64
    );
    let syn = Frame::tcp(at("198.18.0.1:4000"), at("198.19.0.1:80"), SYN).build();
    assert_eq!(run(&kernel, Hook::Ingress, &syn), XDP_PASS);
    assert_eq!(records(&kernel).len(), 1);
    let tables = on.context.as_ref().expect("is on");
    assert_eq!(tables.source(5, |set| *set == Set::zeroed()), Some(true));
    let ends = ends_of(&records(&kernel)[0].1, &seed());
    let quiet = host_context(tables, &Ledger::new(4, 4), &ends, START_NS);
    assert_eq!(quiet.source.expect("quiet is known")[0].new_flows, 0);
}

/// Time of the first packet of a flow with and without context: of a hot source that finds its bucket full, and of spoofed
/// sources, each run with a cold call around it.
#[test]
#[ignore = "measures; run it by its name on a quiet machine"]
fn what_a_new_flow_costs() {
    let (mut hot, mut cold, mut verified) = ([u32::MAX; 2], [0u128; 2], [0; 2]);
    let mut kernels = [None, options().context].map(|context| load(&LoadOptions { context, ..options() }));
    for (number, kernel) in kernels.iter_mut().enumerate() {
        let server = at("198.19.0.1:80");
        for client in 0..30_000u32 {
            for flags in [SYN, ACK, ACK, ACK] {
                run(kernel, Hook::Ingress, &Frame::tcp(self::client(client, 2000), server, flags).build());
            }
        }
        verified[number] =
            kernel.programs().iter().map(|one| one.verified_instructions.unwrap_or(0)).max().unwrap_or(0);
    }
    for _ in 0..7 {
        for (number, kernel) in kernels.iter_mut().enumerate() {
            let syn = Frame::tcp(at("198.18.255.1:7"), at("198.19.0.1:80"), SYN).build();
            let (_, ns) = kernel.test_run(Hook::Ingress, &syn, 200_000).expect("runs");
            hot[number] = hot[number].min(ns);
        }
    }
    let mut syn = Frame::tcp(at("198.18.255.1:7"), at("198.19.0.1:80"), SYN).build();
    for source in 0..100_000u32 {
        for (number, kernel) in kernels.iter_mut().enumerate() {
            syn[26..30].copy_from_slice(&(10 << 24 | source.wrapping_mul(0x9e_3779) & 0x00ff_ffff).to_be_bytes());
            cold[number] += kernel.test_run(Hook::Ingress, &syn, 1).expect("runs").1 as u128;
        }
    }
    println!("verified instructions without, with: {verified:?}");
    println!("new flow without a place, hot, ns: {hot:?}; spoofed, ns: {:?}", cold.map(|sum| sum / 100_000));
    assert!(hot[1] > hot[0]);
}
