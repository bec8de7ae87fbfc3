//! What a receiver would not accept changes nothing but the counts of packets.

use super::build::{MS, SECOND, START, each_ms, packet, record, tcp};
use crate::flow::{FlowRecord, state};
use crate::packet::{NO_WSCALE, Packet, protocol};
use crate::table::phase;
use crate::tcp::{ACK, FIN, PSH, RST, SYN};

/// Retransmitted, out of order, duplicate ACKs, keep-alives, skipped.
fn counts(record: &FlowRecord) -> [(u32, u32, u32, u16, u32); 2] {
    record
        .directions
        .map(|half| (half.retransmitted, half.out_of_order, half.duplicate_acks, half.keep_alives, half.missing))
}

/// A connection: the numbers of both sides, and what each shows of the window.
struct Talk {
    next: [u32; 2],
    window: [u16; 2],
    packets: Vec<Packet>,
}

impl Talk {
    /// After a handshake that offers these window scales.
    fn open(isn: [u32; 2], window: [u16; 2], scale: [u8; 2]) -> Talk {
        let mut talk = Talk { next: isn, window, packets: Vec::new() };
        for (side, flags) in [(0, SYN), (1, SYN | ACK)] {
            let syn = Packet { wscale: scale[side], ..talk.segment(side, flags, 0, 0) };
            talk.next[side] = talk.next[side].wrapping_add(1);
            talk.packets.push(syn);
        }
        talk.say(0, 0);
        talk
    }

    /// In mid-connection.
    fn midway(next: [u32; 2]) -> Talk {
        Talk { next, window: [500; 2], packets: Vec::new() }
    }

    fn segment(&self, side: usize, flags: u8, ahead: i32, payload: u32) -> Packet {
        let ack = if flags & ACK == 0 { 0 } else { self.next[side ^ 1] };
        let seq = self.next[side].wrapping_add_signed(ahead);
        Packet { window: self.window[side], ..tcp(side == 1, flags, seq, ack, payload) }
    }

    /// The next segment of a side.
    fn say(&mut self, side: usize, payload: u32) -> &mut Talk {
        self.packets.push(self.segment(side, ACK | PSH, 0, payload));
        self.next[side] = self.next[side].wrapping_add(payload);
        self
    }

    /// A segment that nobody asked for, `ahead` of the side's next one.
    fn forge(&mut self, side: usize, flags: u8, ahead: i32, payload: u32) -> &mut Talk {
        self.packets.push(self.segment(side, flags, ahead, payload));
        self
    }

    /// A request and its answer.
    fn exchange(&mut self) -> &mut Talk {
        self.say(0, 100).say(1, 200).say(0, 0)
    }

    fn record(&self) -> FlowRecord {
        each_ms(&self.packets)
    }
}

const CLOSING: u32 = state::CLOSED | state::RST | state::FIN | state::FIN << 1;
const PLAIN: [(u32, u32, u32, u16, u32); 2] = [(0, 0, 0, 0, 0); 2];

fn ordinary(isn: [u32; 2]) -> Talk {
    let mut talk = Talk::open(isn, [500, 1_000], [NO_WSCALE; 2]);
    talk.exchange();
    talk
}

#[test]
fn a_reset_outside_the_window_closes_nothing() {
    for ahead in [-1, 1, -200, 10, 499, 70_000, 1_500_000_000, -1_500_000_000] {
        for side in [0, 1] {
            let mut talk = ordinary([1_000, 9_000]);
            talk.forge(side, RST, ahead, 0);
            let record = talk.exchange().record();
            assert_eq!(record.state & CLOSING, 0, "side {side}, {ahead} ahead");
            assert_eq!((record.phase(), counts(&record)), (phase::ESTABLISHED, PLAIN));
        }
    }
}

#[test]
fn an_exact_reset_closes() {
    for side in [0, 1] {
        let record = ordinary([1_000, 9_000]).forge(side, RST, 0, 0).record();
        assert_eq!((record.state & CLOSING, record.phase()), (state::RST | state::CLOSED, phase::CLOSED));
        // What was sent before it was not acknowledged: it may have been lost, and the reset with it.
        let record = ordinary([1_000, 9_000]).say(side, 10).forge(side, RST, 0, 0).record();
        assert_eq!((record.state & CLOSING, record.phase()), (state::RST | state::CLOSED, phase::ANSWERED));
        assert!(!record.is_reopened_by(&tcp(false, SYN, 77, 0, 0)));
    }
}

/// A segment that its receiver throws away (for its checksum, say), and a reset behind it: exact to whoever looks on.
#[test]
fn a_reset_that_its_receiver_did_not_take_is_none() {
    for side in [0, 1] {
        let mut talk = ordinary([1_000, 9_000]);
        talk.forge(side, ACK | PSH, 0, 50).forge(side, RST, 50, 0);
        talk.say(side, 80).say(side ^ 1, 10).exchange();
        let record = talk.record();
        assert_eq!((record.state & CLOSING, record.phase()), (0, phase::ESTABLISHED));
    }
}

#[test]
fn a_reset_answers_a_syn_only_if_it_acknowledges_it() {
    let syn = tcp(false, SYN, 1_000, 0, 0);
    for (flags, ack, closes) in
        [(RST | ACK, 1_001, true), (RST | ACK, 1_777, false), (RST | ACK, 1_000, false), (RST, 0, false)]
    {
        let record = each_ms(&[syn, tcp(true, flags, 0, ack, 0)]);
        assert_eq!(record.state & state::RST_EARLY != 0, closes, "{flags:#x} {ack}");
        assert_eq!(record.phase() == phase::CLOSED, closes);
    }
}

#[test]
fn data_and_fin_outside_the_window_change_nothing() {
    // 500 and 1,000 bytes are the windows.
    for (side, window) in [(0, 1_000), (1, 500)] {
        for ahead in [window + 1, 70_000, 1_500_000_000, -70_000, -1_500_000_000] {
            for flags in [ACK | PSH, ACK | FIN] {
                for isn in [[1_000, 9_000], [u32::MAX - 50, u32::MAX - 100]] {
                    let mut talk = ordinary(isn);
                    talk.forge(side, flags, ahead, 40).forge(side, flags, ahead, 40).exchange();
                    let (record, next) = (talk.record(), talk.next);
                    assert_eq!((record.state & CLOSING, counts(&record)), (0, PLAIN), "side {side}, {ahead} ahead");
                    assert_eq!(record.directions.map(|half| half.next), next);
                }
            }
        }
    }
}

#[test]
fn what_the_window_holds_is_taken() {
    let mut talk = ordinary([1_000, 9_000]);
    talk.forge(0, ACK | PSH, 900, 100);
    let record = talk.record();
    assert_eq!((record.directions[0].missing, record.directions[0].next), (900, talk.next[0].wrapping_add(1_000)));
}

#[test]
fn windows_are_scaled_by_the_offer_of_their_sender_if_both_offer_it() {
    // Windows of 500 << 3 and 1,000 << 5.
    for (scale, edges) in [([3, 5], [32_000, 4_000]), ([3, NO_WSCALE], [1_000, 500]), ([NO_WSCALE, 5], [1_000, 500])] {
        for side in [0, 1] {
            for (ahead, taken) in [(edges[side], true), (edges[side] + 1, false)] {
                let mut talk = Talk::open([1_000, 9_000], [500, 1_000], scale);
                let record = talk.exchange().forge(side, ACK | PSH, ahead, 10).record();
                let skipped = if taken { ahead as u32 } else { 0 };
                assert_eq!(record.directions[side].missing, skipped, "{scale:?}, side {side}, {ahead} ahead");
            }
        }
    }
    // That of a SYN-ACK is not scaled.
    let mut talk = Talk::open([1_000, 9_000], [500, 1_000], [3, 5]);
    assert_eq!(talk.forge(0, ACK | PSH, 1_001, 10).record().directions[0].missing, 0);
}

#[test]
fn acknowledgements_of_what_was_not_sent_or_long_ago_are_ignored() {
    for ack in [1, 100, 5_000, 1_500_000_000, -70_000, -1_500_000_000] {
        for side in [0, 1] {
            for payload in [0, 30] {
                let mut talk = ordinary([5_000, 9_000]);
                let mut odd = talk.segment(side, ACK | PSH, 0, payload);
                odd.ack = odd.ack.wrapping_add_signed(ack);
                talk.packets.push(odd);
                let record = talk.exchange().record();
                assert_eq!(counts(&record), PLAIN, "side {side}, {ack} ahead, {payload} bytes");
                assert_eq!(record.directions[side].ack, talk.next[side ^ 1]);
            }
        }
    }
}

#[test]
fn a_syn_in_a_connection_changes_nothing() {
    for (side, flags) in [(0, SYN), (1, SYN), (1, SYN | ACK), (0, SYN | ACK)] {
        for ahead in [10, 70_000, 1_500_000_000, -90_000, -1_500_000_000] {
            let mut talk = ordinary([1_000, 9_000]);
            let before = talk.record();
            talk.forge(side, flags, ahead, 0).exchange();
            let record = talk.record();
            assert_eq!(counts(&record), PLAIN, "side {side}, flags {flags:#x}, {ahead} ahead");
            assert_eq!(record.openings.map(|opening| opening.wscale), before.openings.map(|opening| opening.wscale));
            let changing = state::LAST_REVERSE | state::RUN_REVERSE;
            assert_eq!((record.state | changing), (before.state | changing));
            assert_eq!(record.directions.map(|half| half.next), talk.next);
        }
    }
}

#[test]
fn the_own_syn_again_is_a_retransmission_however_late() {
    let mut talk = ordinary([1_000, 9_000]);
    let syn = talk.packets[0];
    talk.packets.push(syn);
    talk.exchange().packets.push(syn);
    assert_eq!(talk.exchange().record().directions[0].retransmitted, 2);
    let record = talk.record();
    assert!(!record.is_superseded_by(&syn), "it is of this connection");
    assert!(record.is_superseded_by(&Packet { seq: 77_000, ..syn }));
}

#[test]
fn the_answer_says_which_of_two_syns_holds() {
    for (acknowledged, next) in [(1_001, 1_001), (50_001, 50_001)] {
        let syns = [tcp(false, SYN, 1_000, 0, 0), tcp(false, SYN, 50_000, 0, 0)];
        let answer = [tcp(true, SYN | ACK, 9_000, acknowledged, 0), tcp(false, ACK, next, 9_001, 0)];
        let record = each_ms(&[&syns[..], &answer[..]].concat());
        assert!(record.state & state::ESTABLISHED != 0 && record.directions[0].next == next);
        assert_eq!(counts(&record), PLAIN);
    }
}

#[test]
fn a_syn_that_is_answered_begins_another_connection() {
    let mut talk = ordinary([1_000, 9_000]);
    talk.packets.push(tcp(false, SYN, 3_000_000_000, 0, 0));
    let record = talk.record();
    assert!(record.is_reopened_by(&tcp(true, SYN | ACK, 70_000, 3_000_000_001, 0)));
    assert!(!record.is_reopened_by(&tcp(true, SYN | ACK, 70_000, 1_001, 0)), "not of that SYN");
    assert!(!record.is_reopened_by(&tcp(false, SYN, 3_000_000_000, 0, 0)), "not yet answered");
}

#[test]
fn fast_open_and_its_fallback() {
    let syn = |payload| tcp(false, SYN, 1_000, 0, payload);
    let data = tcp(false, ACK | PSH, 1_001, 9_001, 200);
    let answer = |ack| tcp(true, SYN | ACK, 9_000, ack, 0);
    let accepted = [syn(200), answer(1_201), tcp(false, ACK, 1_201, 9_001, 0)];
    let refused = [syn(200), answer(1_001), data];
    let silent = [syn(200), syn(0), answer(1_001), tcp(false, ACK, 1_001, 9_001, 0), data];
    for (packets, retransmitted) in [(&accepted[..], 0), (&refused[..], 1), (&silent[..], 2)] {
        let record = each_ms(packets);
        assert_eq!((record.directions[0].retransmitted, record.directions[0].next), (retransmitted, 1_201));
    }
}

#[test]
fn one_octet_is_a_keep_alive_only_if_all_is_acknowledged() {
    let mut talk = ordinary([1_000, 9_000]);
    talk.say(0, 1).forge(0, ACK | PSH, -1, 1);
    assert_eq!(counts(&talk.record())[0], (1, 0, 0, 0, 0));
    talk.say(1, 0).forge(0, ACK, -1, 1).forge(0, ACK, -1, 0);
    assert_eq!(counts(&talk.record())[0], (1, 0, 0, 2, 0));
}

/// The observer loses packets: it finds its way again, by what the receiver acknowledges.
#[test]
fn what_the_observer_missed_ends_with_an_acknowledgement() {
    for lost in [300u32, 100_000, 3_000_000_000] {
        for side in [0, 1] {
            let mut talk = ordinary([1_000, 9_000]);
            talk.next[side] = talk.next[side].wrapping_add(lost);
            talk.say(side, 50).say(side ^ 1, 0);
            let record = talk.record();
            assert_eq!(record.directions[side].next, talk.next[side], "{lost} bytes of side {side}");
            let record = talk.exchange().record();
            assert_eq!(record.directions.map(|half| half.next), talk.next);
            assert_eq!(counts(&record).map(|count| (count.0, count.1)), [(0, 0); 2]);
            assert_eq!(record.state & CLOSING, 0);
            // A FIN that the receiver then shows to be none.
            talk.forge(side, ACK | FIN, 400, 0);
            for _ in 0..8 {
                talk.exchange();
            }
            let record = talk.record();
            let fin = state::FIN << side;
            assert_eq!((record.state & fin, record.directions[side].next), (0, talk.next[side]), "a FIN in the window");
        }
    }
}

#[test]
fn one_direction_alone_is_followed() {
    let mut talk = Talk::midway([5_000, 9_000]);
    talk.say(0, 100).say(0, 100).forge(0, ACK | PSH, 1_500_000_000, 50).say(0, 100);
    assert_eq!(talk.record().directions[0].next, talk.next[0], "one that leaps far is not believed");
    // Two in a row are.
    talk.next[0] = talk.next[0].wrapping_add(2_000_000_000);
    let record = talk.say(0, 100).say(0, 100).record();
    assert_eq!((record.directions[0].next, counts(&record)[0]), (talk.next[0], (0, 0, 0, 0, 0)));
    // A small leap is a loss, as ever.
    let record = talk.forge(0, ACK | PSH, 1_000, 10).record();
    assert_eq!(record.directions[0].missing, 1_000);
    let record = talk.forge(0, RST, 5_000, 0).record();
    assert_eq!(record.state & state::RST, 0);
}

#[test]
fn a_receiver_that_is_not_seen_any_more_stops_nobody() {
    let mut talk = ordinary([1_000, 9_000]);
    talk.next[0] = talk.next[0].wrapping_add(500_000);
    let seen = talk.packets.len();
    for _ in 0..8 {
        talk.say(0, 100);
    }
    let at = |slow: u64| {
        let times = talk.packets.iter().enumerate().map(|(number, packet)| {
            let late = number.saturating_sub(seen) as u64 * slow;
            (number as u64 * MS + late, *packet)
        });
        record(&times.collect::<Vec<_>>())
    };
    assert_ne!(at(0).directions[0].next, talk.next[0], "a burst is no proof");
    assert_eq!(at(SECOND).directions[0].next, talk.next[0]);
}

#[test]
fn in_mid_connection_the_greatest_scale_holds() {
    let mut talk = Talk::midway([5_000, 9_000]);
    talk.exchange();
    let edge = 500 << 14;
    for (ahead, skipped) in [(edge, edge as u32), (edge + 1, 0)] {
        let mut talk = Talk { packets: talk.packets.clone(), ..talk };
        assert_eq!(talk.forge(0, ACK | PSH, ahead, 10).record().directions[0].missing, skipped);
    }
}

/// A record that goes on from an earlier one keeps what it knows.
#[test]
fn a_cut_keeps_the_numbers() {
    let mut talk = ordinary([1_000, 9_000]);
    let mut record = talk.record();
    let next = talk.segment(0, ACK | PSH, 0, 10);
    record.go_on(&next, START + SECOND, 3);
    record.update(&next, START + SECOND);
    talk.next[0] = talk.next[0].wrapping_add(10);
    record.update(&talk.segment(1, RST, 1_500_000_000, 0), START + 2 * SECOND);
    assert_eq!((record.state & state::RST, record.directions[0].next), (0, talk.next[0]));
    record.update(&talk.segment(1, RST, 0, 0), START + 2 * SECOND);
    assert_ne!(record.state & state::RST, 0);
    assert_eq!(packet(protocol::TCP, false, 0).wscale, NO_WSCALE);
}
