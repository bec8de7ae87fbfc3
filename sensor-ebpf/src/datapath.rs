//! What both hooks do with a frame: parse, account, and say what becomes of it.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use sensor_common::control::{CLOCK_REPLAY, Control};
use sensor_common::counter::{ACTION_SLOTS, CAUSE_SLOTS, Cause, Hook, InterfaceCounters};
use sensor_common::packet::{self, Frame};
use sensor_common::verdict::Action;

use crate::maps::{CLOCK, CONTROL};
use crate::table;

/// Accounts one frame and gives the action that its flow's verdict asks for.
#[inline(always)]
pub(crate) fn observe<F: Frame>(
    frame: F,
    hook: Hook,
    ifindex: u32,
    forwarded: bool,
    counters: &mut InterfaceCounters,
) -> Action {
    let outcome = if forwarded { Err(Cause::Forwarded as u64) } else { account(frame, ifindex, counters) };
    let action = match outcome {
        Ok(action) => action,
        Err(cause) => {
            counters.unrecorded[cause as usize & (CAUSE_SLOTS - 1)] += 1;
            Action::Pass
        }
    };
    let seen = &mut counters.seen[hook as usize & 1][action as usize & (ACTION_SLOTS - 1)];
    seen.packets += 1;
    seen.bytes += frame.wire_len() as u64;
    action
}

#[inline(always)]
fn account<F: Frame>(frame: F, ifindex: u32, counters: &mut InterfaceCounters) -> Result<Action, u64> {
    let control = control().ok_or(Cause::Internal as u64)?;
    let mut visit = MaybeUninit::<table::Visit>::uninit();
    match parse(&frame, &mut visit) {
        PARSED => {}
        cause => return Err(cause),
    }
    // SAFETY: `parse` has written the packet, and the other fields are written here.
    let visit = unsafe {
        let visit = visit.as_mut_ptr();
        (&raw mut (*visit).now_ns).write(now_ns(control));
        (&raw mut (*visit).ifindex).write(ifindex);
        (&raw mut (*visit).lease_until_ns).write(control.lease_until_ns);
        &*visit
    };
    table::account(visit, counters)
}

/// What [`parse`] returns when `visit` holds a packet; anything else is a cause.
const PARSED: u64 = u64::MAX;

/// [`packet::parse`] with a stack frame of its own: of the kernel's 512 bytes, the parser's are free again when the
/// table is visited.
#[inline(never)]
fn parse<F: Frame>(frame: &F, visit: &mut MaybeUninit<table::Visit>) -> u64 {
    match packet::parse(*frame) {
        Ok(packet) => {
            // SAFETY: a place of the right type on the caller's stack.
            unsafe { (&raw mut (*visit.as_mut_ptr()).packet).write(packet) };
            PARSED
        }
        Err(cause) => cause as u64,
    }
}

/// The control page.
#[inline(always)]
pub(crate) fn control() -> Option<&'static Control> {
    // SAFETY: a map value of the right type; the agent changes each field with one store.
    CONTROL.get_ptr(0).map(|control| unsafe { &*control })
}

/// The time of the packet, ns.
#[inline(always)]
pub(crate) fn now_ns(control: &Control) -> u64 {
    if CLOCK.load() == CLOCK_REPLAY {
        control.replay_now_ns
    } else {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_ns() }
    }
}
