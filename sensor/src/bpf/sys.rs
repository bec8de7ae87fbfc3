//! Memory shared with the kernel programs, and the only `unsafe` of the agent.
//!
//! The maps INDEX, RECORDS, SOURCES, SERVICES and CONTROL are mmapped. Programs on any CPU write them at any time, so every access here is
//! an atomic load or store; a record is copied under its sequence lock and copied again if a writer was inside.

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

use anyhow::Context as _;
use rustix::mm::{MapFlags, ProtFlags};
use sensor_common::context::Set;
use sensor_common::control::Control;
use sensor_common::counter::InterfaceCounters;
use sensor_common::flow::{FlowKey, FlowRecord};
use sensor_common::lock::{self, STALLED, STEP, TAKEN};
use sensor_common::table::{Bucket, WAYS};
use sensor_common::verdict::Action;

/// How often a record or a set is copied before the agent leaves it for the next poll.
const COPY_TRIES: usize = 16;

/// A lock that was not given back for this long belongs to nobody. Programs are not preempted for long: they run with
/// migration disabled, in softirq context or with bottom halves off.
const LOCK_AGE: Duration = Duration::from_millis(50);

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
                for (position, word) in words.iter_mut().enumerate() {
                    *word = self.word(base + position).load(Ordering::Relaxed);
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

const BUCKET_WORDS: usize = size_of::<Bucket>() / 8;
const RECORD_WORDS: usize = size_of::<FlowRecord>() / 8;
const VERDICT_WORD: usize = std::mem::offset_of!(FlowRecord, verdict) / 8;

/// Number of a slot: bucket · WAYS + way.
pub type Slot = usize;

/// The word at which a record's key begins.
const KEY_AT: usize = std::mem::offset_of!(FlowRecord, key) / 8;
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
        let mut words = [0u64; BUCKET_WORDS];
        for (position, word) in words.iter_mut().enumerate() {
            *word = self.index.word(number * BUCKET_WORDS + position).load(Ordering::Relaxed);
        }
        bytemuck::cast(words)
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

    /// Stores a verdict word. It has effect only if it carries the record's present generation.
    pub fn store_verdict(&self, slot: Slot, word: u64) {
        self.records.word(slot * RECORD_WORDS + VERDICT_WORD).store(word, Ordering::Release);
    }

    /// What is in a slot, `Some(None)` = nothing; `None` if writers were inside at every try.
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
        for (position, word) in words.iter_mut().enumerate() {
            *word = self.records.word(base + position).load(Ordering::Relaxed);
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

    /// Takes a free lock and keeps it, as an agent does that is killed while it releases a slot; whether it did. For tests.
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

/// The control page in shared memory.
#[derive(Debug)]
pub struct ControlPage {
    page: Mapping,
}

impl ControlPage {
    /// Maps the page.
    ///
    /// # Errors
    /// If mmap fails.
    pub fn new(map: impl AsFd) -> anyhow::Result<ControlPage> {
        Ok(ControlPage { page: Mapping::new(map, size_of::<Control>()).context("control page")? })
    }

    /// Writes every field but the lease and those that [`super::verdicts::Verdicts`] keeps.
    pub fn set(&self, control: &Control) {
        let words: [u64; size_of::<Control>() / 8] = bytemuck::cast(*control);
        for (position, word) in words.iter().enumerate().take(std::mem::offset_of!(Control, ceilings) / 8).skip(1) {
            self.page.word(position).store(*word, Ordering::Release);
        }
    }

    /// The 32-bit field at this offset.
    fn field(&self, offset: usize) -> &AtomicU32 {
        self.page.half(offset / 8, offset % 8 / 4)
    }

    /// The strongest action that is done for verdicts of each origin, in one store.
    pub fn set_ceilings(&self, ceilings: [Action; 4]) {
        let word = u32::from_ne_bytes(ceilings.map(|action| action as u8));
        self.field(std::mem::offset_of!(Control, ceilings)).store(word, Ordering::Release);
    }

    /// See [`Control::allow_epoch`].
    pub fn allow_epoch(&self) -> u32 {
        self.field(std::mem::offset_of!(Control, allow_epoch)).load(Ordering::Acquire)
    }

    /// See [`Control::allow_epoch`].
    pub(super) fn set_allow_epoch(&self, epoch: u32) {
        self.field(std::mem::offset_of!(Control, allow_epoch)).store(epoch, Ordering::Release);
    }

    /// Numbers of entries: flows, sources, services.
    pub(super) fn set_verdict_counts(&self, [flows, sources, services]: [u32; 3]) {
        self.field(std::mem::offset_of!(Control, flow_verdicts)).store(flows, Ordering::Release);
        self.field(std::mem::offset_of!(Control, source_verdicts)).store(sources, Ordering::Release);
        self.field(std::mem::offset_of!(Control, service_limits)).store(services, Ordering::Release);
    }

    /// See [`Control::note_known`].
    pub(super) fn set_note_known(&self, note: bool) {
        self.field(std::mem::offset_of!(Control, note_known)).store(note as u32, Ordering::Release);
    }

    /// See [`Control::exempt_slots`].
    pub(super) fn set_exempt_slots(&self, slots: u64) {
        self.page.word(std::mem::offset_of!(Control, exempt_slots) / 8).store(slots, Ordering::Release);
    }

    /// The bit of one slot, below 64. Programs only read the word, and there is one agent.
    pub(super) fn set_exempt_slot(&self, slot: u32, exempt: bool) {
        let others = self.exempt_slots() & !(1 << (slot & 63));
        self.set_exempt_slots(others | u64::from(exempt) << (slot & 63));
    }

    /// See [`Control::exempt_slots`].
    pub fn exempt_slots(&self) -> u64 {
        self.page.word(std::mem::offset_of!(Control, exempt_slots) / 8).load(Ordering::Acquire)
    }

    /// The 64-bit field at this offset.
    pub(super) fn word(&self, offset: usize) -> &AtomicU64 {
        self.page.word(offset / 8)
    }

    /// Verdicts hold until `until_ns` (monotonic clock).
    pub fn set_lease(&self, until_ns: u64) {
        self.page.word(std::mem::offset_of!(Control, lease_until_ns) / 8).store(until_ns, Ordering::Release);
    }

    /// The packet clock, for programs loaded with the replay clock.
    pub fn set_replay_clock(&self, now_ns: u64) {
        self.page.word(std::mem::offset_of!(Control, replay_now_ns) / 8).store(now_ns, Ordering::Release);
    }
}

/// Bits of an item's length in a ring: it is being written; it is to be skipped (linux/bpf.h).
const RING_BUSY: u32 = 1 << 31;
const RING_DISCARD: u32 = 1 << 30;
/// Bytes of an item's header.
const RING_HEADER: u64 = 8;

/// A ring of records, read without taking anything from it.
#[derive(Debug)]
pub struct RingView {
    consumer: Mapping,
    /// A page with the producer's position, then the data, twice, so that items do not wrap.
    producer: Mapping,
    bytes: u64,
    /// Bytes of a page of this kernel, which is what the ring's parts begin at.
    page: usize,
}

impl RingView {
    /// Maps a ring of `bytes` bytes, a power of two.
    ///
    /// # Errors
    /// If mmap fails.
    pub fn new(map: impl AsFd, bytes: u32) -> anyhow::Result<RingView> {
        let page = rustix::param::page_size();
        let consumer = Mapping::at(map.as_fd(), 0, page, ProtFlags::READ).context("ring, position of its reader")?;
        let size = page + 2 * bytes as usize;
        let producer = Mapping::at(map.as_fd(), page as u64, size, ProtFlags::READ).context("ring, its data")?;
        Ok(RingView { consumer, producer, bytes: bytes.into(), page })
    }

    /// Records that are waiting in the ring; `None` if they were taken from it meanwhile, or one is being written.
    pub fn waiting(&self) -> Option<Vec<FlowRecord>> {
        let begin = self.consumer.word(0).load(Ordering::Acquire);
        let end = self.producer.word(0).load(Ordering::Acquire);
        let (mut at, mut records) = (begin, Vec::new());
        while at < end {
            let word = (self.page as u64 + (at & (self.bytes - 1))) as usize / 8;
            let header = self.producer.half(word, 0).load(Ordering::Acquire);
            if header & RING_BUSY != 0 {
                return None;
            }
            let len = header & !(RING_BUSY | RING_DISCARD);
            if header & RING_DISCARD == 0 && len as usize == size_of::<FlowRecord>() {
                let mut words = [0u64; RECORD_WORDS];
                for (position, value) in words.iter_mut().enumerate() {
                    *value = self.producer.word(word + 1 + position).load(Ordering::Relaxed);
                }
                records.push(bytemuck::cast(words));
            }
            at += (RING_HEADER + u64::from(len)).next_multiple_of(8);
        }
        fence(Ordering::Acquire);
        (self.consumer.word(0).load(Ordering::Relaxed) == begin).then_some(records)
    }
}
