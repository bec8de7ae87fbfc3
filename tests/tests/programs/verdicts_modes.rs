//! Ceilings: what mode observe says that it withheld is, frame by frame, what mode enforce does; a change of mode holds for
//! the next packet.

use sensor::bpf::load::{Hook, Kernel, LoadOptions};
use sensor::bpf::verdicts::Service;
use sensor_common::counter::{InterfaceCounters, Volume};
use sensor_common::tcp::ACK;
use sensor_common::verdict::{Action, Entry, Origin, Rate};
use sensor_tests::frames::Frame;
use sensor_tests::rng::Rng;

use crate::rig::{SECOND_NS, START_NS, XDP_DROP, XDP_PASS, at, counters, key, load, options, record, run, truth};
use crate::verdicts_scopes::{UNTIL_NS, entry, kernel, prefix, syn, udp};

/// A kernel with a verdict of every kind, and protected corners in each.
fn crowded(ceiling: Action) -> Kernel {
    // So large that no record is given up.
    let mut kernel = load(&LoadOptions { flows: 65_536, ..options() });
    kernel.control.set_lease(u64::MAX);
    kernel.verdicts.set_ceilings(|_| ceiling);
    let rate = |packets, bytes| entry(Action::Limit).limited(Rate { packets, bytes });
    let verdicts = &mut kernel.verdicts;
    verdicts.set_source(prefix("198.18.1.0/26"), &entry(Action::Drop)).expect("set");
    verdicts.set_source(prefix("198.18.1.64/26"), &rate(300, 0)).expect("set");
    verdicts.set_source(prefix("198.18.1.128/26"), &entry(Action::Tag)).expect("set");
    verdicts.allow(prefix("198.18.1.3/32")).expect("allow");
    verdicts.set_ports(&[22], &[]).expect("ports");
    verdicts.set_flow(&key(&udp("198.18.1.200:9", "198.19.0.1:80")), &entry(Action::Drop)).expect("set");
    verdicts.set_flow(&key(&udp("198.18.1.201:9", "198.19.0.1:80")), &rate(0, 9_000)).expect("set");
    verdicts.set_flow(&key(&udp("198.18.1.4:9", "198.19.0.1:80")), &entry(Action::Pass)).expect("allow");
    let service = Service { address: "198.19.0.1".parse().expect("address"), port: 443, protocol: 6 };
    verdicts.set_service(service, &rate(50, 0)).expect("set");
    kernel
}

/// The same frames at the same times, whatever the mode; half of them from few sources.
fn offer(kernel: &Kernel) -> InterfaceCounters {
    let mut rng = Rng::new(77);
    for number in 0..12_000u64 {
        kernel.control.set_replay_clock(START_NS + number * 1_000_000);
        let host = if rng.next_u64() & 1 == 0 { rng.next_u64() % 256 } else { 199 + rng.next_u64() % 4 };
        let frame = match rng.next_u64() % 4 {
            // Each attempt once: one that passes in mode observe has its record, and is none when it comes again.
            0 => syn(&format!("198.18.1.{host}:{}", 10_000 + number), "198.19.0.1:443"),
            1 => Frame::tcp(at(&format!("198.18.1.{host}:7")), at("198.19.0.1:22"), ACK).payload(40).build(),
            _ => udp(&format!("198.18.1.{host}:9"), "198.19.0.1:80"),
        };
        run(kernel, Hook::Ingress, &frame);
    }
    truth(kernel);
    counters(kernel)
}

fn sum(volumes: &[Volume]) -> (u64, u64) {
    volumes.iter().fold((0, 0), |(packets, bytes), volume| (packets + volume.packets, bytes + volume.bytes))
}

#[test]
fn mode_observe_counts_exactly_what_mode_enforce_does() {
    let large = |ceiling| {
        let kernel = crowded(ceiling);
        (offer(&kernel), kernel)
    };
    let (enforce, _) = large(Action::Drop);
    let (observe, kernel) = large(Action::Pass);
    let (tag, _) = large(Action::Tag);
    let done = enforce.seen[0];
    println!("enforce: {done:?}\nobserve withheld: {:?}\nprotected: {}", observe.withheld, observe.protected);
    assert!(done.iter().all(|volume| volume.packets > 200), "the frames meet every kind: {done:?}");
    assert_eq!(observe.withheld[1..], done[1..], "packet by packet");
    assert_eq!(observe.seen[0][0].packets, 12_000, "and nothing is done");
    assert_eq!((enforce.withheld, observe.protected), ([Volume::default(); 4], enforce.protected));
    assert!(enforce.protected > 200);
    // Mode tag withholds what is more than a tag. Half-open attempts have no record to tag.
    assert_eq!(tag.withheld[2..], done[2..]);
    assert_eq!(tag.withheld[1], Volume::default());
    let (more, more_bytes) = sum(&done[1..]);
    let half_open = enforce.dropped_half_open;
    assert_eq!(tag.seen[0][1].packets, more - half_open);
    assert!(tag.seen[0][1].bytes < more_bytes && tag.seen[0][2..] == [Volume::default(); 2]);
    // What is dropped takes no slot, what would be does.
    assert!(enforce.flows_created + enforce.dropped_half_open <= observe.flows_created);
    drop(kernel);
}

#[test]
fn a_ceiling_holds_for_its_origin_from_the_next_packet_on() {
    let mut kernel = kernel();
    let of = |origin| Entry::new(Action::Drop, origin, 1, UNTIL_NS);
    let sources = [
        (Origin::Model, "198.18.1.1"),
        (Origin::Operator, "198.18.1.2"),
        (Origin::Fleet, "198.18.1.3"),
        (Origin::Rule, "198.18.1.4"),
    ];
    for (origin, source) in sources {
        kernel.verdicts.set_source(prefix(&format!("{source}/32")), &of(origin)).expect("set");
    }
    for (tripped, _) in sources {
        for ceiling in [Action::Tag, Action::Pass, Action::Drop] {
            kernel.verdicts.set_ceilings(|origin| if origin == tripped { ceiling } else { Action::Drop });
            for (origin, source) in sources {
                let held = origin == tripped && ceiling != Action::Drop;
                let expected = if held { XDP_PASS } else { XDP_DROP };
                let answer = run(&kernel, Hook::Ingress, &udp(&format!("{source}:9"), "198.19.0.1:80"));
                assert_eq!(answer, expected, "{origin:?} while {tripped:?} may {ceiling:?}");
            }
        }
    }
    truth(&kernel);
    // Each origin answers for its own packets, dropped or withheld: 3 of 12 rounds were held for each.
    assert_eq!(counters(&kernel).drops_of, [12; 4]);
    // A record under a drop verdict, too: down and up again.
    let frame = udp("198.18.1.9:9", "198.19.0.1:80");
    run(&kernel, Hook::Ingress, &frame);
    let (slot, begun) = record(&kernel, &key(&frame)).expect("a record");
    kernel.table.store_verdict(slot, of(Origin::Model).word().with_generation(begun.generation).0);
    for ceiling in [Action::Drop, Action::Tag, Action::Pass, Action::Drop] {
        kernel.verdicts.set_ceilings(|_| ceiling);
        let expected = if ceiling == Action::Drop { XDP_DROP } else { XDP_PASS };
        assert_eq!(run(&kernel, Hook::Ingress, &frame), expected, "{ceiling:?}");
    }
    truth(&kernel);
}

#[test]
fn what_may_only_be_tagged_is_marked_unless_it_is_protected() {
    let mut kernel = load(&LoadOptions { tagging: true, ..options() });
    kernel.control.set_lease(START_NS + 60 * SECOND_NS);
    kernel.verdicts.set_ceilings(|_| Action::Tag);
    kernel.control.set(&sensor_common::control::Control { tag_mark: 1, tag_mask: 1, ..crate::rig::control() });
    kernel.verdicts.allow(prefix("198.18.1.2/32")).expect("allow");
    kernel.verdicts.set_source(prefix("198.18.1.0/24"), &entry(Action::Drop)).expect("set");
    for (source, marked) in [("198.18.1.1", 2), ("198.18.1.2", 0)] {
        let frame = udp(&format!("{source}:9"), "198.19.0.1:80");
        let before = counters(&kernel).tagged;
        // The first packet begins the record; what the never-drop list says is noted with the second.
        run(&kernel, Hook::Ingress, &frame);
        for _ in 0..2 {
            run(&kernel, Hook::Ingress, &frame);
            run(&kernel, Hook::Tag, &frame);
        }
        assert_eq!(counters(&kernel).tagged - before, marked, "{source}");
    }
    let counted = counters(&kernel);
    assert_eq!((counted.protected, counted.withheld[Action::Drop as usize].packets), (3, 3));
}
