//! The crafted conversations on a wire: the programs at their real hooks, with real skbs and buffers, keep the same
//! integers as native code.

use sensor_tests::live::{Clock, Crossing, Way, Wire};
use sensor_tests::rng::Rng;

use crate::conversations;
use crate::parity::gap;
use crate::rig::START_NS;

/// Every conversation in one direction: who sent a frame is in its addresses, whatever hook sees it.
fn cross(way: Way, clock: Clock) -> Crossing {
    let mut wire = Wire::new(way, clock).expect("a veth pair with the programs (as root)");
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
        let Crossing { frames, not_taken, flows, times, differences } = wire
            .cross(timed.iter().map(|(time_ns, frame)| (*time_ns, &frame[..])))
            .unwrap_or_else(|error| panic!("{name}: {error:#}"));
        assert!(differences.is_empty(), "{name} ({way:?}): kernel (left) and native (right) differ: {differences:#?}");
        all.frames += frames;
        all.not_taken += not_taken;
        all.flows += flows;
        all.times += times;
    }
    println!("{way:?}: {} frames, {} not taken by the device, {} flows", all.frames, all.not_taken, all.flows);
    assert!(all.frames > 400 && all.not_taken == 0, "{all:?}");
    all
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
fn egress_keeps_the_same_integers() {
    cross(Way::Egress, Clock::Replay);
}

#[test]
fn the_kernels_clock_changes_nothing_but_times() {
    let all = cross(Way::Native, Clock::Kernel);
    assert!(all.times > all.flows, "the kernel's clock is not that of the frames: {all:?}");
}
