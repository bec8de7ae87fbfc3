//! Sequence locks in memory that programs, agent and tests share: a word that moves on by [`STEP`] with each writer. Readers copy
//! between two looks at it, and copy again if it was taken or moved.

/// Bit of the word: a writer is inside.
pub const TAKEN: u32 = 1;
/// One packet that waited in vain for the writer inside: counted in the word, beside [`TAKEN`], up to [`STALLED`], and gone when the
/// writer is.
pub const IN_VAIN: u32 = 2;
/// The bits of that count. All of them set: nobody waits for this writer any more, who must have lost its CPU.
pub const STALLED: u32 = 3 * IN_VAIN;
/// What a free word moves on by with each writer.
pub const STEP: u32 = 8;
/// How long a packet waits for a lock at most, ns.
pub const PATIENCE_NS: u64 = 20_000;

/// The word after the writer inside of it is gone.
pub const fn freed(taken: u32) -> u32 {
    (taken & !(TAKEN | STALLED)).wrapping_add(STEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_word_is_free_and_another_one() {
        for (free, next) in [(0, 8), (8, 16), (u32::MAX - 7, 0)] {
            for taken in [free | TAKEN, free | TAKEN | IN_VAIN, free | TAKEN | STALLED] {
                assert_eq!(freed(taken), next);
            }
        }
    }
}
