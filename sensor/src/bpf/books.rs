//! The agent's books ([`Books`]): frames in records that it took out of the table and out of the ring.
//!
//! Invariant: a record counts once, even if the agent is killed while it takes it. Its number and the sum that will be come
//! first; the sum is stored, not added, so that whoever finds the note can do it again. Called by `load` and `sys`.

use std::mem::offset_of;
use std::sync::atomic::{Ordering, fence};

use sensor_common::control::{Books, Control};
use sensor_common::flow::FlowRecord;

use super::sys::{ControlPage, Slot};

const BOOKS: usize = offset_of!(Control, books);
const RELEASED: usize = BOOKS + offset_of!(Books, released);
const EVICTED: usize = BOOKS + offset_of!(Books, evicted);
const MOVING: usize = BOOKS + offset_of!(Books, moving);
const TARGET: usize = BOOKS + offset_of!(Books, target);

/// What the last agent was about to take when it ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Interrupted {
    /// The slot that it was releasing.
    pub(super) slot: Option<Slot>,
    /// The record of the ring, which counts already ([`fingerprint`]).
    pub(super) ring: Option<u64>,
}

impl ControlPage {
    /// The books as they stand. The sums are of one moment if `moving` is 0, before and after.
    pub fn books(&self) -> Books {
        let load = |offset: usize| self.word(offset).load(Ordering::Acquire);
        let moving = load(MOVING);
        Books { moving, released: load(RELEASED), evicted: load(EVICTED), target: load(TARGET), reserved: [0; 4] }
    }

    /// The record in `slot`, which is locked, is about to be released.
    pub(super) fn begin_release(&self, slot: Slot, frames: u64) {
        self.begin(slot as u64 + 1, self.word(RELEASED).load(Ordering::Relaxed).wrapping_add(frames));
    }

    /// A record is about to be taken from the ring.
    pub(super) fn begin_eviction(&self, record: &FlowRecord) {
        let target = self.word(EVICTED).load(Ordering::Relaxed).wrapping_add(record.frames());
        self.begin(fingerprint(record), target);
    }

    fn begin(&self, moving: u64, target: u64) {
        self.word(TARGET).store(target, Ordering::Relaxed);
        self.word(MOVING).store(moving, Ordering::Release);
        // Nothing of what follows comes before.
        fence(Ordering::Release);
    }

    /// The record that moves is counted.
    pub(super) fn add_up(&self) {
        let (moving, target) = (self.word(MOVING).load(Ordering::Relaxed), self.word(TARGET).load(Ordering::Relaxed));
        let sum = if moving & Books::FROM_RING == 0 { RELEASED } else { EVICTED };
        self.word(sum).store(target, Ordering::Release);
    }

    /// The record has left where it was.
    pub(super) fn moved(&self) {
        self.word(MOVING).store(0, Ordering::Release);
    }

    /// Finishes what an agent that was killed had begun to count. [`ControlPage::moved`] is to follow.
    pub(super) fn finish(&self) -> Interrupted {
        match self.word(MOVING).load(Ordering::Acquire) {
            0 => Interrupted::default(),
            moving => {
                self.add_up();
                let ring = moving & Books::FROM_RING != 0;
                Interrupted { slot: (!ring).then(|| moving as Slot - 1), ring: ring.then_some(moving) }
            }
        }
    }
}

/// What tells a record of the ring from the others there: never 0, and never a slot's number.
pub(super) fn fingerprint(record: &FlowRecord) -> u64 {
    let words = [record.first_ns, record.generation.into(), record.last_ns];
    let key: &[u8] = bytemuck::bytes_of(&record.key);
    let bytes = words.iter().flat_map(|word| word.to_ne_bytes()).chain(key.iter().copied());
    // FNV-1a (RFC 9923).
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    hash | Books::FROM_RING
}
