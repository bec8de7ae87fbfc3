//! The flow table: its index, which a poll scans, and its records. Read by the agent, which stores verdicts here and frees
//! slots; everything else is the programs'.

use std::os::fd::AsFd;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use anyhow::Context as _;
use sensor_common::flow::{FlowKey, FlowRecord, note};
use sensor_common::lock::{self, STALLED, STEP, TAKEN};
use sensor_common::table::{Bucket, WAYS};

use super::{COPY_TRIES, ControlPage, Mapping, RECORD_WORDS};

/// A lock that was not given back for this long belongs to nobody. Programs are not preempted for long: they run with
/// migration disabled, in softirq context or with bottom halves off.
const LOCK_AGE: Duration = Duration::from_millis(50);

const BUCKET_WORDS: usize = size_of::<Bucket>() / 8;
const VERDICT_WORD: usize = std::mem::offset_of!(FlowRecord, verdict) / 8;

/// Number of a slot: bucket · WAYS + way.
pub type Slot = usize;

/// The word with a record's last arrival.
const LAST_AT: usize = std::mem::offset_of!(FlowRecord, last_ns) / 8;
/// The word at which a record's key begins.
const KEY_AT: usize = std::mem::offset_of!(FlowRecord, key) / 8;
/// The word with its first arrival.
const FIRST_AT: usize = std::mem::offset_of!(FlowRecord, first_ns) / 8;
/// The byte at which its notes are.
const STEADY_AT: usize = std::mem::offset_of!(FlowRecord, steady);
/// The byte at which its state is.
const STATE_AT: usize = std::mem::offset_of!(FlowRecord, state);

/// The beginning of a record.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// [`FlowRecord::verdict`]
    pub verdict: u64,
    /// [`FlowRecord::key`]
    pub key: FlowKey,
    /// [`FlowRecord::state`]
    pub state: u32,
}

/// Times of a record.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// [`FlowRecord::generation`]
    pub generation: u32,
    /// [`FlowRecord::first_ns`]
    pub first_ns: u64,
    /// [`FlowRecord::last_ns`]
    pub last_ns: u64,
}

/// The flow table in shared memory.
#[derive(Debug)]
pub struct Table {
    index: Mapping,
    records: Mapping,
    buckets: usize,
}

impl Table {
    /// Maps the two arrays of a table of `buckets` buckets.
    ///
    /// # Errors
    /// If mmap fails.
    pub fn new(index: impl AsFd, records: impl AsFd, buckets: usize) -> anyhow::Result<Table> {
        Ok(Table {
            index: Mapping::new(index, buckets * size_of::<Bucket>()).context("flow table index")?,
            records: Mapping::new(records, buckets * WAYS * size_of::<FlowRecord>()).context("flow table records")?,
            buckets,
        })
    }

    /// Number of buckets.
    pub fn buckets(&self) -> usize {
        self.buckets
    }

    /// Number of flows the table can hold.
    pub fn capacity(&self) -> usize {
        self.buckets * WAYS
    }

    /// A bucket line as it stands; its ways may change at once.
    pub fn bucket(&self, number: usize) -> Bucket {
        let words = self.index.words::<BUCKET_WORDS>(number * BUCKET_WORDS);
        bytemuck::cast(std::array::from_fn::<u64, BUCKET_WORDS, _>(|position| words[position].load(Ordering::Relaxed)))
    }

    /// A whole copy of a record, or `None` if writers were inside at every try (look again at the next poll).
    pub fn copy(&self, slot: Slot) -> Option<FlowRecord> {
        self.records.copy::<RECORD_WORDS>(slot * RECORD_WORDS).map(bytemuck::cast)
    }

    /// What a scan over all records looks at first, or `None` if writers were inside at every try.
    pub fn head(&self, slot: Slot) -> Option<Head> {
        let base = slot * RECORD_WORDS;
        let sequence = self.records.half(base, 0);
        for _ in 0..COPY_TRIES {
            let before = sequence.load(Ordering::Acquire);
            if before & TAKEN == 0 {
                let mut words = [0u64; KEY_AT + size_of::<FlowKey>() / 8];
                for (position, word) in words.iter_mut().enumerate() {
                    *word = self.records.word(base + position).load(Ordering::Relaxed);
                }
                let state = self.records.half(base + STATE_AT / 8, STATE_AT % 8 / 4).load(Ordering::Relaxed);
                fence(Ordering::Acquire);
                if sequence.load(Ordering::Relaxed) == before {
                    let mut key = [0u64; size_of::<FlowKey>() / 8];
                    key.copy_from_slice(&words[KEY_AT..]);
                    return Some(Head { verdict: words[VERDICT_WORD], key: bytemuck::cast(key), state });
                }
            }
            std::hint::spin_loop();
        }
        None
    }

    /// Generation and last arrival of a record, by which it is released; `None` if writers were inside at every try.
    pub fn stamp(&self, slot: Slot) -> Option<(u32, u64)> {
        self.times(slot).map(|Times { generation, last_ns, .. }| (generation, last_ns))
    }

    /// When a record began and was last added to; `None` if writers were inside at every try.
    pub fn times(&self, slot: Slot) -> Option<Times> {
        let base = slot * RECORD_WORDS;
        let sequence = self.records.half(base, 0);
        for _ in 0..COPY_TRIES {
            let before = sequence.load(Ordering::Acquire);
            if before & TAKEN == 0 {
                let generation = self.records.half(base, 1).load(Ordering::Relaxed);
                let last_ns = self.records.word(base + LAST_AT).load(Ordering::Relaxed);
                let first_ns = self.records.word(base + FIRST_AT).load(Ordering::Relaxed);
                fence(Ordering::Acquire);
                if sequence.load(Ordering::Relaxed) == before {
                    return Some(Times { generation, first_ns, last_ns });
                }
            }
            std::hint::spin_loop();
        }
        None
    }

    /// Shows `to` as the tick of a way's last packet if it is still `from`: no packet came meanwhile. Programs store
    /// ticks without a lock, so this is one compare-and-swap of the word that the tick is in.
    pub fn age(&self, slot: Slot, from: u16, to: u16) -> bool {
        let (bucket, way) = (slot / WAYS, slot % WAYS);
        let at = std::mem::offset_of!(Bucket, seen) + 2 * way;
        let word = self.index.half(bucket * BUCKET_WORDS + at / 8, at % 8 / 4);
        let shift = at % 4 * 8;
        let before = word.load(Ordering::Relaxed);
        if (before >> shift) as u16 != from {
            return false;
        }
        let after = before & !(0xffff << shift) | u32::from(to) << shift;
        word.compare_exchange(before, after, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Tells the programs that the flow of `generation` goes on in another record with its next packet; whether it is
    /// told. Takes the record's lock for two stores.
    pub fn mark_due(&self, slot: Slot, generation: u32) -> bool {
        let base = slot * RECORD_WORDS;
        let sequence = self.records.half(base, 0);
        let before = sequence.load(Ordering::Acquire);
        if before & TAKEN != 0
            || sequence.compare_exchange(before, before | TAKEN, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            return false;
        }
        let same = self.records.half(base, 1).load(Ordering::Relaxed) == generation;
        if same {
            let word = self.records.half(base + STEADY_AT / 8, STEADY_AT % 8 / 4);
            let shift = STEADY_AT % 4 * 8;
            let notes = (word.load(Ordering::Relaxed) >> shift) as u8 & note::ALL | note::DUE;
            let others = word.load(Ordering::Relaxed) & !(0xff << shift);
            word.store(others | u32::from(notes) << shift, Ordering::Relaxed);
        }
        sequence.store(before.wrapping_add(STEP), Ordering::Release);
        same
    }

    /// Stores a verdict word. It has effect only if it carries the record's present generation.
    pub fn store_verdict(&self, slot: Slot, word: u64) {
        self.records.word(slot * RECORD_WORDS + VERDICT_WORD).store(word, Ordering::Release);
    }

    /// What is in a slot, `Some(None)` = nothing; `None` if writers were inside at every try.
    #[cfg(feature = "inspect")]
    pub fn contents(&self, slot: Slot) -> Option<Option<FlowRecord>> {
        let sequence = self.records.half(slot * RECORD_WORDS, 0);
        for _ in 0..COPY_TRIES {
            let before = sequence.load(Ordering::Acquire);
            if before & TAKEN == 0 {
                // Tags change under the record's lock only, so tag and record are of one moment.
                let (bucket, way) = (slot / WAYS, slot % WAYS);
                if self.index.half(bucket * BUCKET_WORDS + way / 2, way % 2).load(Ordering::Acquire) != 0 {
                    if let Some(record) = self.copy(slot).filter(|record| record.sequence == before) {
                        return Some(Some(record));
                    }
                } else if sequence.load(Ordering::Relaxed) == before {
                    return Some(None);
                }
            }
            std::hint::spin_loop();
        }
        None
    }

    /// Frees a slot if it still holds the connection of `generation` and nothing arrived since `last_ns`; the final
    /// record if so. For whoever keeps no books.
    pub fn release(&self, slot: Slot, generation: u32, last_ns: u64) -> Option<FlowRecord> {
        self.release_into(slot, generation, last_ns, None)
    }

    /// As [`Table::release`], and what is taken is written into the books.
    ///
    /// Takes the record's lock for the time of one copy. An agent that dies inside leaves the lock taken: packets of
    /// that flow then pass uncounted (cause `record_busy`) until another agent takes over, or the table goes away.
    pub fn release_into(
        &self,
        slot: Slot,
        generation: u32,
        last_ns: u64,
        books: Option<&ControlPage>,
    ) -> Option<FlowRecord> {
        let base = slot * RECORD_WORDS;
        let sequence = self.records.half(base, 0);
        let before = sequence.load(Ordering::Acquire);
        if before & TAKEN != 0
            || sequence.compare_exchange(before, before | TAKEN, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            return None;
        }
        let mut words = [0u64; RECORD_WORDS];
        for (copy, word) in words.iter_mut().zip(self.records.words::<RECORD_WORDS>(base)) {
            *copy = word.load(Ordering::Relaxed);
        }
        let record: FlowRecord = bytemuck::cast(words);
        let unchanged = record.generation == generation && record.last_ns == last_ns;
        if unchanged {
            if let Some(books) = books {
                books.begin_release(slot, record.frames());
            }
            // A program that found the slot before now sees another generation, or no tag, under the lock and starts anew.
            self.records.half(base, 1).store(generation.wrapping_add(1), Ordering::Relaxed);
            let (bucket, way) = (slot / WAYS, slot % WAYS);
            self.index.half(bucket * BUCKET_WORDS + way / 2, way % 2).store(0, Ordering::Relaxed);
            // Under the lock, too: at no moment is the record neither in the table nor in the books.
            if let Some(books) = books {
                books.add_up();
            }
        }
        sequence.store(before.wrapping_add(STEP), Ordering::Release);
        if let Some(books) = books.filter(|_| unchanged) {
            books.moved();
        }
        unchanged.then_some(record)
    }

    /// Frees the records that an agent had locked when it was killed, and how many there were. No other agent runs; programs
    /// hold a lock for microseconds, so one that stands still for `LOCK_AGE` is nobody's.
    ///
    /// The slot `moving` was being released, and is in the books: it is given up. Of others nothing had been changed.
    pub fn free_locks_of_the_dead(&self, moving: Option<Slot>) -> usize {
        let taken = |slot: Slot| {
            let sequence = self.records.half(slot * RECORD_WORDS, 0).load(Ordering::Acquire);
            // Packets that wait in vain mark the word: still the same holder.
            (sequence & TAKEN != 0).then_some((slot, sequence & !STALLED))
        };
        let before: Vec<_> = (0..self.capacity()).filter_map(taken).collect();
        if before.is_empty() {
            return 0;
        }
        std::thread::sleep(LOCK_AGE);
        let mut freed = 0;
        for (slot, sequence) in before.into_iter().filter(|one| taken(one.0) == Some(*one)) {
            let base = slot * RECORD_WORDS;
            let (bucket, way) = (slot / WAYS, slot % WAYS);
            if moving == Some(slot) {
                let generation = self.records.half(base, 1);
                generation.store(generation.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
                self.index.half(bucket * BUCKET_WORDS + way / 2, way % 2).store(0, Ordering::Relaxed);
            }
            self.records.half(base, 0).store(lock::freed(sequence), Ordering::Release);
            freed += 1;
        }
        freed
    }

    /// Takes a free lock and keeps it, as an agent does that is killed while it releases a slot; whether it did.
    #[cfg(feature = "inspect")]
    pub fn seize(&self, slot: Slot) -> bool {
        let sequence = self.records.half(slot * RECORD_WORDS, 0);
        let free = sequence.load(Ordering::Relaxed);
        free & TAKEN == 0 && sequence.compare_exchange(free, free | TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Puts a record into a free slot, as that of the flow whose hash gives `tag`. The slot keeps its lock and its
    /// generation. Only for a table whose programs do not run meanwhile: they could give the slot away themselves.
    pub fn put(&self, slot: Slot, record: &FlowRecord, tag: u32) {
        let base = slot * RECORD_WORDS;
        let words: [u64; RECORD_WORDS] = bytemuck::cast(*record);
        // The first word is lock and generation.
        for (position, word) in words.iter().enumerate().skip(1) {
            self.records.word(base + position).store(*word, Ordering::Relaxed);
        }
        let (bucket, way) = (slot / WAYS, slot % WAYS);
        self.index.half(bucket * BUCKET_WORDS + way / 2, way % 2).store(tag, Ordering::Release);
    }
}
