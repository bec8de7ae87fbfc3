//! Sequence locks in memory that programs, agent and tests share: a word that moves on by [`STEP`] with each writer. Readers copy
//! between two looks at it, and copy again if it was taken or moved.

/// Bit of the word: a writer is inside.
pub const TAKEN: u32 = 1;
/// Bit of the word, beside [`TAKEN`]: somebody has waited in vain for as long as a packet may. It goes when the writer does, and
/// tells others not to wait for one who has lost its CPU.
pub const STALLED: u32 = 2;
/// What a free word moves on by with each writer.
pub const STEP: u32 = 4;

/// The word after the writer inside of it is gone.
pub const fn freed(taken: u32) -> u32 {
    (taken & !(TAKEN | STALLED)).wrapping_add(STEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_word_is_free_and_another_one() {
        for (free, next) in [(0, 4), (4, 8), (u32::MAX - 3, 0)] {
            for taken in [free | TAKEN, free | TAKEN | STALLED] {
                assert_eq!(freed(taken), next);
            }
        }
    }
}
