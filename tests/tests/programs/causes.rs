//! A frame that is in no record is counted under one cause and passed; the sum of it all is what was offered.

use std::collections::HashSet;

use sensor::bpf::load::Hook;
use sensor_common::counter::Cause;
use sensor_common::packet::protocol;
use sensor_common::tcp::ACK;
use sensor_tests::frames::{Frame, VLAN};
use sensor_tests::rng::Rng;

use crate::rig::{
    IFINDEX, SECOND_NS, START_NS, TC_NEXT, XDP_PASS, at, context, counters, load, options, records, run, run_with,
    seen, sk_buff,
};

/// The well-formed frame with bytes replaced.
fn changed(frame: &Frame, changes: &[(usize, u8)]) -> Vec<u8> {
    let mut frame = frame.build();
    for (position, byte) in changes {
        frame[*position] = *byte;
    }
    frame
}

fn cut(frame: &Frame, len: usize) -> Vec<u8> {
    let mut frame = frame.build();
    frame.truncate(len);
    frame
}

/// Frames with the one cause that each must be counted under.
fn refusals() -> Vec<(Cause, &'static str, Vec<u8>)> {
    let udp = Frame::udp(at("198.18.0.1:1000"), at("198.18.0.2:53")).payload(30);
    let tcp = Frame::tcp(at("198.18.0.1:1000"), at("198.18.0.2:80"), ACK);
    let tcp6 = Frame::tcp(at("[2001:db8::1]:1000"), at("[2001:db8::2]:80"), ACK).payload(10);
    let udp6 = Frame::udp(at("[2001:db8::1]:1000"), at("[2001:db8::2]:53")).payload(10);
    let tagged = udp.clone().tag(VLAN, 1);
    let options = protocol::DESTINATION_OPTIONS;
    let chain = |headers: usize, bytes| (0..headers).fold(tcp6.clone(), |frame, _| frame.extension(options, bytes));
    use Cause::*;
    vec![
        (NotIp, "ARP", changed(&udp, &[(12, 0x08), (13, 0x06)])),
        (NotIp, "802.3 length", changed(&udp, &[(12, 0), (13, 40)])),
        (NotIp, "ARP in a VLAN", changed(&tagged, &[(16, 0x08), (17, 0x06)])),
        (NotIp, "PPPoE session of no version", changed(&udp, &[(12, 0x88), (13, 0x64)])),
        (NotIp, "PPPoE discovery", changed(&udp, &[(12, 0x88), (13, 0x63)])),
        (TruncatedLink, "VLAN tag that is not there", cut(&tagged, 14)),
        (TruncatedLink, "half a VLAN tag", cut(&tagged, 17)),
        (TruncatedLink, "second VLAN tag that is not there", cut(&tagged.clone().tag(VLAN, 2), 18)),
        (VlanDepth, "three VLAN tags", tagged.clone().tag(VLAN, 2).tag(VLAN, 3).build()),
        (TruncatedNetwork, "nothing behind the link header", cut(&udp, 14)),
        (TruncatedNetwork, "half an IPv4 header", cut(&udp, 33)),
        (TruncatedNetwork, "datagram longer than the frame", cut(&udp, 71)),
        (TruncatedNetwork, "half an IPv6 header", cut(&udp6, 53)),
        (TruncatedNetwork, "IPv6 datagram longer than the frame", cut(&udp6, 71)),
        // Payload length 0: the frame's own length holds, and the header promised is not in it.
        (TruncatedNetwork, "extension header that is not there", {
            let mut frame = changed(&chain(1, 8), &[(18, 0), (19, 0)]);
            frame.truncate(54);
            frame
        }),
        (MalformedNetwork, "IPv4 version 5", changed(&udp, &[(14, 0x55)])),
        (MalformedNetwork, "IPv4 header of 16 bytes", changed(&udp, &[(14, 0x44)])),
        (MalformedNetwork, "IPv4 datagram shorter than its header", changed(&udp, &[(16, 0), (17, 19)])),
        (MalformedNetwork, "IPv6 version 4", changed(&udp6, &[(14, 0x40)])),
        (MalformedNetwork, "extension header longer than the datagram", changed(&chain(1, 8), &[(55, 9)])),
        (TruncatedTransport, "TCP header that ends in the frame's end", {
            let mut frame = changed(&tcp, &[(17, 39)]);
            frame.truncate(53);
            frame
        }),
        (TruncatedTransport, "UDP header of 4 bytes", {
            let mut frame = changed(&udp, &[(17, 24)]);
            frame.truncate(38);
            frame
        }),
        (MalformedTransport, "TCP header of 16 bytes", changed(&tcp, &[(46, 0x40)])),
        (MalformedTransport, "TCP header longer than the datagram", changed(&tcp, &[(46, 0x60)])),
        (MalformedTransport, "padding taken for a UDP header", changed(&udp, &[(17, 27)])),
        (HeaderChain, "nine extension headers", chain(9, 8).build()),
        (HeaderChain, "extension headers of more than 1024 bytes", chain(3, 512).build()),
        (Fragment, "later IPv4 fragment", udp.clone().fragment(185, true).build()),
        (Fragment, "last IPv4 fragment", udp.fragment(370, false).build()),
        (Fragment, "later IPv6 fragment", tcp6.fragment(185, false).build()),
    ]
}

#[test]
fn every_refusal_passes_and_counts_under_its_one_cause() {
    let kernel = load(&options());
    for hook in [Hook::Ingress, Hook::Egress] {
        for (cause, what, frame) in refusals() {
            // The kernel's own test harness wants an IP header in frames for TC.
            if hook == Hook::Egress && frame.len() < 54 {
                continue;
            }
            let before = counters(&kernel);
            let pass = if hook == Hook::Ingress { XDP_PASS } else { TC_NEXT };
            assert_eq!(run(&kernel, hook, &frame), pass, "{what} passes {hook:?}");
            let after = counters(&kernel);
            for other in Cause::ALL {
                let expected = (other == cause) as u64;
                let counted = after.unrecorded[other as usize] - before.unrecorded[other as usize];
                assert_eq!(counted, expected, "{what} at {hook:?}: {}", other.name());
            }
            assert_eq!(seen(&after) - seen(&before), 1, "{what} was seen");
        }
    }
    assert!(records(&kernel).is_empty(), "a refused frame leaves nothing in the table");
    let met: HashSet<Cause> = refusals().into_iter().map(|(cause, ..)| cause).collect();
    assert_eq!(met.len(), 9, "every cause of the parser is met: {met:?}");
}

#[test]
fn a_forwarded_packet_counts_where_it_came_in() {
    let mut kernel = load(&options());
    kernel.watch(2).expect("a slot for another interface");
    let frame = Frame::udp(at("198.18.0.1:1000"), at("198.18.0.2:53")).build();
    let from = |ifindex| context(&[(sk_buff::INGRESS_IFINDEX, ifindex)]);
    assert_eq!(run_with(&kernel, Hook::Egress, &frame, &from(2)).return_value, TC_NEXT);
    assert_eq!(counters(&kernel).unrecorded[Cause::Forwarded as usize], 1, "from a watched interface");
    assert!(records(&kernel).is_empty());
    // From an interface that is not watched, and looped back by the same: nobody has counted those.
    run_with(&kernel, Hook::Egress, &frame, &from(3));
    run_with(&kernel, Hook::Egress, &frame, &from(IFINDEX));
    assert_eq!(counters(&kernel).unrecorded.iter().sum::<u64>(), 1);
    assert_eq!(records(&kernel)[0].1.frames(), 2);
}

#[test]
fn an_interface_that_is_not_watched_is_left_alone() {
    let mut kernel = sensor::bpf::load::Kernel::load(&options()).expect("load");
    kernel.watch(7).expect("watch another interface");
    let frame = Frame::udp(at("198.18.0.1:1000"), at("198.18.0.2:53")).build();
    assert_eq!(run(&kernel, Hook::Ingress, &frame), XDP_PASS);
    assert_eq!(run(&kernel, Hook::Egress, &frame), TC_NEXT);
    assert_eq!(seen(&kernel.counters(7).expect("watched")), 0);
    assert!(records(&kernel).is_empty());
}

/// packets seen = packets in records + packets dropped + packets counted by cause, after a flood of flows far beyond the
/// table, in which flows close, come back, and are evicted while nobody empties the ring.
#[test]
fn every_packet_is_accounted_for() {
    let mut kernel = load(&options());
    let mut rng = Rng::new(42);
    let refused = refusals();
    let (mut offered, mut now_ns) = (0, START_NS);
    for _ in 0..60_000 {
        now_ns += rng.range(0..SECOND_NS / 500);
        kernel.control.set_replay_clock(now_ns);
        let host = rng.range(0..40_000) as u32;
        // A few flows get nearly half of the packets.
        let host = if rng.one_in(2) { host % 200 } else { host };
        let (a, b) = (at(&format!("198.18.{}.{}:4000", host >> 8, host & 0xff)), at("198.19.0.1:80"));
        let frame = match rng.range(0..10) {
            0 => refused[rng.range(0..refused.len() as u64) as usize].2.clone(),
            1..4 => Frame::udp(a, b).build(),
            _ => Frame::tcp(a, b, rng.pick(&[0x02, 0x10, 0x18, 0x11, 0x04])).build(),
        };
        let hook = if frame.len() >= 54 && rng.one_in(4) { Hook::Egress } else { Hook::Ingress };
        run(&kernel, hook, &frame);
        offered += 1;
    }
    let mut evicted = 0;
    let mut handed_over = 0;
    while let Some(record) = kernel.next_evicted() {
        handed_over += 1;
        evicted += record.frames();
    }
    let counters = counters(&kernel);
    let live: u64 = records(&kernel).iter().map(|(_, record)| record.frames() + record.dropped).sum();
    let unrecorded: u64 = counters.unrecorded.iter().sum();
    assert_eq!(seen(&counters), offered, "every frame was seen");
    assert_eq!(live + unrecorded + evicted + counters.evicted_lost_packets, offered, "{counters:?}");
    assert_eq!(handed_over, counters.evicted, "what the programs handed over arrived");
    assert!(counters.evicted_lost_flows > 1000 && evicted > 1000, "the ring was full at some time: {counters:?}");
    let flows = records(&kernel).len() as u64 + counters.evicted + counters.evicted_lost_flows;
    assert_eq!(flows, counters.flows_created, "and so is every flow");
}
