//! What is held, and what gives way.

use sensor_common::flow::{FlowKey, state};
use sensor_common::tcp;

use super::*;

/// A UDP packet of 100 bytes from host `host`.
fn packet(host: u32) -> Packet {
    let mut frame = [0u8; 114];
    frame[12..16].copy_from_slice(&[0x08, 0x00, 0x45, 0]);
    frame[16..18].copy_from_slice(&100u16.to_be_bytes());
    frame[23] = sensor_common::packet::protocol::UDP;
    frame[26..30].copy_from_slice(&(0xc612_0000 | host).to_be_bytes());
    frame[30..34].copy_from_slice(&[198, 19, 0, 1]);
    frame[39] = 80;
    sensor_common::packet::parse(&frame[..]).expect("well-formed")
}

fn table(max_flows: usize) -> Table {
    Table::new(Timeouts::default(), Vec::new()).with_max_flows(max_flows)
}

/// Offers (time in s, host) and says what ended, in order: host, packets, reason.
fn ends(table: &mut Table, packets: &[(u64, u32)]) -> Vec<(u32, u64, Reason)> {
    let mut ends = Vec::new();
    let mut sink = |record: &FlowRecord, reason: Reason| {
        let FlowKey { low, .. } = record.key;
        ends.push((low[0] & 0xffff, record.packets(), reason));
        Ok::<_, ()>(())
    };
    let packets: Vec<_> = packets.iter().map(|(at_s, host)| (at_s * SECOND_NS, packet(*host))).collect();
    table.packets(&packets, &mut sink).expect("the sink takes all");
    ends
}

#[test]
fn the_flow_idle_longest_gives_way() {
    let mut table = table(3);
    assert_eq!(ends(&mut table, &[(1, 1), (2, 2), (3, 3), (4, 1)]), []);
    assert_eq!(ends(&mut table, &[(5, 4)]), [(2, 1, Reason::Evicted)]);
    assert_eq!(ends(&mut table, &[(6, 3), (7, 5)]), [(1, 2, Reason::Evicted)]);
    assert_eq!(table.len(), 3);
}

#[test]
fn many_flows_in_few_places_lose_no_packet() {
    let mut table = table(1_000);
    let packets: Vec<_> = (0..50_000u64).map(|step| (step / 1_000, (step * 7 % 5_003) as u32)).collect();
    let mut counted: u64 = ends(&mut table, &packets).iter().map(|(_, packets, _)| packets).sum();
    assert_eq!(table.len(), 1_000);
    assert!(table.slots.len() == 1_000, "places are used again: {}", table.slots.len());
    let mut sink = |record: &FlowRecord, _: Reason| {
        counted += record.packets();
        Ok::<_, ()>(())
    };
    table.finish(&mut sink).expect("the sink takes all");
    assert_eq!(counted, 50_000);
    assert!(table.is_empty());
}

#[test]
fn years_between_packets_are_idle_time() {
    let mut table = table(10);
    let year = 365 * 24 * 3600;
    assert_eq!(ends(&mut table, &[(1, 1), (2, 2), (year, 1)]), [(1, 1, Reason::Idle), (2, 1, Reason::Idle)]);
    assert_eq!(ends(&mut table, &[(1, 3)]), [(1, 1, Reason::Clock)], "another recording");
}

/// Packets out of order: the list's head is not the one idle longest, but a flow that is over never goes on.
#[test]
fn a_flow_that_is_over_does_not_go_on() {
    let mut table = table(10);
    assert_eq!(ends(&mut table, &[(100, 1), (50, 2), (111, 2)]), [(2, 1, Reason::Idle)]);
}

/// One address sends to many, then one of its flows reaches a snapshot, then all end.
#[test]
fn records_come_with_their_host_context() {
    let cell = Rc::new(Cell::new(HostContext::NONE));
    let mut table = Table::new(Timeouts::default(), vec![2]).with_context(crate::context::REPLAY_SEED, cell.clone());
    let mut seen = Vec::new();
    let mut sink = |record: &FlowRecord, reason: Reason| {
        seen.push((record.key.low[0] & 0xffff, reason, cell.get()));
        Ok::<_, ()>(())
    };
    let start = 1_700_000_000 * SECOND_NS;
    for host in 1..=50u64 {
        table.packet(&packet(host as u32), start + host * 1_000_000, &mut sink).expect("taken");
    }
    table.packet(&packet(7), start + 3 * SECOND_NS, &mut sink).expect("taken");
    table.packet(&packet(9), start + 200 * SECOND_NS, &mut sink).expect("taken");
    table.finish(&mut sink).expect("taken");
    let (host, reason, context) = seen[0];
    assert_eq!((host, reason), (7, Reason::Snapshot(1)));
    let service = context.service.expect("known")[1];
    assert_eq!((service.new_flows, service.judged, service.unanswered), (50, 50, 50));
    assert!((35..70).contains(&service.sources), "{service:?}");
    assert_eq!(service.bytes, 50 * 100, "the snapshot's own packet is entered at the next look");
    let source = context.source.expect("known")[1];
    assert_eq!((source.new_flows, source.ports, source.hosts, source.judged), (1, 1, 1, 1));
    // The context of a flow that was idle is that of the time it timed out, not of the packet that shows it.
    let (_, reason, context) = seen.iter().find(|(host, ..)| *host == 50).expect("ended");
    assert_eq!(*reason, Reason::Idle);
    assert!(context.service.expect("known")[2].new_flows > 0 && context.service.expect("known")[1].new_flows == 0);
    let (_, reason, context) = seen.last().expect("ended");
    assert_eq!((*reason, context.service.expect("known")[1].new_flows), (Reason::End, 1));
}

#[test]
fn a_super_packet_that_reaches_several_snapshots_is_one_row() {
    let mut table = Table::new(Timeouts::default(), vec![2, 3, 7, 12]);
    let mut seen = Vec::new();
    let mut sink = |record: &FlowRecord, reason: Reason| {
        seen.push((record.packets(), reason));
        Ok::<_, ()>(())
    };
    let large = Packet { segments: 5, segment_size: 15, ..packet(1) };
    for at_s in 1..=3 {
        table.packet(&large, at_s * SECOND_NS, &mut sink).expect("taken");
    }
    assert_eq!(seen, [(5, Reason::Snapshot(2)), (10, Reason::Snapshot(3)), (15, Reason::Snapshot(4))]);
}

#[test]
fn flows_end_in_the_order_of_their_slots() {
    let mut table = table(10);
    assert_eq!(ends(&mut table, &[(100, 1), (101, 2), (102, 3), (103, 1)]), []);
    let expected = [(1, 2, Reason::Clock), (2, 1, Reason::Clock), (3, 1, Reason::Clock)];
    assert_eq!(ends(&mut table, &[(1, 4)]), expected);
}

/// A segment between host `host` and 198.19.0.1:80, sequence numbers as those of both ends that have sent nothing yet.
fn segment(host: u32, back: bool, flags: u8) -> Packet {
    let mut frame = [0u8; 54];
    frame[12..16].copy_from_slice(&[0x08, 0x00, 0x45, 0]);
    frame[16..18].copy_from_slice(&40u16.to_be_bytes());
    frame[23] = sensor_common::packet::protocol::TCP;
    let (client, server) = ((0xc612_0000 | host).to_be_bytes(), [198, 19, 0, 1]);
    let (src, dst, ports) = if back { (server, client, [80, 40_000]) } else { (client, server, [40_000, 80u16]) };
    frame[26..30].copy_from_slice(&src);
    frame[30..34].copy_from_slice(&dst);
    frame[34..36].copy_from_slice(&ports[0].to_be_bytes());
    frame[36..38].copy_from_slice(&ports[1].to_be_bytes());
    let seq = u32::from(flags & tcp::SYN == 0);
    frame[38..42].copy_from_slice(&seq.to_be_bytes());
    frame[42..46].copy_from_slice(&1u32.to_be_bytes());
    frame[46] = 0x50;
    frame[47] = flags;
    sensor_common::packet::parse(&frame[..]).expect("well-formed")
}

/// Offers segments (time in s, host, back, flags) and says what ended: host, packets, reason, who began is known.
fn connections(table: &mut Table, segments: &[(u64, u32, bool, u8)]) -> Vec<(u32, u64, Reason, bool)> {
    let mut ends = Vec::new();
    let mut sink = |record: &FlowRecord, reason: Reason| {
        let by_syn = record.state & state::INITIATOR_BY_SYN != 0;
        let host = if record.state & state::INITIATOR_HIGH == 0 { record.key.low[0] } else { record.key.high[0] };
        ends.push((host & 0xffff, record.packets(), reason, by_syn));
        Ok::<_, ()>(())
    };
    for (at_s, host, back, flags) in segments {
        table.packet(&segment(*host, *back, *flags), at_s * SECOND_NS, &mut sink).expect("the sink takes all");
    }
    ends
}

const HANDSHAKE: [(bool, u8); 3] = [(false, tcp::SYN), (true, tcp::SYN | tcp::ACK), (false, tcp::ACK)];

fn handshake(at_s: u64, host: u32) -> Vec<(u64, u32, bool, u8)> {
    HANDSHAKE.map(|(back, flags)| (at_s, host, back, flags)).to_vec()
}

#[test]
fn an_established_connection_may_pause_and_what_is_half_open_may_not() {
    let mut table = table(10);
    let mut segments = handshake(1, 1);
    segments.extend([(1, 2, false, tcp::SYN), (1, 2, true, tcp::SYN | tcp::ACK)]);
    assert_eq!(connections(&mut table, &segments), []);
    // 20 minutes: no more than the record of the active timeout.
    assert_eq!(connections(&mut table, &[(1_200, 1, false, tcp::ACK)]), [(2, 2, Reason::Idle, true)]);
    let day = 24 * 3_600;
    assert_eq!(connections(&mut table, &[(1_200 + 6 * day, 3, false, tcp::SYN)]), [(1, 4, Reason::Idle, true)]);
}

#[test]
fn a_connection_that_is_cut_goes_on_as_what_it_is() {
    let mut table = table(10);
    connections(&mut table, &handshake(1, 1));
    // The first to speak after four days is the server.
    let four_days = 4 * 24 * 3_600;
    assert_eq!(connections(&mut table, &[(four_days, 1, true, tcp::ACK)]), [(1, 3, Reason::Cut, true)]);
    let mut rest = Vec::new();
    let mut sink = |record: &FlowRecord, reason: Reason| {
        rest.push((record.packets(), record.state & state::INITIATOR_BY_SYN != 0, record.iat_max_ns, reason));
        Ok::<_, ()>(())
    };
    table.finish(&mut sink).expect("the sink takes all");
    assert_eq!(rest, [(1, true, 0, Reason::End)], "the pause is in no record");
}

#[test]
fn what_can_be_forged_gives_way_first() {
    let mut table = table(3);
    connections(&mut table, &handshake(1, 1));
    connections(&mut table, &[(2, 2, false, tcp::SYN)]);
    connections(&mut table, &[(3, 3, false, tcp::SYN)]);
    assert_eq!(connections(&mut table, &[(4, 4, false, tcp::SYN)]), [(2, 1, Reason::Evicted, true)]);
    assert_eq!(connections(&mut table, &[(5, 5, false, tcp::SYN)]), [(3, 1, Reason::Evicted, true)]);
    let closed = [(6, 5, true, tcp::RST | tcp::ACK)];
    assert_eq!(connections(&mut table, &closed), []);
    assert_eq!(connections(&mut table, &[(7, 6, false, tcp::SYN)]), [(5, 2, Reason::Evicted, true)], "closed");
}
