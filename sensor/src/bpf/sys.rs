//! Memory shared with the kernel programs, and the only `unsafe` of the agent.
//!
//! The maps INDEX, RECORDS, SOURCES, SERVICES and CONTROL are mmapped. Programs on any CPU write them at any time, so every access here is
//! an atomic load or store; a record is copied under its sequence lock and copied again if a writer was inside.
//!
//! Mapping, and what makes plain data of a type, are in this file; the parts stand on them without `unsafe` of their own: [`table`],
//! [`sets`] of the host context, the page of [`control`], the `ring` of evicted records (feature `inspect`).

#![expect(unsafe_code, reason = "memory that is shared with the kernel")]

mod control;
mod query;
#[cfg(feature = "inspect")]
mod ring;
mod sets;
mod table;

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use anyhow::Context as _;
use rustix::mm::{MapFlags, ProtFlags};
use sensor_common::counter::InterfaceCounters;
use sensor_common::flow::FlowRecord;
use sensor_common::lock::TAKEN;

pub use self::control::ControlPage;
pub(super) use self::query::tcx_programs;
#[cfg(feature = "inspect")]
pub use self::ring::RingView;
pub use self::sets::Sets;
pub use self::table::{Head, Slot, Table, Times};

/// How often a record or a set is copied before the agent leaves it for the next poll.
const COPY_TRIES: usize = 16;

/// A record's 64-bit words.
const RECORD_WORDS: usize = size_of::<FlowRecord>() / 8;

/// Counters of an interface, as aya wants its plain-data types.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Counters(pub InterfaceCounters);

// SAFETY: InterfaceCounters is bytemuck::Pod: any bytes are a value, and it has no padding.
unsafe impl aya::Pod for Counters {}

/// Plain data, as aya wants keys and values of maps.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Plain<T>(pub T);

// SAFETY: T is bytemuck::Pod: any bytes are a value, and it has no padding.
unsafe impl<T: bytemuck::Pod> aya::Pod for Plain<T> {}

/// Waits until every program that runs now has ended: for a grace period of RCU, some 20 ms.
pub(super) fn wait_for_programs() {
    /// linux/membarrier.h; the kernel refuses it where CPUs run without a timer (nohz_full).
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: a system call that takes numbers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// A mmapped map.
#[derive(Debug)]
struct Mapping {
    start: NonNull<AtomicU64>,
    /// In 64-bit words.
    len: NonZeroUsize,
}

// SAFETY: the memory is shared with the kernel anyway, and all access is atomic.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(map: impl AsFd, bytes: usize) -> anyhow::Result<Mapping> {
        Mapping::at(map, 0, bytes, ProtFlags::READ | ProtFlags::WRITE)
    }

    /// `bytes` bytes from `offset` on, which begins a page. Only loads, if `protection` allows no more.
    fn at(map: impl AsFd, offset: u64, bytes: usize, protection: ProtFlags) -> anyhow::Result<Mapping> {
        let len = NonZeroUsize::new(bytes / 8).context("an empty map cannot be mapped")?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, map, offset) }
            .context("mmap of a BPF map failed")?;
        let start = NonNull::new(start.cast()).context("mmap of a BPF map gave a null pointer")?;
        Ok(Mapping { start, len })
    }

    fn word(&self, position: usize) -> &AtomicU64 {
        assert!(position < self.len.get(), "word {position} is outside of the map");
        // SAFETY: in bounds of the mapping.
        let word = unsafe { self.start.add(position) };
        // SAFETY: the mapping lives as long as `self`, and starts at a page, so its words are aligned.
        unsafe { word.as_ref() }
    }

    /// `N` words from `base` on: one test for them all.
    fn words<const N: usize>(&self, base: usize) -> &[AtomicU64; N] {
        assert!(base.saturating_add(N) <= self.len.get(), "{N} words from {base} on are outside of the map");
        // SAFETY: in bounds of the mapping.
        let first = unsafe { self.start.add(base) };
        // SAFETY: as in `word`, for each of the words.
        unsafe { first.cast::<[AtomicU64; N]>().as_ref() }
    }

    /// The 32-bit half (0 = first in memory) of a word.
    fn half(&self, position: usize, half: usize) -> &AtomicU32 {
        let word: *const AtomicU64 = self.word(position);
        // SAFETY: `half & 1` stays inside the word.
        let half = unsafe { word.cast::<AtomicU32>().add(half & 1) };
        // SAFETY: in bounds and aligned, as the word is, and shared memory is only ever accessed atomically.
        unsafe { &*half }
    }

    /// A whole copy of the `N` words from `base`, whose first half word is their sequence lock; `None` if writers were inside
    /// at every try.
    fn copy<const N: usize>(&self, base: usize) -> Option<[u64; N]> {
        let sequence = self.half(base, 0);
        for _ in 0..COPY_TRIES {
            let before = sequence.load(Ordering::Acquire);
            if before & TAKEN == 0 {
                let mut words = [0u64; N];
                for (copy, word) in words.iter_mut().zip(self.words::<N>(base)) {
                    *copy = word.load(Ordering::Relaxed);
                }
                fence(Ordering::Acquire);
                if sequence.load(Ordering::Relaxed) == before {
                    return Some(words);
                }
            }
            std::hint::spin_loop();
        }
        None
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new`, and no reference into it outlives `self`.
        if let Err(error) = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len.get() * 8) } {
            tracing::error!(%error, "munmap of a BPF map failed");
        }
    }
}
