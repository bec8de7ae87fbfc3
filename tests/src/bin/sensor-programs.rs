//! `cargo xtask ebpf --load`: has this kernel load the programs of the object that the agent can load, and prints what it says
//! of them, a program a line: name, instructions that the verifier walked (`-` where the kernel does not say), bytes of
//! machine code. Nothing is attached. Called by xtask, which compares the numbers with the budget.

use std::collections::BTreeMap;

use anyhow::Result;
use sensor::bpf::load::{Kernel, LoadOptions};
use sensor_common::packet;

fn main() -> Result<()> {
    // With all that settings can switch on: without it the verifier walks less.
    let all = LoadOptions { flows: 8_192, parser: packet::Options::ALL, ..LoadOptions::default() };
    let one_buffer = Kernel::load(&LoadOptions { frags: false, ..all.clone() })?;
    let mut others = Kernel::load(&LoadOptions { tagging: true, ..all })?;
    others.load_stack_ingress()?;

    let programs = [one_buffer, others].map(|kernel| kernel.programs()).into_iter().flatten();
    let programs: BTreeMap<_, _> = programs.map(|program| (program.name.clone(), program)).collect();
    for (name, program) in programs {
        let verified = program.verified_instructions.map_or_else(|| "-".to_owned(), |number| number.to_string());
        println!("{name} {verified} {}", program.jited_bytes);
    }
    Ok(())
}
