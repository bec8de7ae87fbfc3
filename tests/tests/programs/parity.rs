//! One parser, one record update, two machines: what the kernel keeps is bit for bit what the host computes. (Captures:
//! see `tests/parity.rs`.)

use sensor::bpf::load::LoadOptions;
use sensor_common::tcp::{ACK, RST, SYN};
use sensor_tests::frames::Frame;
use sensor_tests::rng::Rng;

use crate::conversations;
use crate::rig::{self, Rig, SECOND_NS, at, options};

/// Least frame length that test runs accept: a link header, and for TC an IP header behind it.
const SHORTEST: [usize; 2] = [14, 54];
/// Largest frame that TC test runs accept: one page with room for the kernel's own.
const LARGEST_EGRESS: usize = 3500;

/// A gap of between 0 ns and some hours: every branch of the inter-arrival sums.
pub(crate) fn gap(rng: &mut Rng) -> u64 {
    let bits = rng.range(0..44);
    rng.next_u64() >> (63 - bits)
}

#[test]
fn crafted_conversations_give_the_same_records_in_the_kernel_and_on_the_host() {
    for frags in [true, false].into_iter().filter(|frags| !frags || rig::frags()) {
        let mut rig = Rig::new(&LoadOptions { frags, ..options() });
        let mut rng = Rng::new(1);
        for (name, frames) in conversations::all() {
            for (received, frame) in frames {
                rig.wait(gap(&mut rng));
                if received && (frags || frame.len() < LARGEST_EGRESS) {
                    rig.ingress(&frame);
                } else if frame.len() < LARGEST_EGRESS {
                    rig.egress(&frame);
                }
            }
            rig.compare(name);
        }
        assert!(rig.frames() > 400, "{} frames", rig.frames());
    }
}

#[test]
fn icmp_errors_are_told_to_the_flow_that_they_quote() {
    /// Bytes of an Ethernet header, and of an IPv4 header with 8 bytes more.
    const QUOTED: std::ops::Range<usize> = 14..14 + 28;
    let (client, server) = (at("198.18.0.1:1000"), at("198.18.0.2:9"));
    let sent = Frame::udp(client, server).payload(30).build();
    let error = |code, quoted: &[u8]| {
        let mut frame = Frame::icmp(server, client, 3, code).payload(quoted.len()).build();
        let start = frame.len() - quoted.len();
        frame[start..].copy_from_slice(quoted);
        frame
    };
    let mut rig = Rig::new(&options());
    let of = |rig: &Rig, frame: &[u8]| {
        let (_, record) = rig::record(&rig.kernel, &rig::key(frame)).expect("the flow has a record");
        (record.icmp_errors, record.error_type, record.error_code, record.frames())
    };
    rig.egress(&sent);
    rig.ingress(&error(3, &sent[QUOTED]));
    assert_eq!(of(&rig, &sent), (1, 3, 3, 1), "the port is closed");
    // The first one's code is kept, wherever another is seen; what quotes a flow that is not there changes nothing.
    rig.stack_ingress(&error(1, &sent[QUOTED]));
    rig.egress(&error(1, &sent[QUOTED]));
    rig.ingress(&error(3, &Frame::udp(client, at("198.18.0.2:10")).payload(30).build()[QUOTED]));
    assert_eq!(of(&rig, &sent), (3, 3, 3, 1));
    assert_eq!(of(&rig, &error(3, &sent[QUOTED])), (0, 0, 0, 4), "errors are counted in a flow of their own");
    rig.compare("ICMP errors");
}

#[test]
fn super_packets_count_as_the_segments_they_stand_for() {
    let mut rig = Rig::new(&options());
    let (client, server) = (at("198.18.0.1:1000"), at("198.18.0.2:80"));
    let frame = |payload| Frame::tcp(client, server, !(SYN | RST)).payload(payload).tcp_options(12).build();
    for (payload, segments, size) in
        [(2896, 2, 1448), (3000, 3, 1448), (1448, 1, 1448), (1449, 2, 1448), (100, 3, 1448), (0, 2, 1448), (50, 2, 0)]
    {
        rig.wait(1000);
        rig.egress_super(&frame(payload), segments, size);
    }
    rig.egress(&Frame::tcp(server, client, ACK).build());
    rig.compare("super-packets");
    // What receive offload makes at the stack's ingress counts the same.
    let received = Frame::tcp(server, client, ACK).payload(2896).tcp_options(12).build();
    rig.stack_ingress_super(&received, 2, 1448);
    rig.compare("super-packets in both directions");
    let records = rig::records(&rig.kernel);
    let forward = records[0].1.forward();
    // 2 + 3 + 1 + 2, and one each for the three whose segments cannot be what the kernel says.
    assert_eq!((records.len(), forward.arrivals(), forward.packets), (1, 7, 11));
}

#[test]
fn mutated_frames_give_the_same_records_and_the_same_causes() {
    let corpus: Vec<Vec<u8>> =
        conversations::all().into_iter().flat_map(|(_, frames)| frames).map(|(_, f)| f).collect();
    let mut rig = Rig::new(&LoadOptions { flows: 65_536, ..options() });
    let mut rng = Rng::new(0xf0225);
    for number in 0..12_000u32 {
        let mut frame = corpus[rng.range(0..corpus.len() as u64) as usize].clone();
        let egress = rng.one_in(3) && (SHORTEST[1]..LARGEST_EGRESS).contains(&frame.len());
        for _ in 0..rng.range(0..5) {
            // Headers are where bytes matter.
            let position = rng.range(0..frame.len().min(140) as u64) as usize;
            frame[position] = match rng.range(0..3) {
                0 => rng.next_u64() as u8,
                1 => frame[position] ^ 1 << rng.range(0..8),
                _ => rng.pick(&[0, 1, 4, 6, 0x45, 0x60, 0x81, 0xff]),
            };
        }
        match rng.range(0..4) {
            0 => {
                frame.truncate(
                    rng.range(SHORTEST[egress as usize].min(frame.len()) as u64..frame.len() as u64 + 1) as usize
                )
            }
            1 => frame.resize(frame.len() + rng.range(0..60) as usize, 0xee),
            _ => {}
        }
        rig.wait(gap(&mut rng) >> 10);
        if egress && rng.one_in(2) {
            rig.stack_ingress(&frame)
        } else if egress {
            rig.egress(&frame)
        } else {
            rig.ingress(&frame)
        }
        if number % 2000 == 0 {
            rig.compare(&format!("mutated frame {number}"));
        }
    }
    rig.compare("mutated frames");
    let counters = rig::counters(&rig.kernel);
    let causes = counters.unrecorded.iter().filter(|count| **count > 0).count();
    assert!(causes >= 8 && counters.flows_created > 1000, "the mutations reach most of the parser: {counters:?}");
}

/// Test runs put what does not fit into a page into further buffers, where no program reads: but it counts.
#[test]
fn a_frame_counts_with_all_its_buffers() {
    if !rig::frags() {
        println!("skipped: frames of several buffers need kernel 5.18");
        return;
    }
    let mut rig = Rig::new(&options());
    for payload in [3000, 5000, 9000, 20_000] {
        rig.wait(SECOND_NS);
        rig.ingress(&Frame::udp(at("198.18.0.1:9"), at("198.18.0.2:9")).payload(payload).build());
    }
    rig.compare("frames of several buffers");
    let (_, record) = rig::records(&rig.kernel)[0];
    assert_eq!(record.frame_bytes, 4 * 42 + 37_000);
}
