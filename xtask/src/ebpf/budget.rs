//! What each program costs, beside what it cost when sensor-ebpf/budget.toml was written, and the limits that none may pass.
//!
//! What grew is noted; what is over a limit fails. Numbers of a kernel are compared with those of the same kernel only.

use std::{collections::BTreeMap, fmt, fs};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::{Built, loaded::Loaded, programs::Program};
use crate::cmd;

const FILE: &str = "sensor-ebpf/budget.toml";
/// What a number may grow by before it is noted, percent. The stack grows in steps: each is noted.
const TOLERANCE: u64 = 10;
/// Most bytes that a chain of calls may use, of the 512 that the kernel has for it (MAX_BPF_STACK in its include/linux/filter.h).
const MAX_STACK: u32 = 480;
/// Most instructions that the verifier may walk, of its 1,000,000 (BPF_COMPLEXITY_LIMIT_INSNS in the kernel's include/linux/bpf.h):
/// other kernels walk other numbers, and no other than this one is looked at.
const MAX_VERIFIED: u32 = 600_000;

/// What the programs cost.
pub(super) struct Costs {
    /// The kernel that loaded them, if one did.
    kernel: Option<String>,
    programs: BTreeMap<String, (Cost, Vec<(String, u32)>)>,
}

/// The numbers of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cost {
    instructions: u32,
    stack: u32,
    verified: Option<u32>,
    jited: Option<u32>,
}

/// The budget's file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    compiler: String,
    kernel: String,
    programs: BTreeMap<String, Cost>,
}

impl Costs {
    /// # Errors
    /// If the kernel says nothing of a program of the object.
    pub(super) fn new(programs: &[Program], loaded: Option<Loaded>) -> Result<Costs> {
        let mut costs = BTreeMap::new();
        for program in programs {
            let Program { name, instructions, stack, chain } = program;
            let mut cost = Cost { instructions: *instructions, stack: *stack, verified: None, jited: None };
            if let Some(loaded) = &loaded {
                let numbers = loaded.programs.get(name);
                let numbers = numbers.with_context(|| format!("program {name} was not loaded: see sensor-programs"))?;
                (cost.verified, cost.jited) = (numbers.verified, Some(numbers.jited));
            }
            costs.insert(name.clone(), (cost, chain.clone()));
        }
        ensure!(!costs.is_empty(), "the object has no programs");
        Ok(Costs { kernel: loaded.map(|loaded| loaded.kernel), programs: costs })
    }

    /// What grew, or is new, or is gone.
    fn notes(&self, budget: &Budget) -> Vec<String> {
        let mut notes = Vec::new();
        let same_kernel = self.kernel.as_ref() == Some(&budget.kernel);
        if let Some(kernel) = self.kernel.as_ref().filter(|_| !same_kernel) {
            notes.push(format!("{kernel} is not compared with the budget's {}", budget.kernel));
        }
        for (name, (cost, _)) in &self.programs {
            let Some(before) = budget.programs.get(name) else {
                notes.push(format!("{name}: not in the budget"));
                continue;
            };
            let of_kernel = |number: Option<u32>| number.filter(|_| same_kernel);
            for (what, before, now, tolerance) in [
                ("instructions", Some(before.instructions), Some(cost.instructions), TOLERANCE),
                ("stack", Some(before.stack), Some(cost.stack), 0),
                ("verified instructions", before.verified, of_kernel(cost.verified), TOLERANCE),
                ("JITed bytes", before.jited, of_kernel(cost.jited), TOLERANCE),
            ] {
                let (Some(before), Some(now)) = (before, now) else { continue };
                if now as u64 * 100 > before as u64 * (100 + tolerance) {
                    let percent = (now - before) as f64 * 100.0 / before.max(1) as f64;
                    notes.push(format!("{name}: {what} {} -> {} (+{percent:.0} %)", grouped(before), grouped(now)));
                }
            }
        }
        let gone = budget.programs.keys().filter(|name| !self.programs.contains_key(*name));
        notes.extend(gone.map(|name| format!("{name}: in the budget, and not in the object")));
        notes
    }

    /// What is over a limit.
    fn excesses(&self) -> Vec<String> {
        let mut excesses = Vec::new();
        for (name, (cost, _)) in &self.programs {
            if cost.stack > MAX_STACK {
                excesses
                    .push(format!("{name}: a chain of calls uses {} bytes of stack, limit {MAX_STACK}", cost.stack));
            }
            if let Some(verified) = cost.verified.filter(|verified| *verified > MAX_VERIFIED) {
                let (verified, limit) = (grouped(verified), grouped(MAX_VERIFIED));
                excesses.push(format!("{name}: the verifier walks {verified} instructions, limit {limit}"));
            }
        }
        excesses
    }

    /// The file that makes these the budget.
    fn file(&self, compiler: &str, kernel: &str) -> String {
        let mut text = format!(
            "# What the kernel programs cost: `cargo xtask ebpf --update-budget` writes this, `cargo xtask ebpf` and `lint` note\n\
             # what grew. 8-byte instructions, bytes of stack in the deepest chain of calls, instructions that the verifier walked\n\
             # and bytes of machine code with all that settings can switch on.\n\
             compiler = {compiler:?}\nkernel = {kernel:?}\n\n[programs]\n"
        );
        for (name, (Cost { instructions, stack, verified, jited }, _)) in &self.programs {
            let mut line = format!("{name} = {{ instructions = {instructions}, stack = {stack}");
            for (key, number) in [("verified", verified), ("jited", jited)] {
                line.extend(number.map(|number| format!(", {key} = {number}")));
            }
            text += &format!("{line} }}\n");
        }
        text
    }
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), grouped);
        writeln!(
            f,
            "{:<18}{:>12}{:>7}{:>10}{:>9}  deepest chain of calls, bytes of stack each",
            "program", "instructions", "stack", "verified", "JITed"
        )?;
        for (name, (Cost { instructions, stack, verified, jited }, chain)) in &self.programs {
            let chain: Vec<_> = chain.iter().map(|(name, depth)| format!("{name} {depth}")).collect();
            let (verified, jited) = (number(*verified), number(*jited));
            let instructions = grouped(*instructions);
            writeln!(f, "{name:<18}{instructions:>12}{stack:>7}{verified:>10}{jited:>9}  {}", chain.join(", "))?;
        }
        match &self.kernel {
            Some(kernel) => writeln!(f, "verified and JITed by {kernel}, with all that settings can switch on"),
            None => Ok(()),
        }
    }
}

/// Prints what grew since the budget was written.
///
/// # Errors
/// If a program is over a limit, or the budget cannot be read.
pub(super) fn compare(costs: &Costs) -> Result<()> {
    let path = cmd::workspace_root().join(FILE);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {FILE}"))?;
    let budget: Budget = toml::from_str(&text).with_context(|| format!("{FILE} is no budget"))?;
    let notes = costs.notes(&budget);
    notes.iter().for_each(|note| println!("note: {note}"));
    let Budget { compiler, kernel, .. } = &budget;
    let grew = if notes.is_empty() { "nothing grew beyond it" } else { "see the notes" };
    println!("budget: {FILE} ({compiler}; {kernel}): {grew}");
    let excesses = costs.excesses();
    if !excesses.is_empty() {
        bail!("the programs leave kernels too little room ({FILE} is not asked): {}", excesses.join("; "));
    }
    Ok(())
}

/// Writes the budget.
///
/// # Errors
/// If the object was not compiled here, the programs were not loaded, or the file cannot be written.
pub(super) fn update(built: &Built, costs: &Costs) -> Result<()> {
    let compiler =
        built.compiler.as_ref().context("a budget is of an object compiled here: unset SENSOR_EBPF_OBJECT")?;
    let kernel = costs.kernel.as_ref().context("a budget needs the numbers of a kernel: run this as root")?;
    fs::write(cmd::workspace_root().join(FILE), costs.file(compiler, kernel))
        .with_context(|| format!("cannot write {FILE}"))?;
    println!("{FILE}: written");
    Ok(())
}

/// 1234567 → 1,234,567
fn grouped(number: u32) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ebpf::loaded::Numbers;

    const KERNEL: &str = "Linux 6.18, x86_64";

    fn costs(instructions: u32, stack: u32, loaded: Option<(&str, u32)>) -> Costs {
        let program = |name: &str| Program { name: name.to_owned(), instructions, stack, chain: Vec::new() };
        let loaded = loaded.map(|(kernel, verified)| Loaded {
            kernel: kernel.to_owned(),
            programs: [("sensor_egress".to_owned(), Numbers { verified: Some(verified), jited: 48_540 })].into(),
        });
        Costs::new(&[program("sensor_egress")], loaded).unwrap()
    }

    fn budget() -> Budget {
        toml::from_str(&costs(11_666, 448, Some((KERNEL, 257_000))).file("rustc 1.96.0, LLVM 22", KERNEL)).unwrap()
    }

    #[test]
    fn a_budget_is_read_as_it_was_written() {
        let read = budget();
        assert_eq!((read.compiler.as_str(), read.kernel.as_str()), ("rustc 1.96.0, LLVM 22", KERNEL));
        let cost = Cost { instructions: 11_666, stack: 448, verified: Some(257_000), jited: Some(48_540) };
        assert_eq!(read.programs, [("sensor_egress".to_owned(), cost)].into());
        assert!(costs(11_666, 448, Some((KERNEL, 257_000))).notes(&read).is_empty());
    }

    #[test]
    fn growth_beyond_the_tolerance_is_noted() {
        let notes = |instructions, stack, loaded| costs(instructions, stack, loaded).notes(&budget());
        assert_eq!(
            notes(11_666, 448, Some((KERNEL, 301_000))),
            ["sensor_egress: verified instructions 257,000 -> 301,000 (+17 %)"]
        );
        // 10 % and less, either way.
        assert!(notes(12_832, 448, Some((KERNEL, 282_700))).is_empty());
        assert!(notes(100, 96, Some((KERNEL, 1_000))).is_empty());
        assert_eq!(notes(12_833, 448, None), ["sensor_egress: instructions 11,666 -> 12,833 (+10 %)"]);
        assert_eq!(notes(11_666, 480, None), ["sensor_egress: stack 448 -> 480 (+7 %)"]);
    }

    #[test]
    fn another_kernel_is_not_compared_and_other_programs_are_noted() {
        let other = costs(11_666, 448, Some(("Linux 6.1, x86_64", 900_000)));
        assert_eq!(other.notes(&budget()), ["Linux 6.1, x86_64 is not compared with the budget's Linux 6.18, x86_64"]);
        let mut of_others = budget();
        let cost = of_others.programs.remove("sensor_egress").unwrap();
        of_others.programs.insert("sensor_old".to_owned(), cost);
        assert_eq!(
            costs(11_666, 448, None).notes(&of_others),
            ["sensor_egress: not in the budget", "sensor_old: in the budget, and not in the object"]
        );
    }

    #[test]
    fn limits_hold_whatever_the_budget_says() {
        assert!(costs(11_666, MAX_STACK, Some((KERNEL, MAX_VERIFIED))).excesses().is_empty());
        assert_eq!(
            costs(11_666, 512, Some(("Linux 6.1, x86_64", 600_001))).excesses(),
            [
                "sensor_egress: a chain of calls uses 512 bytes of stack, limit 480",
                "sensor_egress: the verifier walks 600,001 instructions, limit 600,000"
            ]
        );
    }

    #[test]
    fn a_program_that_was_not_loaded_is_an_error() {
        let program = Program { name: "sensor_new".to_owned(), instructions: 1, stack: 32, chain: Vec::new() };
        let loaded = Loaded { kernel: KERNEL.to_owned(), programs: BTreeMap::new() };
        assert!(Costs::new(&[program], Some(loaded)).is_err());
    }

    #[test]
    fn numbers_are_grouped() {
        let numbers = [7, 512, 1_000, 123_456, 1_234_567];
        assert_eq!(numbers.map(grouped), ["7", "512", "1,000", "123,456", "1,234,567"]);
    }
}
