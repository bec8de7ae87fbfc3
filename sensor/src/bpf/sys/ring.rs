//! The ring of evicted records, seen from beside its reader. Used by `bpf::balance` only.

use std::os::fd::AsFd;
use std::sync::atomic::{Ordering, fence};

use anyhow::Context as _;
use rustix::mm::ProtFlags;
use sensor_common::flow::FlowRecord;

use super::{Mapping, RECORD_WORDS};

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
