//! How much stack a BPF function uses, from its instructions alone.
//!
//! Invariant: the answer is not less than the kernel's (`stack_depth` in its kernel/bpf/verifier.c), which counts the lowest byte
//! that is read, written or passed on; this counts each address that is made, also in code that the settings make dead.
//! An address that was stored and is loaded again is not followed: it was counted when it was made. Called by `programs`.

/// Bytes of an instruction; the kernel counts a load of 64 bits as two.
pub(super) const INSTRUCTION: usize = 8;
/// The kernel keeps account of the stack in these.
const SLOT: u32 = 8;
/// The frame pointer, read-only.
const FP: usize = 10;
/// No address further below the frame pointer is followed: twice what a chain of calls may use.
const FLOOR: i32 = -1024;

/// An instruction, as in the kernel's include/uapi/linux/bpf.h.
pub(super) struct Instruction {
    pub(super) code: u8,
    pub(super) dst: usize,
    pub(super) src: usize,
    offset: i32,
    pub(super) imm: i32,
}

/// Instructions by their numbers; bytes that are left over at the end are ignored.
pub(super) fn instructions(code: &[u8]) -> Vec<Instruction> {
    let (words, _) = code.as_chunks::<INSTRUCTION>();
    let decode = |word: &[u8; INSTRUCTION]| Instruction {
        code: word[0],
        dst: (word[1] & 15) as usize,
        src: (word[1] >> 4) as usize,
        offset: i16::from_le_bytes([word[2], word[3]]) as i32,
        imm: i32::from_le_bytes([word[4], word[5], word[6], word[7]]),
    };
    words.iter().map(decode).collect()
}

/// What each register may be: the lowest offset from the frame pointer, or no address in this frame.
type Registers = [Option<i32>; 16];

/// Bytes below the frame pointer that a function uses.
pub(super) fn depth(code: &[u8]) -> u32 {
    let code = instructions(code);
    let mut known: Vec<Option<Registers>> = vec![None; code.len()];
    let mut start: Registers = [None; 16];
    start[FP] = Some(0);
    let mut todo = vec![(0, start)];
    let mut lowest = 0;
    while let Some((at, mut registers)) = todo.pop() {
        let Some(instruction) = code.get(at) else { continue };
        if let Some(before) = known[at] {
            registers = lower(before, registers);
            if registers == before {
                continue;
            }
        }
        known[at] = Some(registers);
        lowest = step(instruction, &mut registers).into_iter().fold(lowest, i32::min);
        todo.extend(next(instruction, at).into_iter().flatten().map(|next| (next, registers)));
    }
    lowest.unsigned_abs().next_multiple_of(SLOT)
}

fn lower(one: Registers, other: Registers) -> Registers {
    std::array::from_fn(|number| match (one[number], other[number]) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    })
}

/// Does what an instruction does to the registers; the address that it makes or uses, if it is one in this frame.
fn step(instruction: &Instruction, registers: &mut Registers) -> Option<i32> {
    let &Instruction { code, dst, src, offset, imm } = instruction;
    let at = |address: Option<i32>, offset: i32| address.map(|address| address.saturating_add(offset).max(FLOOR));
    match (code & 7, code & 0xf0) {
        // BPF_LDX: the register gets what the memory holds.
        (1, _) => {
            let used = at(registers[src], offset);
            registers[dst] = None;
            used
        }
        // BPF_ST, BPF_STX. Atomic operations that answer do so in the source register, a compare-and-swap in r0.
        (2 | 3, _) => {
            let used = at(registers[dst], offset);
            if code == 0xdb || code == 0xc3 {
                registers[if imm & 0xf0 == 0xf0 { 0 } else { src }] = None;
            }
            used
        }
        // BPF_ALU64: moved, or a number added. What else is added is no less than zero: an index.
        (7, 0xb0) => {
            registers[dst] = if code & 8 != 0 { registers[src] } else { None };
            None
        }
        (7, 0x00) if code & 8 != 0 => {
            registers[dst] = registers[dst].or(registers[src]);
            None
        }
        (7, 0x00 | 0x10) if code & 8 == 0 => {
            let by = if code & 0xf0 == 0 { imm } else { imm.saturating_neg() };
            registers[dst] = at(registers[dst], by);
            registers[dst]
        }
        // BPF_LD, BPF_ALU, and the rest of BPF_ALU64.
        (0 | 4 | 7, _) => {
            registers[dst] = None;
            None
        }
        // BPF_CALL; other jumps leave the registers as they are.
        (5, 0x80) => {
            registers[..=5].fill(None);
            None
        }
        _ => None,
    }
}

/// Which instructions may come next.
fn next(instruction: &Instruction, at: usize) -> [Option<usize>; 2] {
    let after = |distance: i32| at.checked_add_signed(1 + distance as isize);
    match (instruction.code & 7, instruction.code & 0xf0) {
        // BPF_EXIT
        (5, 0x90) => [None, None],
        // BPF_JA, with the distance in the number in its 32-bit form.
        (5, 0x00) => [after(instruction.offset), None],
        (6, 0x00) => [after(instruction.imm), None],
        (5, 0x80) => [after(0), None],
        (5 | 6, _) => [after(0), after(instruction.offset)],
        // A load of 64 bits takes two places.
        (0, _) if instruction.code == 0x18 => [after(1), None],
        _ => [after(0), None],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// code, dst, src, offset, imm
    fn code(instructions: &[(u8, u8, u8, i16, i32)]) -> Vec<u8> {
        let encode = |&(code, dst, src, offset, imm): &(u8, u8, u8, i16, i32)| {
            let (offset, imm) = (offset.to_le_bytes(), imm.to_le_bytes());
            [code, dst | src << 4, offset[0], offset[1], imm[0], imm[1], imm[2], imm[3]]
        };
        instructions.iter().flat_map(encode).collect()
    }

    const EXIT: (u8, u8, u8, i16, i32) = (0x95, 0, 0, 0, 0);

    #[test]
    fn the_lowest_byte_that_is_used_is_found() {
        assert_eq!(depth(&code(&[(0xb7, 0, 0, 0, 0), EXIT])), 0);
        // *(u64 *)(r10 - 16) = r1; r0 = *(u64 *)(r10 - 40)
        assert_eq!(depth(&code(&[(0x7b, 10, 1, -16, 0), (0x79, 0, 10, -40, 0), EXIT])), 40);
        // *(u32 *)(r10 - 28) = w1
        assert_eq!(depth(&code(&[(0x63, 10, 1, -28, 0), EXIT])), 32);
    }

    #[test]
    fn an_address_that_is_passed_on_counts() {
        // r1 = r10; r1 += -168; call 1
        let passed = [(0xbf, 1, 10, 0, 0), (0x07, 1, 0, 0, -168), (0x85, 0, 0, 0, 1), EXIT];
        assert_eq!(depth(&code(&passed)), 168);
        // After the call r1 is no address any more: an access through it is another memory's.
        let after = [(0xbf, 1, 10, 0, 0), (0x85, 0, 0, 0, 1), (0x7b, 1, 0, -300, 0), EXIT];
        assert_eq!(depth(&code(&after)), 0);
        // r6 is kept: *(u64 *)(r6 - 32 - 8) = r0
        let kept = [(0xbf, 6, 10, 0, 0), (0x07, 6, 0, 0, -32), (0x85, 0, 0, 0, 1), (0x7b, 6, 0, -8, 0), EXIT];
        assert_eq!(depth(&code(&kept)), 40);
    }

    #[test]
    fn an_index_hides_no_access() {
        // r2 = r10; r2 += r3; *(u8 *)(r2 - 64) = 0, and the same with the index first
        assert_eq!(depth(&code(&[(0xbf, 2, 10, 0, 0), (0x0f, 2, 3, 0, 0), (0x72, 2, 0, -64, 0), EXIT])), 64);
        assert_eq!(depth(&code(&[(0x0f, 3, 10, 0, 0), (0x72, 3, 0, -64, 0), EXIT])), 64);
    }

    #[test]
    fn all_ways_are_gone() {
        // r1 is an address in the frame on one way, a map's value on the other; both meet at the store.
        let meet = [
            (0xb7, 1, 0, 0, 0),
            (0x15, 2, 0, 1, 0),
            (0xbf, 1, 10, 0, 0),
            (0x7b, 1, 0, -24, 0),
            // A loop back to the start of all of it.
            (0x05, 0, 0, -5, 0),
        ];
        assert_eq!(depth(&code(&meet)), 24);
        // What is jumped over is not counted; a 32-bit jump has its distance in the number.
        assert_eq!(depth(&code(&[(0x05, 0, 0, 1, 0), (0x7b, 10, 1, -96, 0), EXIT])), 0);
        assert_eq!(depth(&code(&[(0x06, 0, 0, 0, 1), (0x7b, 10, 1, -96, 0), EXIT])), 0);
        // The second half of a 64-bit load is no instruction, whatever it looks like.
        assert_eq!(depth(&code(&[(0x18, 1, 0, 0, 0), (0x7b, 10, 1, -96, 0), EXIT])), 0);
    }

    #[test]
    fn an_address_that_goes_down_in_a_loop_ends_at_a_bound() {
        // r1 = r10; again: r1 += -8; goto again
        let endless = [(0xbf, 1, 10, 0, 0), (0x07, 1, 0, 0, -8), (0x05, 0, 0, -2, 0)];
        assert_eq!(depth(&code(&endless)), FLOOR.unsigned_abs());
    }
}
