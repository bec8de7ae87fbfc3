//! A drop needs a verdict of action drop, not expired, in a record of the same generation, under the agent's lease.
//! Anything less passes.

use sensor::bpf::load::{Hook, Kernel, LoadOptions, TestRunOptions};
use sensor::bpf::sys::Slot;
use sensor_common::control::{Control, NO_DSCP};
use sensor_common::counter::{self, Volume};
use sensor_common::flow::FlowRecord;
use sensor_common::lock;
use sensor_common::tcp::{ACK, RST, SYN};
use sensor_common::verdict::{Action, Verdict};
use sensor_tests::frames::{ETHERNET_HEADER, Frame, VLAN, ones_complement};

use crate::rig::{
    SECOND_NS, START_NS, TC_NEXT, TC_SHOT, XDP_DROP, XDP_PASS, at, control, counters, key, load, options, record, run,
    sk_buff,
};

const UNTIL_NS: u64 = START_NS + 60 * SECOND_NS;

fn up() -> Frame {
    Frame::tcp(at("198.18.0.1:1000"), at("198.18.0.2:80"), ACK).payload(100)
}

fn down() -> Frame {
    Frame::tcp(at("198.18.0.2:80"), at("198.18.0.1:1000"), ACK).payload(1000)
}

fn only(kernel: &Kernel) -> (Slot, FlowRecord) {
    record(kernel, &key(&up().build())).expect("the flow has a record")
}

/// A kernel with the flow in its table and a lease of a minute.
fn with_flow(options: &LoadOptions) -> (Kernel, Slot, FlowRecord) {
    let kernel = load(options);
    kernel.control.set_lease(UNTIL_NS);
    assert_eq!(run(&kernel, Hook::Ingress, &up().build()), XDP_PASS);
    let (slot, record) = only(&kernel);
    (kernel, slot, record)
}

fn both_hooks(kernel: &Kernel) -> (u32, u32) {
    (run(kernel, Hook::Ingress, &up().build()), run(kernel, Hook::Egress, &down().build()))
}

#[test]
fn a_drop_verdict_holds_in_both_directions_and_costs_no_update() {
    let (kernel, slot, before) = with_flow(&options());
    kernel.table.store_verdict(slot, Verdict::new(Action::Drop, 3, before.generation, UNTIL_NS).0);
    assert_eq!(both_hooks(&kernel), (XDP_DROP, TC_SHOT));
    assert_eq!(both_hooks(&kernel), (XDP_DROP, TC_SHOT));
    let (_, after) = only(&kernel);
    assert_eq!(after.dropped, 4);
    let once = before.sequence + lock::STEP;
    assert_eq!(after.sequence, once, "the lock was taken once, to note that nothing protects the flow");
    let same = FlowRecord { dropped: 0, verdict: 0, cleared: 0, sequence: before.sequence, ..after };
    assert_eq!(same, before, "and nothing else was written");
    let counters = counters(&kernel);
    for (hook, frame) in [(counter::Hook::Ingress, up()), (counter::Hook::Egress, down())] {
        let expected = Volume { packets: 2, bytes: 2 * frame.build().len() as u64 };
        assert_eq!(counters.seen[hook as usize][Action::Drop as usize], expected, "{hook:?}");
    }
    // Another flow goes its way.
    let other = Frame::tcp(at("198.18.0.1:1001"), at("198.18.0.2:80"), SYN).build();
    assert_eq!(run(&kernel, Hook::Ingress, &other), XDP_PASS);
}

#[test]
fn a_drop_verdict_holds_where_the_stack_receives() {
    let (kernel, slot, record) = with_flow(&options());
    let frame = up().build();
    assert_eq!(run(&kernel, Hook::StackIngress, &frame), TC_NEXT);
    kernel.table.store_verdict(slot, Verdict::new(Action::Drop, 0, record.generation, UNTIL_NS).0);
    assert_eq!(run(&kernel, Hook::StackIngress, &frame), TC_SHOT);
    let (_, after) = only(&kernel);
    assert_eq!((after.frames(), after.dropped), (2, 1));
    let dropped = counters(&kernel).seen[counter::Hook::Ingress as usize][Action::Drop as usize];
    assert_eq!(dropped, Volume { packets: 1, bytes: frame.len() as u64 });
}

#[test]
fn a_verdict_ends_with_its_time() {
    let (kernel, slot, record) = with_flow(&options());
    kernel.control.set_lease(u64::MAX);
    let verdict = Verdict::new(Action::Drop, 0, record.generation, UNTIL_NS);
    kernel.table.store_verdict(slot, verdict.0);
    kernel.control.set_replay_clock(verdict.until_ns() - 1);
    assert_eq!(both_hooks(&kernel), (XDP_DROP, TC_SHOT));
    kernel.control.set_replay_clock(verdict.until_ns());
    assert_eq!(both_hooks(&kernel), (XDP_PASS, TC_NEXT));
    let (_, after) = only(&kernel);
    assert_eq!((after.frames(), after.dropped), (3, 2), "the flow is counted again");
    assert_eq!(counters(&kernel).lease_expired, 0, "it was not the lease that ended it");
}

#[test]
fn a_verdict_ends_with_the_lease_of_the_agent() {
    let (kernel, slot, record) = with_flow(&options());
    kernel.table.store_verdict(slot, Verdict::new(Action::Drop, 0, record.generation, u64::MAX).0);
    assert_eq!(both_hooks(&kernel), (XDP_DROP, TC_SHOT));
    kernel.control.set_replay_clock(UNTIL_NS - 1);
    assert_eq!(both_hooks(&kernel), (XDP_DROP, TC_SHOT));
    kernel.control.set_replay_clock(UNTIL_NS);
    assert_eq!(both_hooks(&kernel), (XDP_PASS, TC_NEXT), "a dead agent drops nothing");
    assert_eq!(counters(&kernel).lease_expired, 2);
    // The agent is back: the same verdict holds again.
    kernel.control.set_lease(UNTIL_NS + SECOND_NS);
    assert_eq!(both_hooks(&kernel), (XDP_DROP, TC_SHOT));
}

#[test]
fn a_verdict_holds_for_its_generation_only() {
    let (kernel, slot, record) = with_flow(&options());
    for generation in [record.generation.wrapping_sub(1), record.generation.wrapping_add(1), 0xffff] {
        kernel.table.store_verdict(slot, Verdict::new(Action::Drop, 0, generation, UNTIL_NS).0);
        assert_eq!(both_hooks(&kernel), (XDP_PASS, TC_NEXT), "generation {generation}");
    }
    // Actions and origins that this version does not know pass.
    for number in [0u64, 4, 9, 15, 0x43, 0x53, 0x73, 0xf3, 0xff] {
        let word = Verdict::new(Action::Pass, 0, record.generation, UNTIL_NS).0 | number;
        kernel.table.store_verdict(slot, word);
        assert_eq!(both_hooks(&kernel), (XDP_PASS, TC_NEXT), "action and origin {number:#x}");
    }
}

#[test]
fn a_verdict_ends_with_its_connection() {
    let (kernel, slot, record) = with_flow(&options());
    // Behind the 100 bytes of `up`.
    let reset = Frame::tcp(at("198.18.0.1:1000"), at("198.18.0.2:80"), RST).seq(100, 0).build();
    run(&kernel, Hook::Ingress, &reset);
    let verdict = Verdict::new(Action::Drop, 0, record.generation, UNTIL_NS).0;
    let syn = Frame::tcp(at("198.18.0.1:1000"), at("198.18.0.2:80"), SYN).build();
    assert_eq!(run(&kernel, Hook::Ingress, &syn), XDP_PASS);
    // The agent decided on the old connection; its store comes after the new one took the slot.
    kernel.table.store_verdict(slot, verdict);
    let (same, next) = only(&kernel);
    assert_eq!((same, next.generation), (slot, record.generation.wrapping_add(1)));
    assert_eq!(both_hooks(&kernel), (XDP_PASS, TC_NEXT), "a late verdict has no effect");
    // Nor is a verdict that came in time meant for the next connection of the same ports.
    run(&kernel, Hook::Ingress, &reset);
    kernel.table.store_verdict(slot, Verdict::new(Action::Drop, 0, next.generation, UNTIL_NS).0);
    assert_eq!(both_hooks(&kernel), (XDP_DROP, TC_SHOT));
    assert_eq!(run(&kernel, Hook::Ingress, &syn), XDP_PASS);
    assert_eq!(both_hooks(&kernel), (XDP_PASS, TC_NEXT));
}

#[test]
fn a_tag_passes_and_marks_under_the_mask() {
    let (kernel, slot, record) = with_flow(&LoadOptions { tagging: true, ..options() });
    kernel.control.set(&Control { tag_mark: 0x5a5a, tag_mask: 0x0ff0, tag_dscp: 8, ..control() });
    let mut start = [0; sk_buff::SIZE];
    start[sk_buff::MARK..sk_buff::MARK + 4].copy_from_slice(&0xf00f_f00fu32.to_ne_bytes());
    let pass = |frame: &[u8]| {
        let (mut out, mut bytes) = ([0; sk_buff::SIZE], vec![0; frame.len()]);
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut bytes),
            ctx_in: Some(&start),
            ctx_out: Some(&mut out),
            ..TestRunOptions::default()
        };
        let answer = kernel.runner().run(Hook::Tag, options).expect("run").return_value;
        assert_eq!(answer, TC_NEXT);
        (u32::from_ne_bytes(out[sk_buff::MARK..][..4].try_into().expect("4 bytes")), bytes)
    };
    let frame = up().hops(64, 0xb9).build();
    assert_eq!(pass(&frame), (0xf00f_f00f, frame.clone()), "no verdict, no mark");
    kernel.table.store_verdict(slot, Verdict::new(Action::Tag, 0, record.generation, UNTIL_NS).0);
    assert_eq!(both_hooks(&kernel), (XDP_PASS, TC_NEXT), "a tag drops nothing");
    let (mark, bytes) = pass(&frame);
    assert_eq!(mark, 0xf00f_fa5f, "only the bits under the mask change");
    let header = &bytes[ETHERNET_HEADER..ETHERNET_HEADER + 20];
    assert_eq!(header[1], 8 << 2 | 1, "DSCP 8, and ECN as it was");
    assert_eq!(ones_complement(header), 0xffff, "the header's checksum is right");
    let mut restored = bytes;
    restored[ETHERNET_HEADER + 1] = 0xb9;
    restored[ETHERNET_HEADER + 10..][..2].copy_from_slice(&frame[ETHERNET_HEADER + 10..][..2]);
    assert_eq!(restored, frame, "nothing else changed");
    assert_eq!(counters(&kernel).tagged, 1);
    kernel.control.set(&Control { tag_mark: 0x5a5a, tag_dscp: NO_DSCP, ..control() });
    assert_eq!(pass(&frame), (0xf00f_f00f, frame), "no mask and no DSCP: nothing is touched");
    let [_, tagged, ..] = counters(&kernel).seen[counter::Hook::Ingress as usize];
    assert_eq!(tagged.packets, 1, "the ingress program counted the tagged packet as such");
}

#[test]
fn a_tag_sets_the_dscp_of_ipv6_behind_a_vlan_tag() {
    let kernel = load(&LoadOptions { tagging: true, ..options() });
    kernel.control.set_lease(UNTIL_NS);
    kernel.control.set(&Control { tag_dscp: 0x2e, ..control() });
    let frame = Frame::udp(at("[2001:db8::1]:9"), at("[2001:db8::2]:9")).hops(64, 0x06).tag(VLAN, 5).build();
    run(&kernel, Hook::Ingress, &frame);
    let (slot, record) = record(&kernel, &key(&frame)).expect("a record");
    kernel.table.store_verdict(slot, Verdict::new(Action::Tag, 0, record.generation, UNTIL_NS).0);
    let mut bytes = vec![0; frame.len()];
    let options = TestRunOptions { data_in: Some(&frame), data_out: Some(&mut bytes), ..TestRunOptions::default() };
    kernel.runner().run(Hook::Tag, options).expect("run");
    // Version 6, class 0x2e with ECN 2, and the flow label as it was.
    let mut expected = frame;
    expected[18..22].copy_from_slice(&[0x6b, 0xaa, 0xbc, 0xde]);
    assert_eq!(bytes, expected);
}
