//! The object file → its programs, each with what it is made of and the stack of its deepest chain of calls.
//!
//! A program is a function outside of `.text`; what it calls is in `.text` and loaded with it, once for each program. Called
//! by `budget`.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, bail, ensure};
use object::read::elf::{ElfFile64, ElfSection64};
use object::{
    LittleEndian, Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex, SectionKind, SymbolKind,
};

use super::stack::{self, INSTRUCTION};

/// The kernel adds up frames rounded to this many bytes, at least one of them for each function: check_max_stack_depth in
/// kernel/bpf/verifier.c. (Newer ones than 6.1 round to 16 if their JIT compiler is on.)
const FRAME: u32 = 32;
/// BPF_JMP | BPF_CALL, and what the source register says if a function of the object is called, not one of the kernel.
const CALL: u8 = 0x85;
const PSEUDO_CALL: usize = 1;

/// A program of the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) name: String,
    /// Of its function and of all that it calls, each once.
    pub(super) instructions: u32,
    /// Bytes of the deepest chain of calls, as kernels count it that round the most.
    pub(super) stack: u32,
    /// That chain: functions, and the bytes each uses.
    pub(super) chain: Vec<(String, u32)>,
}

struct Function {
    name: String,
    is_program: bool,
    instructions: u32,
    depth: u32,
    callees: Vec<usize>,
}

/// The object's programs, by name.
///
/// # Errors
/// If the file is no object of this kind, a function calls itself, or calls what is in no function of the object.
pub(super) fn programs(object: &[u8]) -> Result<Vec<Program>> {
    let functions = functions(object)?;
    let mut programs = Vec::new();
    for (number, function) in functions.iter().enumerate().filter(|(_, function)| function.is_program) {
        let mut walk = Walk { functions: &functions, done: BTreeMap::new() };
        let (stack, chain) = walk.deepest(number, &mut Vec::new())?;
        programs.push(Program {
            name: function.name.clone(),
            instructions: walk.done.keys().map(|number| functions[*number].instructions).sum(),
            stack,
            chain: chain.iter().map(|number| (functions[*number].name.clone(), functions[*number].depth)).collect(),
        });
    }
    programs.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(programs)
}

/// Bytes of stack, and the functions that use them.
type Chain = (u32, Vec<usize>);

struct Walk<'a> {
    functions: &'a [Function],
    done: BTreeMap<usize, Chain>,
}

impl Walk<'_> {
    fn deepest(&mut self, number: usize, above: &mut Vec<usize>) -> Result<Chain> {
        let function = &self.functions[number];
        ensure!(!above.contains(&number), "function {} calls itself, which the kernel refuses", function.name);
        if let Some(chain) = self.done.get(&number) {
            return Ok(chain.clone());
        }
        above.push(number);
        let mut below = (0, Vec::new());
        for callee in &function.callees {
            let chain = self.deepest(*callee, above)?;
            if chain.0 > below.0 {
                below = chain;
            }
        }
        above.pop();
        let chain = (function.depth.max(1).next_multiple_of(FRAME) + below.0, [vec![number], below.1].concat());
        self.done.insert(number, chain.clone());
        Ok(chain)
    }
}

/// All functions of the object, in no order that means anything.
fn functions(object: &[u8]) -> Result<Vec<Function>> {
    let file = ElfFile64::<LittleEndian>::parse(object).context("the object is no ELF file of a known form")?;
    let symbols: Vec<_> =
        file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0).collect();
    // Where functions start, and which they are.
    let mut places = HashMap::new();
    for (number, symbol) in symbols.iter().enumerate() {
        let section = symbol.section_index().context("a function in no section")?;
        places.insert((section, symbol.address()), number);
    }
    let mut functions = Vec::new();
    for symbol in &symbols {
        let name = symbol.name().context("a function without a name")?.to_owned();
        let section = file.section_by_index(symbol.section_index().context("a function in no section")?)?;
        let (start, end) = (symbol.address() as usize, (symbol.address() + symbol.size()) as usize);
        let code =
            section.data()?.get(start..end).with_context(|| format!("function {name} ends after its section"))?;
        let callees = callees(&file, &section, start, code, &places).with_context(|| format!("calls of {name}"))?;
        functions.push(Function {
            is_program: section.name()? != ".text",
            instructions: (code.len() / INSTRUCTION) as u32,
            depth: stack::depth(code),
            callees,
            name,
        });
    }
    Ok(functions)
}

/// The functions that a function calls or takes the address of, by number, each once.
fn callees(
    file: &ElfFile64<'_, LittleEndian>,
    section: &ElfSection64<'_, '_, LittleEndian>,
    start: usize,
    code: &[u8],
    places: &HashMap<(SectionIndex, u64), usize>,
) -> Result<Vec<usize>> {
    let instructions = stack::instructions(code);
    let mut callees = Vec::new();
    let mut relocated = vec![false; instructions.len()];
    for (offset, relocation) in section.relocations() {
        let Some(at) = (offset as usize).checked_sub(start).map(|offset| offset / INSTRUCTION) else { continue };
        let Some(instruction) = instructions.get(at) else { continue };
        let RelocationTarget::Symbol(symbol) = relocation.target() else { continue };
        let symbol = file.symbol_by_index(symbol)?;
        let Some(target) = symbol.section_index() else { continue };
        if file.section_by_index(target)?.kind() != SectionKind::Text {
            continue;
        }
        relocated[at] = true;
        let within = match symbol.kind() {
            // The number says where: instructions, one short, in a call, else bytes.
            SymbolKind::Section if instruction.code == CALL => (instruction.imm as i64 + 1) as u64 * INSTRUCTION as u64,
            SymbolKind::Section => instruction.imm as u64,
            _ => symbol.address(),
        };
        callees.push((target, within));
    }
    for (at, instruction) in instructions.iter().enumerate() {
        // Of another function of the same section: counted from the next instruction.
        if instruction.code == CALL && instruction.src == PSEUDO_CALL && !relocated[at] {
            let target = (start / INSTRUCTION + at + 1).checked_add_signed(instruction.imm as isize);
            let target = target.context("a call of what is before the section")?;
            callees.push((section.index(), (target * INSTRUCTION) as u64));
        }
    }
    let mut numbers = Vec::new();
    for callee in callees {
        let Some(number) = places.get(&callee) else { bail!("no function starts at byte {} of its section", callee.1) };
        numbers.push(*number);
    }
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::write::{Object, Relocation, SectionId, Symbol, SymbolId, SymbolSection};
    use object::{Architecture, BinaryFormat, Endianness, RelocationFlags, SymbolFlags, SymbolScope, elf};

    const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];

    /// *(u64 *)(r10 - depth) = r1, and calls whose places a relocation or the number names.
    fn body(depth: i16, calls: &[i32]) -> Vec<u8> {
        let [low, high] = (-depth).to_le_bytes();
        let mut code = vec![0x7b, 0x1a, low, high, 0, 0, 0, 0];
        for call in calls {
            code.extend([CALL, 0x10, 0, 0]);
            code.extend(call.to_le_bytes());
        }
        code.extend(EXIT);
        code
    }

    struct Maker {
        object: Object<'static>,
        sections: HashMap<&'static str, SectionId>,
    }

    impl Maker {
        fn new() -> Maker {
            let object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
            Maker { object, sections: HashMap::new() }
        }

        fn function(&mut self, section: &'static str, name: &str, code: &[u8]) -> SymbolId {
            let make = || self.object.add_section(Vec::new(), section.into(), SectionKind::Text);
            let section = *self.sections.entry(section).or_insert_with(make);
            let value = self.object.append_section_data(section, code, 8);
            self.object.add_symbol(Symbol {
                name: name.into(),
                value,
                size: code.len() as u64,
                kind: SymbolKind::Text,
                scope: SymbolScope::Dynamic,
                weak: false,
                section: SymbolSection::Section(section),
                flags: SymbolFlags::None,
            })
        }

        /// Says that the call at an instruction of a function is of `callee`.
        fn call(&mut self, caller: SymbolId, instruction: u64, callee: SymbolId) {
            let caller = self.object.symbol(caller);
            let (section, offset) = (caller.section.id().unwrap(), caller.value + instruction * 8);
            let flags = RelocationFlags::Elf { r_type: elf::R_BPF_64_32 };
            self.object.add_relocation(section, Relocation { offset, symbol: callee, addend: 0, flags }).unwrap();
        }

        /// The start of the section that a function is in.
        fn section_of(&mut self, function: SymbolId) -> SymbolId {
            let section = self.object.symbol(function).section.id().unwrap();
            self.object.section_symbol(section)
        }

        fn programs(&self) -> Result<Vec<Program>> {
            programs(&self.object.write().unwrap())
        }
    }

    fn chain(parts: &[(&str, u32)]) -> Vec<(String, u32)> {
        parts.iter().map(|(name, depth)| ((*name).to_owned(), *depth)).collect()
    }

    #[test]
    fn the_deepest_chain_counts_and_each_function_once() {
        let mut made = Maker::new();
        // Three instructions each, and one more for each call.
        let leaf = made.function(".text", "leaf", &body(40, &[]));
        let deep = made.function(".text", "deep", &body(200, &[-1]));
        made.function(".text", "unused", &body(500, &[]));
        let main = made.function("xdp", "sensor_xdp", &body(208, &[-1, -1]));
        made.call(deep, 1, leaf);
        made.call(main, 1, leaf);
        made.call(main, 2, deep);
        made.function("classifier", "sensor_tag", &body(8, &[]));
        let [tag, xdp] = &made.programs().unwrap()[..] else { panic!("not two programs") };
        assert_eq!((tag.name.as_str(), tag.instructions, tag.stack), ("sensor_tag", 2, 32));
        assert_eq!((xdp.name.as_str(), xdp.instructions), ("sensor_xdp", 2 + 3 + 4));
        assert_eq!(xdp.chain, chain(&[("sensor_xdp", 208), ("deep", 200), ("leaf", 40)]));
        // Rounded to 32: kernel 6.1 refuses this one.
        assert_eq!(xdp.stack, 224 + 224 + 64);
    }

    #[test]
    fn a_call_by_section_and_number_is_found_and_one_without_a_relocation() {
        let mut made = Maker::new();
        made.function(".text", "first", &body(8, &[]));
        // The function after it: one instruction on, and an exit.
        let second = made.function(".text", "second", &body(16, &[1]));
        made.function(".text", "third", &body(64, &[]));
        // `second` starts at the third instruction of its section.
        let main = made.function("xdp", "main", &body(8, &[1]));
        let text = made.section_of(second);
        made.call(main, 1, text);
        let programs = made.programs().unwrap();
        assert_eq!(programs[0].chain, chain(&[("main", 8), ("second", 16), ("third", 64)]));
        assert_eq!(programs[0].stack, 32 + 32 + 64);
    }

    #[test]
    fn a_function_that_calls_itself_and_a_call_of_nothing_are_errors() {
        let mut made = Maker::new();
        made.function("xdp", "main", &body(8, &[-2]));
        assert!(format!("{:#}", made.programs().unwrap_err()).contains("main calls itself"));
        let mut made = Maker::new();
        made.function("xdp", "main", &body(8, &[77]));
        assert!(format!("{:#}", made.programs().unwrap_err()).contains("no function starts at byte 632"));
        assert!(programs(b"\x7fELF").is_err());
    }
}
