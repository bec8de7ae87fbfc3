//! The control page: what the agent tells the programs. Its books of what left the table are `bpf::books`' to write.
//!
//! Invariant: each field is stored in one piece; programs never see half of a number.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use anyhow::Context as _;
use sensor_common::control::{Control, EXEMPT_WORDS};
use sensor_common::counter::MAX_INTERFACES;
use sensor_common::verdict::Action;

use super::Mapping;

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

    /// Writes every field but the lease and those that [`crate::bpf::verdicts::Verdicts`] keeps.
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
    pub(in crate::bpf) fn set_allow_epoch(&self, epoch: u32) {
        self.field(std::mem::offset_of!(Control, allow_epoch)).store(epoch, Ordering::Release);
    }

    /// Entries on flows, which maps of those on sources hold any ([`Control::source_maps`]), and entries on services.
    pub(in crate::bpf) fn set_verdict_counts(&self, flows: u32, source_maps: u32, services: u32) {
        self.field(std::mem::offset_of!(Control, flow_verdicts)).store(flows, Ordering::Release);
        self.field(std::mem::offset_of!(Control, source_maps)).store(source_maps, Ordering::Release);
        self.field(std::mem::offset_of!(Control, service_limits)).store(services, Ordering::Release);
    }

    /// See [`Control::note_known`].
    pub(in crate::bpf) fn set_note_known(&self, note: bool) {
        self.field(std::mem::offset_of!(Control, note_known)).store(note as u32, Ordering::Release);
    }

    /// The bit of one slot of the counters' table ([`Control::exempt`]). There is one agent, and programs only read.
    pub(in crate::bpf) fn set_exempt(&self, slot: u32, exempt: bool) {
        let word = self.exempt_word(slot as usize / 64 % EXEMPT_WORDS);
        let others = word.load(Ordering::Acquire) & !(1 << (slot & 63));
        // First, so that a packet that is to be dropped looks for the bit.
        if exempt {
            self.word(std::mem::offset_of!(Control, any_exempt)).store(1, Ordering::Release);
        }
        word.store(others | u64::from(exempt) << (slot & 63), Ordering::Release);
        if !exempt {
            let any = !self.exempt_slots().is_empty();
            self.word(std::mem::offset_of!(Control, any_exempt)).store(any.into(), Ordering::Release);
        }
    }

    /// The slots whose bits are set in [`Control::exempt`].
    pub fn exempt_slots(&self) -> Vec<u32> {
        let words: [u64; EXEMPT_WORDS] = std::array::from_fn(|number| self.exempt_word(number).load(Ordering::Acquire));
        (0..MAX_INTERFACES).filter(|slot| words[*slot as usize / 64] >> (slot & 63) & 1 != 0).collect()
    }

    /// The bit of one slot of the counters' table ([`Control::link_local`]).
    pub(in crate::bpf) fn set_link_local(&self, slot: u32, link_local: bool) {
        let place = std::mem::offset_of!(Control, link_local) / 8 + slot as usize / 64 % EXEMPT_WORDS;
        let word = self.page.word(place);
        let others = word.load(Ordering::Acquire) & !(1 << (slot & 63));
        word.store(others | u64::from(link_local) << (slot & 63), Ordering::Release);
    }

    fn exempt_word(&self, number: usize) -> &AtomicU64 {
        self.page.word(std::mem::offset_of!(Control, exempt) / 8 + number)
    }

    /// The 64-bit field at this offset.
    pub(in crate::bpf) fn word(&self, offset: usize) -> &AtomicU64 {
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
