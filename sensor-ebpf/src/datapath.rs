//! What all hooks do with a frame: parse, find the flow of a fragment, account, and say what becomes of it.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use sensor_common::control::{CLOCK_REPLAY, Control};
use sensor_common::counter::{ACTION_SLOTS, CAUSE_SLOTS, Cause, Hook, InterfaceCounters};
use sensor_common::cut::Cut;
use sensor_common::fragment;
use sensor_common::packet::{Packet, mark};
use sensor_common::verdict::Action;

use crate::bench::cut;
use crate::maps::{CLOCK, CONTROL};
use crate::parse::Source;
use crate::table::{self, Visit};
use crate::{atomic, fragments, quotes};

/// Accounts one frame of `len` bytes and gives the action that its flow's verdict asks for.
#[inline(always)]
pub(crate) fn observe<S: Source>(
    source: S,
    len: u32,
    hook: Hook,
    ifindex: u32,
    forwarded: bool,
    counters: &mut InterfaceCounters,
) -> Action {
    let outcome = if forwarded { Err(Cause::Forwarded as u64) } else { account(source, len, hook, ifindex, counters) };
    let action = match outcome {
        Ok(action) => action,
        Err(cause) => {
            counters.unrecorded[cause as usize & (CAUSE_SLOTS - 1)] += 1;
            Action::Pass
        }
    };
    // The compiler knows that an action is in range; the verifier has to see it.
    let place = atomic::opaque(action as u64) as usize & (ACTION_SLOTS - 1);
    let seen = &mut counters.seen[hook as usize & 1][place];
    seen.packets += 1;
    seen.bytes += len as u64;
    action
}

#[inline(always)]
fn account<S: Source>(
    source: S,
    len: u32,
    hook: Hook,
    ifindex: u32,
    counters: &mut InterfaceCounters,
) -> Result<Action, u64> {
    let control = control().ok_or(Cause::Internal as u64)?;
    let mut visit = Visit { packet: Packet::start(len), now_ns: 0, ifindex, hook: hook as u16, frees: 0, verdict: 0 };
    source.parse(&mut visit.packet)?;
    visit.packet.frame_len += source.taken_off();
    if cut(Cut::Parsed) {
        return Ok(Action::Pass);
    }
    if fragment::concerns(&visit.packet) && !fragments::pass(&mut visit.packet, now_ns(control)) {
        return Err(Cause::Fragment as u64);
    }
    let outcome = table::account(&mut visit, control, counters);
    if visit.packet.marks & mark::ICMP_ERROR != 0 && outcome.is_ok() {
        quotes::quoted(source, &mut visit);
    }
    outcome
}

/// The control page.
#[inline(always)]
pub(crate) fn control() -> Option<&'static Control> {
    // SAFETY: a map value of the right type; the agent changes each field with one store.
    CONTROL.get_ptr(0).map(|control| unsafe { &*control })
}

/// The time of the packet, ns. It costs as much as the parser does, so whoever needs it asks, and not before.
#[inline(always)]
pub(crate) fn now_ns(control: &Control) -> u64 {
    if CLOCK.load() == CLOCK_REPLAY {
        control.replay_now_ns
    } else {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_ns() }
    }
}

/// The time when the kernel's timer ticked last, ns: up to 10 ms behind [`now_ns`] (longer where a hypervisor takes away the CPU
/// that keeps the time), for a small part of its cost. Enough for who asks whether a verdict or the lease is over.
#[inline(always)]
pub(crate) fn coarse_ns(control: &Control) -> u64 {
    if CLOCK.load() == CLOCK_REPLAY {
        control.replay_now_ns
    } else {
        // SAFETY: a helper without arguments (kernel 5.11).
        unsafe { bpf_ktime_get_coarse_ns() }
    }
}
