//! Verdicts in the programs: what becomes of a packet that has no record yet ([`screen`]), and of one whose record holds a
//! verdict ([`obey`]). Logic is in `sensor_common::verdict`.
//!
//! Whatever would be dropped or limited is held against the never-drop list first, whatever the mode: so what a ceiling
//! withholds is exactly what would have been done. A packet of a flow without a verdict sees nothing of all this, and one
//! that is dropped asks no map: its record remembers that nothing protects it, for one epoch of the never-drop list.

use aya_ebpf::helpers::generated::bpf_map_lookup_elem;
use aya_ebpf::maps::LpmTrie;
use sensor_common::control::Control;
use sensor_common::counter::{ACTION_SLOTS, InterfaceCounters, ORIGIN_SLOTS};
use sensor_common::flow::{FlowKey, FlowRecord, state};
use sensor_common::packet::protocol;
use sensor_common::tcp;
use sensor_common::verdict::{
    ALLOWED_FLAG, Action, Entry, PrefixData, PrefixKey, ServiceKey, Settled, Verdict, is_essential, is_proven, known,
    local_end, mapped, port_bit, settle,
};

use crate::datapath::control;
use crate::maps::{ALLOWED, ALLOWED_PORTS, FLOW_VERDICTS, KNOWN, SERVICE_LIMITS, SOURCE_VERDICTS, seed};
use crate::table::Visit;
use crate::{atomic, lock};

/// Bit of what the functions here return, beside the number of the [`Action`] that is done: nothing protects the packet.
pub(crate) const CLEARED: u64 = 1 << 8;
/// The packet is a half-open attempt beyond the limit of its service.
pub(crate) const HALF_OPEN: u64 = 1 << 9;

/// Whether there is anything that a packet without a record could meet.
#[inline(always)]
pub(crate) fn any(control: &Control) -> bool {
    control.flow_verdicts | control.source_verdicts | control.service_limits != 0
}

/// The verdict word of a record.
#[inline(always)]
pub(crate) fn word(record: *const FlowRecord) -> Verdict {
    // SAFETY: a map value; the agent stores the word at once.
    Verdict(unsafe { (&raw const (*record).verdict).read_volatile() })
}

/// Whether the record remembers that nothing protects the packet. Its generation is the caller's to check, afterwards.
#[inline(always)]
pub(crate) fn is_cleared(record: *const FlowRecord, visit: &Visit, epoch: u32) -> bool {
    // SAFETY: a map value, which other CPUs write.
    let cleared = unsafe { (&raw const (*record).cleared).read_volatile() } as u32;
    cleared >> 2 == epoch && cleared & local_end(visit.packet.from_low, visit.is_egress()) as u32 != 0
}

/// What becomes of a packet whose record (of the right generation) holds `verdict`, of `action`: the number of what is done,
/// and [`CLEARED`].
#[inline(always)]
pub(crate) fn obey(
    record: *const FlowRecord,
    visit: &Visit,
    verdict: Verdict,
    counters: &mut InterfaceCounters,
) -> u64 {
    // SAFETY: a map value and references.
    unsafe { sensor_obey(visit, record, verdict.0, counters) }
}

/// See [`obey`].
///
/// # Safety
/// All pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_obey(
    visit: *const Visit,
    record: *const FlowRecord,
    word: u64,
    counters: *mut InterfaceCounters,
) -> u64 {
    if visit.is_null() || record.is_null() || counters.is_null() {
        return 0;
    }
    // SAFETY: just tested, and the caller's.
    let (visit, counters) = unsafe { (&*visit, &mut *counters) };
    let Some(control) = control() else { return 0 };
    let action = Verdict(word).action();
    let (mut limit, mut answer) = (NONE, 0);
    if action as u8 >= Action::Limit as u8 {
        // SAFETY: a reference.
        let mut protected = unsafe { sensor_protected(visit, counters.slot) } != 0;
        if !protected && control.flow_verdicts != 0 {
            // SAFETY: references.
            limit = unsafe { sensor_flow_limit(visit, word, counters) };
            protected = limit == ALLOWED_FLOW;
        }
        if protected {
            counters.protected += 1;
            return 0;
        }
        answer = CLEARED;
        // A source's rate is for what it sends.
        if action == Action::Limit && limit == NONE && control.source_verdicts != 0 && !visit.is_egress() {
            // SAFETY: a map value; either value of a race will do.
            let initiator_high = unsafe { (*record).state } & state::INITIATOR_HIGH != 0;
            if visit.packet.from_low != initiator_high {
                // SAFETY: references.
                limit = unsafe { sensor_source_limit(visit, counters) };
            }
        }
    }
    answer | settled(visit, Verdict(word), limit == OVER, control, counters) as u64
}

/// Answers of the two functions below: there is no rate for the packet …
const NONE: u64 = 0;
/// … it is within it …
const WITHIN: u64 = 1;
/// … it is beyond it …
const OVER: u64 = 2;
/// … or its flow is one that is never dropped.
const ALLOWED_FLOW: u64 = 3;

/// The rate of the packet's flow, if `word` asks for one.
///
/// # Safety
/// Both pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_flow_limit(visit: *const Visit, word: u64, counters: *mut InterfaceCounters) -> u64 {
    if visit.is_null() || counters.is_null() {
        return NONE;
    }
    // SAFETY: just tested, and the caller's.
    let (visit, counters) = unsafe { (&*visit, &mut *counters) };
    let entry = flow_entry(&visit.packet.key);
    if entry.is_null() {
        return NONE;
    }
    // SAFETY: a map value.
    let flow = unsafe { &*entry };
    if flow.until_ns <= visit.now_ns {
        return NONE;
    }
    if flow.action == Action::Pass as u8 {
        return ALLOWED_FLOW;
    }
    if flow.action != Action::Limit as u8 || Verdict(word).action() != Action::Limit {
        return NONE;
    }
    // SAFETY: a map value and references.
    unsafe { charge(entry, visit, counters) }
}

/// The rate of the packet's source.
///
/// # Safety
/// Both pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_source_limit(visit: *const Visit, counters: *mut InterfaceCounters) -> u64 {
    if visit.is_null() || counters.is_null() {
        return NONE;
    }
    // SAFETY: just tested, and the caller's.
    let (visit, counters) = unsafe { (&*visit, &mut *counters) };
    let entry = prefix_entry(&SOURCE_VERDICTS, &peer(visit));
    // SAFETY: a map value.
    if entry.is_null() || unsafe { &*entry }.action_at(visit.now_ns) != Action::Limit {
        return NONE;
    }
    // SAFETY: a map value and references.
    unsafe { charge(entry, visit, counters) }
}

/// Charges a packet to an entry, and counts it there if it is beyond the rate: [`WITHIN`] or [`OVER`].
///
/// # Safety
/// `entry` is a map value.
#[inline(always)]
unsafe fn charge(entry: *mut Entry, visit: &Visit, counters: &mut InterfaceCounters) -> u64 {
    // SAFETY: the caller's, and references.
    if unsafe { sensor_charge(entry, visit, counters) } == 0 {
        return WITHIN;
    }
    // SAFETY: the caller's.
    unsafe { acted(entry, visit) };
    OVER
}

/// Counts a packet that an entry dropped, or would have.
///
/// # Safety
/// `entry` is a map value.
#[inline(always)]
unsafe fn acted(entry: *mut Entry, visit: &Visit) {
    // SAFETY: 8 aligned bytes each of a map value.
    unsafe {
        atomic::add(&raw mut (*entry).packets, 1);
        atomic::add(&raw mut (*entry).bytes, visit.packet.frame_len as u64);
    }
}

/// Counts a packet that mode enforce drops for whoever wants it so.
#[inline(always)]
pub(crate) fn count_drop(verdict: Verdict, counters: &mut InterfaceCounters) {
    counters.drops_of[atomic::opaque(verdict.origin() as u64) as usize & (ORIGIN_SLOTS - 1)] += 1;
}

/// What is done under the ceiling of the verdict's origin; what that withholds is counted.
#[inline(always)]
pub(crate) fn settled(
    visit: &Visit,
    verdict: Verdict,
    over: bool,
    control: &Control,
    counters: &mut InterfaceCounters,
) -> Action {
    let Settled { would, done } = settle(verdict.action(), over, control.ceiling(verdict.origin()));
    if would as u8 == Action::Drop as u8 {
        count_drop(verdict, counters);
    }
    if (done as u8) < would as u8 {
        // The compiler knows that an action is in range; the verifier has to see it.
        let withheld = &mut counters.withheld[atomic::opaque(would as u64) as usize & (ACTION_SLOTS - 1)];
        withheld.packets += 1;
        withheld.bytes += visit.packet.frame_len as u64;
    }
    done
}

/// What becomes of a packet that has no record, and of a record that it begins (`visit.verdict`): the number of what is done,
/// and [`HALF_OPEN`].
#[inline(always)]
pub(crate) fn screen(visit: &mut Visit, control: &Control, counters: &mut InterfaceCounters) -> u64 {
    let mut answer = NO_VERDICT;
    if control.flow_verdicts | control.source_verdicts != 0 {
        // SAFETY: both pointers come from references.
        answer = unsafe { sensor_screen(visit, counters) };
    }
    if answer & NO_VERDICT != 0 && control.service_limits != 0 && is_attempt(visit) {
        // SAFETY: as above.
        answer = unsafe { sensor_half_open(visit, counters) };
    }
    answer & !NO_VERDICT
}

/// Bit of what [`sensor_screen`] returns: no verdict concerns the packet.
const NO_VERDICT: u64 = 1 << 10;

/// See [`screen`].
///
/// # Safety
/// Both pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_screen(visit: *mut Visit, counters: *mut InterfaceCounters) -> u64 {
    if visit.is_null() || counters.is_null() {
        return 0;
    }
    // SAFETY: just tested, and the caller's.
    let (visit, counters) = unsafe { (&mut *visit, &mut *counters) };
    let Some(control) = control() else { return 0 };
    let now_ns = visit.now_ns;
    let mut chosen: *mut Entry = core::ptr::null_mut();
    let mut action = Action::Pass;
    if control.flow_verdicts != 0 {
        let entry = flow_entry(&visit.packet.key);
        if !entry.is_null() {
            // SAFETY: a map value.
            let flow = unsafe { &*entry };
            action = flow.action_at(now_ns);
            if action != Action::Pass {
                chosen = entry;
            } else if flow.action == Action::Pass as u8 && flow.until_ns > now_ns {
                // An allowed session: nothing of its source concerns it.
                return 0;
            }
        }
    }
    if control.source_verdicts != 0 && action != Action::Drop && source_concerns(visit) {
        let entry = prefix_entry(&SOURCE_VERDICTS, &peer(visit));
        if !entry.is_null() {
            // SAFETY: a map value.
            let wanted = unsafe { &*entry }.action_at(now_ns);
            if wanted as u8 > action as u8 {
                action = wanted;
                chosen = entry;
            }
        }
    }
    if chosen.is_null() || action == Action::Pass {
        return NO_VERDICT;
    }
    // SAFETY: a map value.
    let word = unsafe { &*chosen }.word();
    visit.verdict = word.0;
    if control.lease_until_ns <= now_ns {
        counters.lease_expired += 1;
        return 0;
    }
    // SAFETY: references and a map value.
    unsafe { sensor_decide(visit, word.0, chosen, counters) }
}

/// Whether a verdict on the remote end's address concerns a packet without a record: all that comes in; and of what goes
/// out, segments in the middle of a TCP connection, whose record is gone. (Else one retransmission of this host would open
/// the way again for a source that is blocked.) A connection that this host opens is its own business.
#[inline(always)]
fn source_concerns(visit: &Visit) -> bool {
    !visit.is_egress() || visit.packet.key.protocol == protocol::TCP && !tcp::is_first_syn(visit.packet.tcp_flags)
}

/// Whether the packet is a half-open attempt from outside.
#[inline(always)]
fn is_attempt(visit: &Visit) -> bool {
    let packet = &visit.packet;
    !visit.is_egress() && packet.key.protocol == protocol::TCP && tcp::is_first_syn(packet.tcp_flags)
}

/// The limit of a service for a half-open attempt that no verdict concerns: [`HALF_OPEN`] and the number of drop, or 0.
///
/// # Safety
/// Both pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_half_open(visit: *const Visit, counters: *mut InterfaceCounters) -> u64 {
    if visit.is_null() || counters.is_null() {
        return 0;
    }
    // SAFETY: just tested, and the caller's.
    let (visit, counters) = unsafe { (&*visit, &mut *counters) };
    let Some(control) = control() else { return 0 };
    let (packet, now_ns) = (&visit.packet, visit.now_ns);
    let FlowKey { low, high, low_port, high_port, family, .. } = packet.key;
    let (to, port) = if packet.from_low { (high, high_port) } else { (low, low_port) };
    let key = ServiceKey { address: mapped(to, family), port, protocol: packet.key.protocol, reserved: 0 };
    let Some(entry) = SERVICE_LIMITS.get_ptr_mut(key) else { return 0 };
    // SAFETY: a map value.
    let limit = unsafe { &*entry };
    if limit.until_ns <= now_ns {
        return 0;
    }
    if control.lease_until_ns <= now_ns {
        counters.lease_expired += 1;
        return 0;
    }
    let from = mapped(if packet.from_low { low } else { high }, family);
    let (set, tag) = known::place(&from, seed);
    if let Some(set) = KNOWN.get_ptr(set) {
        for way in 0..known::KNOWN_WAYS {
            // SAFETY: 8 aligned bytes of a map value.
            if known::holds(unsafe { (&raw const (*set)[way]).read_volatile() }, tag, now_ns) {
                return 0;
            }
        }
    }
    // SAFETY: a map value and references.
    if unsafe { sensor_charge(entry, visit, counters) } == 0 {
        return 0;
    }
    let over = limit.word().0 & !0xf | Action::Drop as u64;
    // SAFETY: as above.
    let answer = unsafe { sensor_decide(visit, over, entry, counters) };
    // An attempt has no record with a verdict that a tag could be read from: all but a drop passes.
    if answer as u8 == Action::Drop as u8 { HALF_OPEN | Action::Drop as u64 } else { 0 }
}

/// What is done with a packet that has no record and that a verdict concerns, after the never-drop list, the rate, and the
/// ceiling: the number of the action. `entry`: where the verdict comes from.
///
/// # Safety
/// All pointers are valid, or null; `entry` is a map value.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_decide(
    visit: *const Visit,
    word: u64,
    entry: *mut Entry,
    counters: *mut InterfaceCounters,
) -> u64 {
    if visit.is_null() || counters.is_null() {
        return 0;
    }
    // SAFETY: just tested, and the caller's.
    let (visit, counters) = unsafe { (&*visit, &mut *counters) };
    let Some(control) = control() else { return 0 };
    let action = Verdict(word).action();
    let mut over = false;
    if action as u8 >= Action::Limit as u8 {
        // SAFETY: a reference.
        if unsafe { sensor_protected(visit, counters.slot) } != 0 {
            counters.protected += 1;
            return 0;
        }
        if !entry.is_null() {
            if action == Action::Limit {
                // SAFETY: a map value and references.
                over = unsafe { charge(entry, visit, counters) } == OVER;
            } else {
                // SAFETY: a map value.
                unsafe { acted(entry, visit) };
            }
        }
    }
    settled(visit, Verdict(word), over, control, counters) as u64
}

/// Whether the never-drop list holds for a packet, but for single flows on it: 1 or 0. `slot`: that of its interface.
///
/// # Safety
/// The pointer is valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_protected(visit: *const Visit, slot: u32) -> u64 {
    if visit.is_null() {
        return 1;
    }
    // SAFETY: just tested, and the caller's.
    let visit = unsafe { &*visit };
    let Some(control) = control() else { return 1 };
    let packet = &visit.packet;
    if control.exempt_slots >> (slot & 63) & 1 != 0 || is_essential(packet) {
        return 1;
    }
    for address in [packet.key.low, packet.key.high] {
        let flags = prefix_entry(&ALLOWED, &PrefixKey::of(address, packet.key.family));
        // SAFETY: 4 aligned bytes of a map value.
        if !flags.is_null() && unsafe { flags.read_volatile() } & ALLOWED_FLAG != 0 {
            return 1;
        }
    }
    let is_udp = packet.key.protocol == protocol::UDP;
    if is_udp || packet.key.protocol == protocol::TCP {
        let local_low = packet.from_low == visit.is_egress();
        let (word, bit) = port_bit(if local_low { packet.key.low_port } else { packet.key.high_port }, is_udp);
        if let Some(bits) = ALLOWED_PORTS.get_ptr(word) {
            // SAFETY: 8 aligned bytes of a map value.
            if unsafe { bits.read_volatile() } >> bit & 1 != 0 {
                return 1;
            }
        }
    }
    0
}

/// Charges a packet to the rate of an entry: 1 if it is beyond. If another CPU holds the entry for too long, the packet passes
/// unasked.
///
/// # Safety
/// All pointers are valid, or null; `entry` is a map value.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_charge(entry: *mut Entry, visit: *const Visit, counters: *mut InterfaceCounters) -> u64 {
    if entry.is_null() || visit.is_null() || counters.is_null() {
        return 0;
    }
    // SAFETY: just tested, and the caller's.
    let (visit, counters) = unsafe { (&*visit, &mut *counters) };
    // SAFETY: a map value.
    let sequence_word = unsafe { &raw mut (*entry).sequence };
    // SAFETY: 4 aligned bytes of a map value.
    let Some(sequence) = (unsafe { lock::take(sequence_word) }) else {
        counters.limit_busy += 1;
        return 0;
    };
    // SAFETY: under the entry's lock this CPU is the only writer of the rate.
    let admitted = unsafe { &mut *entry }.admits(visit.packet.segments, visit.packet.frame_len, visit.now_ns);
    // SAFETY: as above.
    unsafe { lock::give_back(sequence_word, sequence) };
    !admitted as u64
}

/// Remembers the source of a connection whose initiator has proven that it is there. Called now and then for each
/// established connection, without the record's lock.
#[inline(always)]
pub(crate) fn note_known(record: *const FlowRecord, visit: &Visit) {
    // SAFETY: a map value and a reference.
    unsafe { sensor_known(record, visit) };
}

/// See [`note_known`].
///
/// # Safety
/// Both pointers are valid, or null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn sensor_known(record: *const FlowRecord, visit: *const Visit) -> u64 {
    if record.is_null() || visit.is_null() {
        return 1;
    }
    // SAFETY: just tested, and the caller's. Programs on other CPUs may write the record meanwhile: it is a hint.
    let (record, visit) = unsafe { (&*record, &*visit) };
    let packet = &visit.packet;
    let initiator_high = record.state & state::INITIATOR_HIGH != 0;
    let forward = packet.from_low != initiator_high;
    // Connections that this host opened say nothing of who comes in.
    if forward == visit.is_egress() || !is_proven(record) {
        return 1;
    }
    let address = if initiator_high { packet.key.high } else { packet.key.low };
    let now_ns = visit.now_ns;
    let (set, tag) = known::place(&mapped(address, packet.key.family), seed);
    let Some(set) = KNOWN.get_ptr_mut(set) else { return 1 };
    // SAFETY: aligned words of a map value, which other CPUs write whole.
    let words = core::array::from_fn(|way| unsafe { (&raw const (*set)[way]).read_volatile() });
    let way = known::way_of(&words, tag, now_ns);
    // SAFETY: as above; the number is in bounds, and the verifier sees it.
    unsafe { set.cast::<u64>().add(way & (known::KNOWN_WAYS - 1)).write_volatile(known::word(tag, now_ns)) };
    0
}

/// The verdict on a flow, or null.
#[inline(always)]
fn flow_entry(key: &FlowKey) -> *mut Entry {
    // A copy: kernels before 6.0 take keys from the stack only.
    let key = *key;
    FLOW_VERDICTS.get_ptr_mut(key).unwrap_or(core::ptr::null_mut())
}

/// The value of the longest prefix around an address, or null.
#[inline(always)]
fn prefix_entry<V>(map: &'static LpmTrie<PrefixData, V>, key: &PrefixKey) -> *mut V {
    // aya's own key is packed: it would be put together byte by byte.
    // SAFETY: the key is of the map's size.
    unsafe { bpf_map_lookup_elem(core::ptr::from_ref(map).cast_mut().cast(), core::ptr::from_ref(key).cast()).cast() }
}

/// Key of the remote end's address: the sender of what comes in, the receiver of what goes out.
#[inline(always)]
fn peer(visit: &Visit) -> PrefixKey {
    let packet = &visit.packet;
    let low = packet.from_low != visit.is_egress();
    PrefixKey::of(if low { packet.key.low } else { packet.key.high }, packet.key.family)
}
