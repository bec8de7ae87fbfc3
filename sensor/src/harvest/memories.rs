//! The memories of all slots, and which of them need no look: those of flows that the index shows as they were when there was nothing
//! to do for them, until their time comes.
//!
//! Invariant: a way that [`Memories::to_look_at`] leaves out is one at which a look would change nothing and ask for nothing. So
//! whoever gets to change a memory ([`IndexMut`]) ends its rest. A bucket whose ways all rest costs a scan two cache lines.

use std::ops::{Index, IndexMut};

use sensor_common::table::{Bucket, WAYS};

use super::Memory;

/// A bucket as the index showed it at its ways' last looks.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Shown {
    tags: [u32; WAYS],
    seen: [u16; WAYS],
    stages: [u8; WAYS],
    /// Tick at which the first way's rest ends.
    until: u32,
}

const _: () = assert!(size_of::<Shown>() == 64);

/// Memories by slot.
#[derive(Debug)]
pub struct Memories {
    slots: Vec<Memory>,
    /// By bucket.
    shown: Vec<Shown>,
    /// Tick at which the rest of each way ends.
    until: Vec<[u32; WAYS]>,
}

impl Memories {
    /// Of a table of `buckets` buckets, all free.
    pub fn new(buckets: usize) -> Memories {
        Memories {
            slots: vec![Memory::default(); buckets * WAYS],
            shown: vec![Shown { until: u32::MAX, ..Shown::default() }; buckets],
            until: vec![[u32::MAX; WAYS]; buckets],
        }
    }

    /// The ways of bucket `number`, which the index shows as `now_shown` at tick `now`, that need a look: bit n is way n.
    #[inline]
    pub fn to_look_at(&self, number: usize, now_shown: &Bucket, now: u32) -> u8 {
        let Shown { tags, seen, stages, until, .. } = &self.shown[number];
        if now < *until && (tags, seen, stages) == (&now_shown.tags, &now_shown.seen, &now_shown.stages) {
            return 0;
        }
        (0..WAYS).fold(0, |ways, way| {
            let same = tags[way] == now_shown.tags[way]
                && (tags[way] == 0 || (seen[way] == now_shown.seen[way] && stages[way] == now_shown.stages[way]));
            ways | u8::from(!same || now >= self.until[number][way]) << way
        })
    }

    /// A look at a way, for which the index showed this, found that nothing else is to be done before tick `until`.
    pub fn rest(&mut self, slot: usize, shown: &Bucket, until: u32) {
        let (number, way) = (slot / WAYS, slot % WAYS);
        let bucket = &mut self.shown[number];
        (bucket.tags[way], bucket.seen[way], bucket.stages[way]) =
            (shown.tags[way], shown.seen[way], shown.stages[way]);
        self.until[number][way] = until;
        bucket.until = self.until[number].iter().copied().fold(u32::MAX, u32::min);
    }

    /// All memories, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Memory> {
        self.wake();
        self.slots.iter_mut()
    }

    /// Every way is to be looked at again: what a look goes by has changed.
    pub fn wake(&mut self) {
        self.shown.iter_mut().for_each(|bucket| bucket.until = 0);
        self.until.fill([0; WAYS]);
    }
}

impl Index<usize> for Memories {
    type Output = Memory;

    fn index(&self, slot: usize) -> &Memory {
        &self.slots[slot]
    }
}

impl IndexMut<usize> for Memories {
    fn index_mut(&mut self, slot: usize) -> &mut Memory {
        self.until[slot / WAYS][slot % WAYS] = 0;
        self.shown[slot / WAYS].until = 0;
        &mut self.slots[slot]
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;

    #[test]
    fn a_way_rests_until_it_looks_different_or_its_time_comes_or_its_memory_is_touched() {
        let mut memories = Memories::new(2);
        let mut shown = Bucket::zeroed();
        assert_eq!(memories.to_look_at(1, &shown, u32::MAX - 1), 0, "free ways need no look");
        (shown.tags[3], shown.tags[5]) = (9, 9);
        assert_eq!(memories.to_look_at(1, &shown, 7), 0b10_1000, "flows came");
        memories.rest(WAYS + 3, &shown, 10);
        memories.rest(WAYS + 5, &shown, 20);
        assert_eq!([9, 10, 20].map(|now| memories.to_look_at(1, &shown, now)), [0, 0b1000, 0b10_1000]);
        let mut other = Bucket { lock: 8, high: 8, ..shown };
        assert_eq!(memories.to_look_at(1, &other, 9), 0, "not of the flows");
        (other.seen[5], other.seen[6]) = (1, 1);
        assert_eq!(memories.to_look_at(1, &other, 9), 0b10_0000);
        (other.stages[3], other.tags[5]) = (1, 0);
        assert_eq!(memories.to_look_at(1, &other, 9), 0b10_1000);
        assert_eq!(memories[WAYS + 3].score, None);
        assert_eq!(memories.to_look_at(1, &shown, 9), 0, "reading wakes nobody");
        memories[WAYS + 3].would = None;
        assert_eq!(memories.to_look_at(1, &shown, 9), 0b1000);
        memories.rest(WAYS + 3, &shown, 10);
        assert_eq!(memories.to_look_at(1, &shown, 9), 0);
        memories.wake();
        assert_eq!(memories.to_look_at(1, &shown, 9) & 0b10_1000, 0b10_1000);
        memories.rest(WAYS + 3, &shown, 10);
        assert_eq!(memories.to_look_at(1, &shown, 9) & 0b10_1000, 0b10_0000, "the others are still awake");
    }
}
