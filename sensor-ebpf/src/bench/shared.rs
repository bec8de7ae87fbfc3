//! Other ways to let several CPUs count in one record, which `cargo xtask bench cpus` measures beside the real one.
//!
//! Each parses, reads the clock and counts, like the real program; there is neither an index nor a verdict. A packet that finds a
//! lock taken for too long is counted as busy, as in the real program. One that is counted nowhere was lost: the bench knows
//! how many it sent.

use aya_ebpf::bindings::{bpf_spin_lock, xdp_action};
use aya_ebpf::btf_maps;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::{bpf_spin_lock as lock_spin, bpf_spin_unlock as unlock_spin};
use aya_ebpf::macros::{btf_map, map, xdp};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::XdpContext;
use sensor_common::counter::Cause;
use sensor_common::flow::FlowRecord;
use sensor_common::lock::TAKEN;
use sensor_common::packet::Packet;

use crate::frame::XdpFrame;
use crate::parse::{Source as _, Xdp};
use crate::record::{count, start, update};
use crate::table::Visit;
use crate::{atomic, lock};

/// Records, by port: two flows are in two.
const PLACES: u32 = 16;

/// What a small agent sums up: packets, payload bytes, bytes, and the squares of both sizes, frame bytes; each direction in a
/// cache line of its own.
#[repr(C, align(64))]
struct Sums {
    spin: bpf_spin_lock,
    word: u32,
    /// Packets that found the word taken.
    busy: u64,
    reserved: [u64; 6],
    directions: [[u64; 8]; 2],
}

#[btf_map]
static BENCH_SUMS: btf_maps::Array<Sums, { PLACES as usize }> = btf_maps::Array::new();

#[map]
static BENCH_SHARED: Array<FlowRecord> = Array::with_max_entries(PLACES, 0);

/// How CPUs keep out of each other's way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Not at all.
    Nothing,
    /// The lock word, tried 64 times.
    Tries,
    /// The lock word, waited for: what the real programs do.
    Wait,
    /// An atomic instruction for each sum.
    Atomics,
    /// The kernel's spin lock.
    Spin,
}

/// The lock word, tried 64 times in place.
///
/// # Safety
/// As [`lock::take`].
#[inline(always)]
unsafe fn take_in_tries(word: *mut u32) -> Option<u32> {
    for _ in 0..64 {
        // SAFETY: the caller's; volatile, because other CPUs write it.
        let free = unsafe { word.read_volatile() };
        // SAFETY: the caller's.
        if free & TAKEN == 0 && unsafe { atomic::swap_if(word, free, free | TAKEN) } {
            return Some(free);
        }
    }
    None
}

/// Parse and clock.
#[inline(always)]
fn meet(ctx: &XdpContext, visit: &mut Visit) -> Result<(), u64> {
    Xdp { ctx: ctx.ctx }.parse(&mut visit.packet)?;
    // SAFETY: a helper without arguments.
    visit.now_ns = unsafe { bpf_ktime_get_ns() };
    Ok(())
}

/// A visit to be filled in place: a copy would not fit on the stack.
#[inline(always)]
fn visit(ctx: &XdpContext) -> Visit {
    // SAFETY: the context is this program's own.
    let len = unsafe { XdpFrame::len(ctx.ctx, false) };
    Visit { packet: Packet::start(len), now_ns: 0, ifindex: 0, hook: 0, frees: 0, verdict: 0 }
}

#[inline(always)]
fn place(packet: &Packet) -> u32 {
    (packet.key.low_port ^ packet.key.high_port) as u32 & (PLACES - 1)
}

/// The whole record.
#[inline(always)]
fn whole(ctx: &XdpContext, way: Way) -> Result<(), u64> {
    let mut visit = visit(ctx);
    meet(ctx, &mut visit)?;
    let record = BENCH_SHARED.get_ptr_mut(place(&visit.packet)).ok_or(Cause::Internal as u64)?;
    // SAFETY: a map value.
    let word = unsafe { &raw mut (*record).sequence };
    // SAFETY: 4 aligned bytes of a map value.
    let taken = unsafe {
        match way {
            Way::Wait => lock::take(word),
            Way::Tries => take_in_tries(word),
            Way::Nothing | Way::Atomics | Way::Spin => Some(0),
        }
    };
    let Some(free) = taken else {
        // SAFETY: 4 aligned bytes of a map value.
        unsafe { atomic::add_word(&raw mut (*record).lost, 1) };
        return Err(Cause::RecordBusy as u64);
    };
    // SAFETY: a map value. Without a lock other CPUs may write it: that is what is measured.
    let record = unsafe { &mut *record };
    if record.generation == 0 {
        start(record, &visit, 0);
        count(record, &visit);
    } else {
        update(record, &visit);
    }
    if way != Way::Nothing {
        // SAFETY: 4 aligned bytes of a map value, whose lock this CPU holds.
        unsafe { lock::give_back(word, free) };
    }
    Ok(())
}

/// Six sums of a direction.
#[inline(always)]
fn sums(ctx: &XdpContext, way: Way) -> Result<(), u64> {
    let mut visit = visit(ctx);
    meet(ctx, &mut visit)?;
    let packet = &visit.packet;
    let place = BENCH_SUMS.get_ptr_mut(place(packet)).ok_or(Cause::Internal as u64)?;
    let payload = packet.payload_len as u64;
    let bytes = payload + packet.header_len as u64;
    let values = [1, payload, bytes, payload * payload, bytes * bytes, packet.frame_len as u64];
    // SAFETY: a map value, in bounds.
    let half = unsafe { (&raw mut (*place).directions).cast::<u64>().add(8 * (packet.from_low as usize & 1)) };
    // SAFETY: a map value.
    let (word, spin) = unsafe { (&raw mut (*place).word, &raw mut (*place).spin) };
    // SAFETY: 4 aligned bytes of a map value; its spin lock.
    let taken = unsafe {
        match way {
            Way::Wait => lock::take(word),
            Way::Tries => take_in_tries(word),
            Way::Spin => {
                lock_spin(spin);
                Some(0)
            }
            Way::Nothing | Way::Atomics => Some(0),
        }
    };
    let Some(free) = taken else {
        // SAFETY: 8 aligned bytes of a map value.
        unsafe { atomic::add(&raw mut (*place).busy, 1) };
        return Err(Cause::RecordBusy as u64);
    };
    for (number, value) in values.into_iter().enumerate() {
        // SAFETY: in bounds of a map value.
        unsafe {
            let sum = half.add(number);
            if way == Way::Atomics {
                atomic::add(sum, value);
            } else {
                sum.write_volatile(sum.read_volatile() + value);
            }
        }
    }
    // SAFETY: this CPU holds the lock.
    unsafe {
        match way {
            Way::Wait | Way::Tries => lock::give_back(word, free),
            Way::Spin => {
                unlock_spin(spin);
            }
            Way::Nothing | Way::Atomics => {}
        }
    }
    Ok(())
}

fn answer(counted: Result<(), u64>) -> u32 {
    if counted.is_ok() { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS }
}

macro_rules! program {
    ($name:ident, $what:ident, $way:ident) => {
        #[xdp]
        pub(crate) fn $name(ctx: XdpContext) -> u32 {
            answer($what(&ctx, Way::$way))
        }
    };
}

program!(floor_record_bare, whole, Nothing);
program!(floor_record_tries, whole, Tries);
program!(floor_record_wait, whole, Wait);
program!(floor_sums_bare, sums, Nothing);
program!(floor_sums_wait, sums, Wait);
program!(floor_sums_atomics, sums, Atomics);
program!(floor_sums_spin, sums, Spin);
