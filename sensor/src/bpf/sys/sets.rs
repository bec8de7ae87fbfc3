//! The tables of the host context, which the agent only reads ([`crate::bpf::context`]).

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use sensor_common::context::Set;

use super::Mapping;

const SET_WORDS: usize = size_of::<Set>() / 8;

/// A table of the host context in shared memory.
#[derive(Debug)]
pub struct Sets {
    words: Mapping,
    sets: usize,
}

impl Sets {
    /// Maps an array of `sets` sets, a power of two.
    ///
    /// # Errors
    /// If mmap fails.
    pub fn new(map: impl AsFd, sets: usize) -> anyhow::Result<Sets> {
        Ok(Sets { words: Mapping::new(map, sets * size_of::<Set>())?, sets })
    }

    /// Number of sets.
    pub fn sets(&self) -> usize {
        self.sets
    }

    /// A whole copy of a set, or `None` if writers were inside at every try.
    pub fn copy(&self, number: usize) -> Option<Set> {
        self.words.copy::<SET_WORDS>(number * SET_WORDS).map(bytemuck::cast)
    }

    /// Forgets everything. Only for tables whose programs do not run meanwhile.
    pub fn clear(&self) {
        for position in 0..self.sets * SET_WORDS {
            let word = self.words.word(position);
            // A page that is only read stays clean.
            if word.load(Ordering::Relaxed) != 0 {
                word.store(0, Ordering::Relaxed);
            }
        }
    }
}
