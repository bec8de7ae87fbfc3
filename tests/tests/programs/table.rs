//! The flow table under pressure: who is given up for whom, and what the agent gets to see of it.

use std::collections::HashSet;
use std::net::SocketAddr;

use sensor::bpf::load::{Hook, Kernel, LoadOptions};
use sensor_common::counter::{Cause, InterfaceCounters, MIN_INTERFACES, counter_entries};
use sensor_common::flow::{FlowRecord, state};
use sensor_common::hash::hash;
use sensor_common::table::{WAYS, bucket_of};
use sensor_common::tcp::{ACK, RST, SYN};
use sensor_common::verdict::{Action, Verdict};
use sensor_tests::frames::Frame;

use crate::rig::{
    EVICT_IDLE_TICKS, Rig, SECOND_NS, START_NS, XDP_DROP, XDP_PASS, at, counters, key, load, options, record, records,
    run, seed,
};

const BUCKETS: u32 = 1024;

pub(crate) fn server() -> SocketAddr {
    at("198.19.0.1:80")
}

/// Clients whose flows to the server all fall into one bucket of the smallest table under the tests' hash keys.
pub(crate) fn colliding(count: usize) -> Vec<SocketAddr> {
    let seed = seed();
    let clients = (0..1u32 << 16).map(|host| at(&format!("198.18.{}.{}:4000", host >> 8, host & 0xff)));
    let aimed = clients.filter(|client| {
        let key = key(&Frame::tcp(*client, server(), ACK).build());
        bucket_of(hash(&key, |position| seed[position]), BUCKETS) == 7
    });
    let aimed: Vec<_> = aimed.take(count).collect();
    assert_eq!(aimed.len(), count, "not enough collisions among 65,536 clients");
    aimed
}

/// Colliding flows in a kernel whose clock moves on by a second with each packet.
struct Crowd {
    kernel: Kernel,
    clients: Vec<SocketAddr>,
    now_ns: u64,
}

impl Crowd {
    fn new() -> Crowd {
        let kernel = load(&options());
        kernel.control.set_lease(u64::MAX);
        Crowd { kernel, clients: colliding(16), now_ns: START_NS }
    }

    fn send(&mut self, client: usize, flags: u8) -> u32 {
        self.now_ns += SECOND_NS / 10;
        self.kernel.control.set_replay_clock(self.now_ns);
        // A RST is behind a SYN; both acknowledge nothing.
        let seq = u32::from(flags == RST);
        run(&self.kernel, Hook::Ingress, &Frame::tcp(self.clients[client], server(), flags).seq(seq, 0).build())
    }

    /// A segment of the server: both ends are there.
    fn answer(&self, client: usize) {
        run(&self.kernel, Hook::Egress, &Frame::tcp(server(), self.clients[client], ACK).build());
    }

    fn record(&self, client: usize) -> Option<(usize, FlowRecord)> {
        record(&self.kernel, &key(&Frame::tcp(self.clients[client], server(), ACK).build()))
    }

    /// Starts a flow and gives the one that went for it, which must have arrived whole.
    fn push_in(&mut self, client: usize) -> Option<usize> {
        let before: Vec<_> = (0..self.clients.len()).map(|client| self.record(client)).collect();
        assert_eq!(self.send(client, ACK), XDP_PASS);
        let given_up = (0..self.clients.len()).find(|other| before[*other].is_some() && self.record(*other).is_none());
        let arrived = self.kernel.next_evicted();
        match given_up {
            Some(other) => {
                let (slot, last) = before[other].expect("was there");
                // The copy is made under the record's lock: only the lock word differs.
                let arrived = arrived.expect("handed over");
                assert_eq!(FlowRecord { sequence: last.sequence, ..arrived }, last, "the record arrived whole");
                let (taken, next) = self.record(client).expect("the new flow has a record");
                assert_eq!((taken, next.generation), (slot, last.generation.wrapping_add(1)));
                assert_eq!(next.frames(), 1);
            }
            None => assert_eq!(arrived, None),
        }
        given_up
    }

    fn full(&self) -> u64 {
        counters(&self.kernel).unrecorded[Cause::BucketFull as usize]
    }
}

#[test]
fn flows_are_given_up_in_the_order_of_harm_and_live_connections_never() {
    let mut crowd = Crowd::new();
    crowd.send(1, ACK);
    crowd.send(2, ACK);
    for client in [0, 3, 4, 5, 6, 7] {
        for _ in 0..3 {
            crowd.send(client, ACK);
        }
        crowd.answer(client);
    }
    crowd.send(0, RST | ACK);
    assert_eq!(records(&crowd.kernel).len(), WAYS);
    assert_eq!(crowd.push_in(8), Some(0), "the closed flow, though it was active last");
    assert_eq!(crowd.push_in(9), Some(1), "then the flow that nobody answered and that is idle longest");
    assert_eq!(crowd.push_in(10), Some(2));
    assert_eq!(crowd.push_in(11), Some(8), "a flood pushes out itself");
    for client in [9, 10, 11] {
        for _ in 0..2 {
            crowd.send(client, ACK);
        }
    }
    assert_eq!(crowd.push_in(8), Some(9), "nor are three packets a history");
    for client in [8, 10, 11] {
        for _ in 0..3 {
            crowd.send(client, ACK);
        }
    }
    assert_eq!(crowd.push_in(12), Some(8), "nor is anything that nobody answered");
    for client in [10, 11, 12] {
        crowd.answer(client);
        for _ in 0..2 {
            crowd.send(client, ACK);
        }
    }
    assert_eq!(crowd.push_in(13), None, "eight active connections with history");
    assert_eq!((crowd.full(), crowd.record(13)), (1, None), "the newcomer is counted, and passes");
    // All but one stay active until that one has been idle for long enough.
    let rounds = EVICT_IDLE_TICKS / 10 + 2;
    for _ in 0..rounds {
        for client in [3, 5, 6, 7, 10, 11, 12] {
            crowd.send(client, ACK);
        }
    }
    assert_eq!(crowd.push_in(13), Some(4), "a connection that pauses");
    let counters = counters(&crowd.kernel);
    assert_eq!((counters.evicted, counters.evicted_lost_flows, counters.flows_created), (7, 0, 15));
}

#[test]
fn a_flow_under_a_verdict_is_not_evicted() {
    let mut crowd = Crowd::new();
    for client in 0..WAYS {
        crowd.send(client, ACK);
    }
    let (slot, record) = crowd.record(0).expect("a record");
    crowd.kernel.table.store_verdict(slot, Verdict::new(Action::Drop, 0, record.generation, u64::MAX).0);
    assert_eq!(crowd.send(0, ACK), XDP_DROP);
    for client in WAYS..16 {
        assert_ne!(crowd.push_in(client), Some(0), "an attacker cannot flood its verdict out of the table");
    }
    assert_eq!(crowd.send(0, ACK), XDP_DROP);
    let (_, record) = crowd.record(0).expect("still there");
    assert_eq!((record.frames(), record.dropped), (1, 2));
}

#[test]
fn port_reuse_starts_the_record_anew_and_hands_the_old_one_over() {
    let mut crowd = Crowd::new();
    for flags in [SYN, RST, ACK] {
        crowd.send(0, flags);
    }
    let (slot, closed) = crowd.record(0).expect("a record");
    assert!(closed.state & state::CLOSED != 0 && closed.frames() == 3, "late packets count in the closed record");
    crowd.send(0, SYN);
    let (same, next) = crowd.record(0).expect("a record");
    assert_eq!((same, next.generation, next.frames()), (slot, closed.generation.wrapping_add(1), 1));
    assert!(next.state & state::CLOSED == 0 && next.first_ns > closed.last_ns);
    let old = crowd.kernel.next_evicted().expect("handed over");
    assert_eq!(FlowRecord { sequence: closed.sequence, ..old }, closed);
    assert_eq!(crowd.kernel.next_evicted(), None);
    // A SYN in an open connection is a retransmission, not a new connection.
    crowd.send(0, SYN);
    assert_eq!(crowd.record(0).map(|(_, record)| record.frames()), Some(2));
}

#[test]
fn a_slot_is_released_only_for_the_flow_and_time_that_the_agent_saw() {
    let mut crowd = Crowd::new();
    crowd.send(0, ACK);
    let (slot, seen) = crowd.record(0).expect("a record");
    crowd.send(0, ACK);
    let table = &crowd.kernel.table;
    assert_eq!(table.release(slot, seen.generation, seen.last_ns), None, "a packet arrived since");
    let (_, seen) = crowd.record(0).expect("still there");
    assert_eq!(table.release(slot, seen.generation.wrapping_add(1), seen.last_ns), None, "another generation");
    let (_, seen) = crowd.record(0).expect("still there");
    let last = table.release(slot, seen.generation, seen.last_ns).expect("nothing arrived since");
    assert_eq!(FlowRecord { sequence: seen.sequence, ..last }, seen, "the final record");
    assert_eq!(crowd.record(0), None);
    assert_eq!(table.release(slot, seen.generation, seen.last_ns), None, "it is not released twice");
    // The next packet starts a record that no earlier verdict is meant for.
    table.store_verdict(slot, Verdict::new(Action::Drop, 0, seen.generation, u64::MAX).0);
    assert_eq!(crowd.send(0, ACK), XDP_PASS);
    let (taken, next) = crowd.record(0).expect("a new record");
    assert_eq!((taken, next.frames()), (slot, 1));
    crowd.kernel.table.store_verdict(slot, Verdict::new(Action::Drop, 0, seen.generation, u64::MAX).0);
    assert_eq!(crowd.send(0, ACK), XDP_PASS, "a verdict for the former flow");
}

#[test]
fn a_reused_slot_shows_nothing_of_its_former_flow() {
    let mut rig = Rig::new(&options());
    let clients = colliding(2 * WAYS);
    for turn in 0..30 {
        for client in &clients[..WAYS] {
            rig.wait(SECOND_NS);
            rig.ingress(&Frame::tcp(*client, server(), SYN >> (turn & 1)).payload(1400).build());
            rig.egress(&Frame::tcp(server(), *client, SYN | ACK).payload(900).build());
        }
    }
    rig.compare("former flows");
    rig.clear();
    for client in &clients[WAYS..] {
        rig.wait(1);
        rig.ingress(&Frame::udp(*client, server()).build());
        rig.ingress(&Frame::tcp(*client, server(), ACK).build());
        rig.compare("first packet of a later flow");
        rig.egress(&Frame::tcp(server(), *client, ACK).build());
    }
    rig.compare("later flows");
}

#[test]
fn collisions_cannot_be_aimed_because_every_load_has_hash_keys_of_its_own() {
    let clients = colliding(48);
    let held = |kernel: &Kernel| {
        for client in &clients {
            // Flows with history, which are not evicted.
            for _ in 0..4 {
                run(kernel, Hook::Ingress, &Frame::tcp(*client, server(), ACK).build());
            }
        }
        let buckets: Vec<_> = records(kernel).into_iter().map(|(slot, record)| (record.key, slot / WAYS)).collect();
        buckets.into_iter().collect::<HashSet<_>>()
    };
    let aimed = held(&load(&options()));
    assert_eq!(aimed.len(), WAYS, "under known keys, the flows fill one bucket");
    let random = LoadOptions { seed: None, ..options() };
    let (first, second) = (held(&load(&random)), held(&load(&random)));
    assert_eq!((first.len(), second.len()), (clients.len(), clients.len()), "under secret keys, they spread");
    assert!(first.intersection(&second).count() < 8, "and differently at each load");
}

#[test]
fn the_default_maps_take_69_mib_on_two_cpus_and_a_limit_is_kept() {
    let memory = load(&LoadOptions::default()).memory();
    println!("{memory:?}");
    // Of all CPUs that there may be, those that could be plugged in included: so the kernel allocates.
    let cpus = aya::util::nr_cpus().expect("CPUs") as u64;
    let counters =
        cpus.saturating_sub(2) * u64::from(counter_entries(MIN_INTERFACES)) * size_of::<InterfaceCounters>() as u64;
    assert!(memory.taken - counters <= 69 << 20, "{} bytes", memory.taken);
    assert!(memory.mapped < memory.taken && memory.taken < memory.most, "{memory:?}");
    let limited = |flows, max_memory| Kernel::load(&LoadOptions { flows, max_memory, ..options() });
    assert!(limited(8192, memory.most).is_ok());
    let error = format!("{:#}", limited(16_384, 16 << 20).expect_err("16 MiB of flows and more"));
    for words in ["kernel.max_memory_mib allows 16", "16.1 MiB by kernel.flows", "by policy.max_verdicts"] {
        assert!(error.contains(words), "{error}");
    }
}
