//! The programs that benches measure and those that the agent loads come of the same source, as two objects.

use sensor::bpf::bench::{Bench, Floor};
use sensor::bpf::load::{Hook, LoadOptions, ProgramInfo};
use sensor_common::packet::Options;

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
