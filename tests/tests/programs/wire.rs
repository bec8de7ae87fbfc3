//! The crafted conversations on a wire: the programs at their real hooks, with real skbs and buffers, keep the same
//! integers as native code.

use sensor_common::packet::Options;
use sensor_tests::live::{Clock, Crossing, Way, Wire};
use sensor_tests::rng::Rng;

use crate::conversations;
use crate::parity::gap;
use crate::rig::START_NS;

/// Every conversation in one direction: who sent a frame is in its addresses, whatever hook sees it.
fn cross(way: Way, clock: Clock) {
    let mut wire = Wire::new(way, clock, Options::NONE).expect("a veth pair with the programs (as root)");
    let mut rng = Rng::new(3);
    let mut time_ns = START_NS;
    let mut all = Crossing::default();
    for (name, frames) in conversations::all() {
        let timed: Vec<(u64, Vec<u8>)> = frames
            .into_iter()
            .map(|(_, frame)| {
                time_ns += gap(&mut rng);
                (time_ns, frame)
            })
            .collect();
        let crossing = wire
            .cross(timed.iter().map(|(time_ns, frame)| (*time_ns, &frame[..])))
            .unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let differences = &crossing.differences;
        assert!(differences.is_empty(), "{name} ({way:?}): kernel (left) and native (right) differ: {differences:#?}");
        all.add(&crossing);
    }
    println!("{way:?}, {clock:?}: {all}");
    assert!(all.frames > 400 && all.not_crossed.is_empty(), "{all}");
}

#[test]
fn native_xdp_keeps_the_same_integers() {
    cross(Way::Native, Clock::Replay);
}

#[test]
fn generic_xdp_keeps_the_same_integers() {
    cross(Way::Generic, Clock::Replay);
}

#[test]
fn stack_ingress_keeps_the_same_integers() {
    cross(Way::Stack, Clock::Replay);
}

#[test]
fn egress_keeps_the_same_integers() {
    cross(Way::Egress, Clock::Replay);
}

/// Times too: native code counts at the times that the kernel took.
#[test]
fn the_kernels_clock_changes_nothing() {
    for way in [Way::Native, Way::Stack] {
        cross(way, Clock::Kernel);
    }
}
