//! The programs that benches measure and those that the agent loads come of the same source, as two objects.

use sensor::bpf::bench::{Bench, Floor};
use sensor::bpf::load::{Hook, LoadOptions, ProgramInfo};
use sensor_common::packet::Options;
use sensor_common::whole::{FRACTION_BITS, Wide, fraction, rate, variance};

use sensor_tests::rng::Rng;

use super::rig::{load, options};

fn programs(bench: Option<Bench>) -> Vec<ProgramInfo> {
    let kernel = load(&LoadOptions { bench, tagging: true, parser: Options::ALL, ..options() });
    let mut programs = kernel.programs();
    programs.sort_by(|one, other| one.name.cmp(&other.name));
    programs
}

#[test]
fn benches_measure_the_programs_that_the_agent_loads() {
    let (own, measured) = (programs(None), programs(Some(Bench::default())));
    let names = |programs: &[ProgramInfo]| programs.iter().map(|program| program.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&own), names(&measured));
    assert_eq!(own.len(), 4);
    // What asks whether it is to be cut short is a load and a branch, at seven places.
    let within = |own: u32, measured: u32| u64::from(own.abs_diff(measured)) * 100 <= u64::from(own);
    for (own, measured) in own.iter().zip(&measured) {
        println!("{own:?}\n{measured:?}");
        assert!(within(own.jited_bytes, measured.jited_bytes), "{own:?} {measured:?}");
        let (Some(walked), Some(other)) = (own.verified_instructions, measured.verified_instructions) else { continue };
        assert!(within(walked, other), "{own:?} {measured:?}");
    }
}

/// A verdict by features in the kernel compares these numbers, so they must be the host's to the last digit.
#[test]
fn the_kernel_computes_the_whole_numbers_of_features_as_the_host_does() {
    let mut kernel = load(&LoadOptions { bench: Some(Bench::default()), ..options() });
    kernel.load_bench("floor_whole").expect("the verifier takes it");
    let mut random = Rng::new(0x5eed);
    let mut run = |count: u64, sum: u64, square: Wide, change: u64| {
        let answers = [fraction(sum, count), rate(count, sum), variance(count, sum, square, 0)];
        let fine = variance(count, sum, square, FRACTION_BITS);
        let words = [count, sum, square.high, square.low, answers[0], answers[1], answers[2], fine ^ change];
        let mut frame = vec![0; 16];
        frame.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        kernel.test_run(Hook::Bench("floor_whole"), &frame, 1).expect("a run").0
    };
    const DROP: u32 = 1;
    const PASS: u32 = 2;
    for edge in [0, 1, 2, u64::from(u32::MAX), 1 << 32, 1 << 48, 1 << 54, u64::MAX] {
        for other in [0, 1, u64::from(u32::MAX), 1 << 47, u64::MAX] {
            let square = Wide { high: other, low: edge };
            assert_eq!(run(edge, other, square, 0), DROP, "{edge} {other}");
        }
    }
    for _ in 0..20_000 {
        let mut number = || random.next_u64() >> random.range(0..64);
        let (count, sum) = (number(), number());
        let square = Wide { high: number() >> 32, low: number() };
        assert_eq!(run(count, sum, square, 0), DROP, "{count} {sum} {square:?}");
    }
    assert_eq!(run(10, 1000, Wide { high: 0, low: 200_000 }, 1), PASS, "a number that differs is noticed");
}

#[test]
fn the_object_of_the_agent_has_nothing_of_benches() {
    let mut kernel = load(&options());
    let frame = [0; 64];
    let mut errors: Vec<_> = Floor::ALL.map(|floor| kernel.test_run(Hook::Floor(floor), &frame, 1).err()).into();
    errors.extend(["floor_pass", "floor_record_wait", "floor_sums_spin"].map(|name| kernel.load_bench(name).err()));
    for error in errors {
        let text = format!("{:#}", error.expect("a program that only benches have"));
        assert!(text.contains("has no program floor_"), "{text}");
    }
}
