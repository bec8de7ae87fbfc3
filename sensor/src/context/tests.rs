use std::net::Ipv4Addr;

use sensor_common::context::Ends;
use sensor_common::features::{FEATURES, Sample, by_name};
use sensor_common::flow::{Domain, FlowKey};
use sensor_common::packet::{self, Packet, protocol};
use sensor_common::tcp::{ACK, RST, SYN};

use super::*;

const SECOND: u64 = 1_000_000_000;

/// An Ethernet frame of 10 payload bytes.
fn frame(from: (u32, u16), to: (u32, u16), protocol: u8, flags: u8) -> Packet {
    let mut frame = vec![0u8; 12];
    let l4: &[u8] = if protocol == protocol::TCP { &[0; 16] } else { &[0; 4] };
    let len = 20 + 4 + l4.len() + 10;
    frame.extend([0x08, 0x00, 0x45, 0, 0, len as u8, 0, 0, 0, 0, 64, protocol, 0, 0]);
    frame.extend(Ipv4Addr::from(from.0).octets());
    frame.extend(Ipv4Addr::from(to.0).octets());
    frame.extend(from.1.to_be_bytes());
    frame.extend(to.1.to_be_bytes());
    let at = frame.len();
    frame.extend(l4);
    frame.extend([0; 10]);
    if protocol == protocol::TCP {
        (frame[at + 8], frame[at + 9]) = (0x50, flags);
        // Of a SYN and its 10 bytes from 0 on.
        frame[at + 7] = if flags & ACK != 0 { 11 } else { 0 };
    } else {
        frame[at + 1] = 18;
    }
    packet::parse(&frame[..]).expect("well-formed")
}

/// A replay with a table that forgets nothing.
struct Bench {
    replay: Replay,
    records: Vec<FlowRecord>,
    now_ns: u64,
}

impl Bench {
    fn new() -> Bench {
        Bench { replay: Replay::new(REPLAY_SEED), records: Vec::new(), now_ns: 5_000 * SECOND }
    }

    fn packet(&mut self, packet: &Packet) -> u32 {
        self.wait(0);
        let slot = match self.records.iter().position(|record| record.key == packet.key) {
            Some(slot) => slot,
            None => {
                let mut record = FlowRecord::zeroed();
                record.start(packet, self.now_ns, 0, 1);
                self.replay.start(packet, self.now_ns);
                self.records.push(record);
                self.records.len() - 1
            }
        };
        self.records[slot].update(packet, self.now_ns);
        self.replay.packet(slot as u32, 1, self.now_ns);
        slot as u32
    }

    fn wait(&mut self, ns: u64) {
        self.now_ns += ns;
        let records = &self.records;
        self.replay.advance(self.now_ns, |slot| &records[slot as usize]);
    }

    fn context(&self, slot: u32) -> ([SourceWindow; WINDOWS], [ServiceWindow; WINDOWS]) {
        let context = self.replay.context(&self.records[slot as usize], self.now_ns);
        (context.source.expect("known"), context.service.expect("known"))
    }
}

const SERVER: (u32, u16) = (0xc613_0001, 80);

#[test]
fn a_flow_has_one_second_for_its_answer() {
    let mut bench = Bench::new();
    let (quick, late, never, refused) = ((1, 1000), (1, 1001), (1, 1002), (1, 1003));
    let slot = bench.packet(&frame(quick, SERVER, protocol::TCP, SYN));
    for client in [late, never, refused] {
        bench.packet(&frame(client, SERVER, protocol::TCP, SYN));
    }
    bench.wait(SECOND / 2);
    bench.packet(&frame(SERVER, quick, protocol::TCP, SYN | ACK));
    bench.packet(&frame(SERVER, refused, protocol::TCP, RST | ACK));
    assert_eq!(bench.context(slot).0[1].judged, 0, "not yet");
    bench.wait(SECOND / 2 + 10_000_000);
    bench.packet(&frame(SERVER, late, protocol::TCP, SYN | ACK));
    bench.wait(2 * SECOND);
    let (source, service) = bench.context(slot);
    let [_, ten, minute] = source;
    assert_eq!((ten.judged, ten.unanswered, ten.failed, ten.resets), (4, 2, 3, 1));
    assert_eq!((minute.new_flows, minute.ports, minute.hosts), (4, 1, 1));
    assert_eq!((service[1].judged, service[1].unanswered, service[1].failed, service[1].resets), (4, 2, 3, 1));
    // 50 bytes a segment: four SYNs and three answers.
    assert_eq!((ten.bytes, service[1].bytes), (7 * 50, 7 * 50));
    bench.wait(200 * SECOND);
    assert_eq!(bench.context(slot), Default::default(), "all has slid out");
}

#[test]
fn bytes_of_a_long_flow_come_as_they_are_sent_and_once() {
    let mut bench = Bench::new();
    let slot = bench.packet(&frame((1, 9), SERVER, protocol::UDP, 0));
    for _ in 0..200 {
        bench.wait(SECOND / 10);
        bench.packet(&frame((1, 9), SERVER, protocol::UDP, 0));
    }
    bench.wait(2 * SECOND);
    let (source, _) = bench.context(slot);
    // 38 bytes a datagram, ten a second, the last two seconds without.
    assert_eq!(source[2].bytes, 201 * 38);
    assert!((70 * 38..=95 * 38).contains(&source[1].bytes), "{:?}", source[1]);
    assert_eq!(source[2].unanswered, 1, "judged once");
    let record = bench.records[slot as usize];
    bench.replay.end(slot, &record, bench.now_ns);
    assert_eq!(bench.context(slot).0[2].bytes, 201 * 38, "the end enters nothing twice");
}

#[test]
fn a_flow_that_ends_early_is_judged_at_its_end() {
    let mut bench = Bench::new();
    let slot = bench.packet(&frame((1, 9), SERVER, protocol::TCP, SYN));
    bench.wait(SECOND / 10);
    let record = bench.records[slot as usize];
    bench.replay.end(slot, &record, bench.now_ns);
    bench.wait(3 * SECOND);
    let (source, _) = bench.context(slot);
    assert_eq!((source[1].judged, source[1].unanswered, source[1].bytes), (1, 1, 50));
}

#[test]
fn lost_flows_are_a_services_unanswered_ones_as_far_as_it_has_new_flows() {
    let mut ledger = Ledger::new(64, 64);
    let mut notes = HostNotes::new(REPLAY_SEED, 64, 64);
    let now_ns = 100 * SECOND;
    for client in 0..500 {
        notes.note(&frame((client, 9), SERVER, protocol::TCP, SYN), now_ns);
    }
    for client in 0..3 {
        notes.note(&frame((client, 9), (7, 443), protocol::TCP, SYN), now_ns);
    }
    let ends = |to| {
        let packet = frame((1, 9), to, protocol::TCP, SYN);
        Ends::new(&packet.key, sensor_common::flow::starts_high(&packet), |position| REPLAY_SEED[position])
    };
    let (victim, other) = (ends(SERVER), ends((7, 443)));
    let service = |ledger: &Ledger, ends| host_context(&notes, ledger, ends, now_ns).service.expect("known")[1];
    assert_eq!(service(&ledger, &victim).unanswered, 0, "nothing was lost: they are only young");
    ledger.lose(400, tick_of(now_ns));
    let window = service(&ledger, &victim);
    assert_eq!((window.new_flows, window.unanswered, window.failed, window.judged), (500, 400, 400, 400));
    assert_eq!(service(&ledger, &other).unanswered, 3, "never more than its own new flows");
    assert_eq!(host_context(&notes, &ledger, &victim, now_ns + 200 * SECOND).service, Some(Default::default()));
}

#[test]
fn looks_come_after_the_time_for_an_answer_and_then_only_for_news() {
    let mut watch = Watch::default();
    assert!(!watch.is_due(0, 0, 100), "a free slot");
    assert!(!watch.is_due(9, 100, 100), "just noticed");
    assert!(!watch.is_due(9, 105, 115));
    assert_eq!((watch.rest(105, 100), watch.rest(105, 115)), (16, 1));
    assert!(watch.is_due(9, 105, 116));
    watch.looked(105, 116);
    let mut ledger = Ledger::new(64, 64);
    let packet = frame((1, 9), SERVER, protocol::TCP, SYN);
    let mut record = FlowRecord::zeroed();
    record.start(&packet, 0, 0, 1);
    record.update(&packet, 0);
    watch.enter(&Brief::of(&record), &ends_of(&record, &REPLAY_SEED), 8 * SECOND, false, &mut ledger);
    assert!(watch.is_of(9, 1));
    assert!(!watch.is_due(9, 105, 500), "judged, and no packet since");
    assert_eq!((watch.rest(105, 120), watch.rest(106, 120), watch.rest(106, 500)), (u32::MAX, 12, 0));
    assert!(watch.is_due(9, 499, 500));
    assert!(!watch.is_due(8, 499, 500), "another flow");
}

#[test]
fn a_flood_of_sources_leaves_those_with_history_in_the_ledger() {
    let mut bench = Bench::new();
    let slot = bench.packet(&frame((1, 1), SERVER, protocol::TCP, SYN));
    for port in 2..20 {
        bench.packet(&frame((1, port), SERVER, protocol::TCP, SYN));
    }
    bench.wait(2 * SECOND);
    let seed = REPLAY_SEED;
    for source in 0..50_000u32 {
        let packet = frame((0x0a00_0000 + source, 1), SERVER, protocol::TCP, SYN);
        let mut record = FlowRecord::zeroed();
        record.start(&packet, bench.now_ns, 0, 1);
        record.update(&packet, bench.now_ns);
        let events = Brief::of(&record);
        Watch::default().enter(&events, &ends_of(&record, &seed), bench.now_ns, true, bench.replay.ledger_mut());
    }
    let (source, service) = bench.context(slot);
    assert_eq!(source[1].unanswered, 19);
    assert_eq!(service[1].unanswered, 50_019);
}

/// Enters a flow of `syns` SYNs from `source` to `port` of the server, which begins at `now_ns`; `opened`: answered and
/// completed.
fn attempt(ledger: &mut Ledger, source: u32, port: u16, syns: u32, opened: bool, now_ns: u64) {
    let packet = frame((source, 9), (SERVER.0, port), protocol::TCP, SYN);
    let mut record = FlowRecord::zeroed();
    record.start(&packet, now_ns, 0, 1);
    (0..syns).for_each(|_| record.update(&packet, now_ns));
    if opened {
        record.update(&frame((SERVER.0, port), (source, 9), protocol::TCP, SYN | ACK), now_ns);
        record.update(&frame((source, 9), (SERVER.0, port), protocol::TCP, ACK), now_ns);
    }
    Watch::default().enter(&Brief::of(&record), &ends_of(&record, &REPLAY_SEED), now_ns, true, ledger);
}

#[test]
fn floods_of_syns_show_by_service_and_by_address() {
    let now_ns = 5_000 * SECOND;
    let named = |ledger: &Ledger| -> Vec<(u16, f64, f64)> {
        let mut found = ledger.half_open(tick_of(now_ns), 50.0);
        found.sort_by_key(|(key, _, _)| key.0[4]);
        found.into_iter().map(|(key, rate, share)| (key.0[4] as u16, rate.round(), (share * 100.0).round())).collect()
    };
    let mut ledger = Ledger::new(1024, 1024);
    (0..1000).for_each(|source| attempt(&mut ledger, source, 80, 1, false, now_ns));
    (0..1000).for_each(|source| attempt(&mut ledger, source, 80, 1, true, now_ns));
    assert_eq!(named(&ledger), [(80, 100.0, 50.0)], "and not its address for the same SYNs");
    // 600 ports, of which none is over the limit.
    (0..1200).for_each(|source| attempt(&mut ledger, source, 1000 + (source % 600) as u16, 1, false, now_ns));
    assert_eq!(named(&ledger), [(0, 120.0, 100.0), (80, 100.0, 50.0)]);
    // More ports than there are accounts of services.
    let mut ledger = Ledger::new(1024, 64);
    (0..20_000).for_each(|source| attempt(&mut ledger, source, 1000 + source as u16, 1, false, now_ns));
    assert_eq!(named(&ledger), [(0, 2000.0, 100.0)]);
    // SYNs that repeat within a flow count, each once.
    let mut ledger = Ledger::new(1024, 1024);
    attempt(&mut ledger, 7, 80, 3000, false, now_ns);
    assert_eq!(named(&ledger), [(80, 300.0, 100.0)]);
}

#[test]
fn syns_of_a_flow_that_lasts_are_entered_once() {
    let (mut ledger, mut watch) = (Ledger::new(64, 64), Watch::default());
    let packet = frame((7, 9), SERVER, protocol::TCP, SYN);
    let mut record = FlowRecord::zeroed();
    let begun = 5_000 * SECOND;
    record.start(&packet, begun, 0, 1);
    for second in 0..5 {
        let now_ns = begun + second * SECOND;
        (0..100).for_each(|_| record.update(&packet, now_ns));
        watch.enter(&Brief::of(&record), &ends_of(&record, &REPLAY_SEED), now_ns, false, &mut ledger);
    }
    let found = ledger.half_open(tick_of(begun + 4 * SECOND), 1.0);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].1.round(), 50.0, "500 in ten seconds");
}

/// One host of IPv6 is one source, whatever address it takes; so is its network for a service.
#[test]
fn a_source_of_ipv6_is_its_network() {
    let key = |host: u32| {
        FlowKey::canonical([0x2001_0db8, 1, host, 7], [0x2001_0db8, 2, 0, 1], 9, 80, 6, 6, Domain::default())
    };
    let source = |host: u32| {
        let (key, from_low) = key(host);
        Ends::new(&key, !from_low, |position| REPLAY_SEED[position])
    };
    assert_eq!(source(5).source, source(6).source);
    assert_eq!((source(5).source_hash, source(5).service), (source(6).source_hash, source(6).service));
    assert_eq!(source(5).source.0[..4], [0x2001_0db8, 1, 0, 0]);
    assert_eq!(source(5).service.0[..4], [0x2001_0db8, 2, 0, 1], "a service has its address");
}

#[test]
fn features_have_their_values() {
    let record = FlowRecord::zeroed();
    let value = |context: &HostContext, name: &str| {
        let feature = by_name(name).expect(name);
        feature.value(&Sample { record: &record, context })
    };
    let of_context: Vec<_> = FEATURES.iter().filter(|feature| feature.needs_context()).collect();
    assert_eq!(of_context.len(), 39);
    assert!(of_context.iter().all(|feature| value(&HostContext::NONE, feature.name).is_nan()));
    let mut windows = [SourceWindow::default(); WINDOWS];
    windows[1] = SourceWindow { ports: 7, judged: 4, failed: 1, ..SourceWindow::default() };
    let context = HostContext { source: Some(windows), service: None };
    assert_eq!(value(&context, "src_ports_10s"), 7.0);
    assert_eq!(value(&context, "src_failed_share_10s"), 0.25);
    assert!(value(&context, "src_failed_share_1s").is_nan() && value(&context, "dst_sources_1s").is_nan());
    assert_eq!(value(&context, "src_new_flows_60s"), 0.0);
}

#[test]
fn looks_do_not_pile_up_while_time_stands_still() {
    let mut bench = Bench::new();
    bench.packet(&frame((1, 1000), SERVER, protocol::TCP, SYN));
    for generation in 2..10_000 {
        bench.replay.packet(0, generation, bench.now_ns);
        assert!(bench.replay.waiting() <= 1024);
    }
    bench.wait(2 * SECOND);
    assert_eq!(bench.replay.waiting(), 0, "that of the last flow was taken");
}
