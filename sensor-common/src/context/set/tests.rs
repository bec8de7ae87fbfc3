use bytemuck::Zeroable as _;

use super::*;
use crate::context::sketch::COMPONENT;

fn key(number: u32) -> Key {
    Key([number, 0, 0, 0, 4 << 16, 0, 0])
}

/// Notes a new flow; the hash is the number, so that all fall into one set.
fn note(set: &mut Set, number: u32, tick: u32) -> Noted {
    set.note(&key(number), number, tick, [number % 16, u32::MAX])
}

fn flows(set: &Set, number: u32, now: u32) -> Option<[u32; WINDOWS]> {
    match set.find(&key(number), number, now) {
        Known::Entry(entry, last) => Some(entry.source(last, now).map(|window| window.new_flows)),
        Known::Quiet => Some([0; WINDOWS]),
        Known::Unknown => None,
    }
}

#[test]
fn counts_slide_out_of_each_window() {
    let mut set = Set::zeroed();
    let start = 894 * 1000;
    for tick in 0..10 {
        assert_eq!(note(&mut set, 1, start + tick), Noted::Counted);
    }
    assert_eq!(flows(&set, 1, start + 9), Some([10; 3]));
    // The sub-windows of 1 s begin at multiples of 15 ticks, of which `start` is one.
    assert_eq!(flows(&set, 1, start + 15 + 7).map(|f| f[0]), Some(5));
    assert_eq!(flows(&set, 1, start + 30).map(|f| f[0]), Some(0));
    assert_eq!(flows(&set, 1, start + 893), Some([0, 0, 10]));
    assert_eq!(flows(&set, 1, start + 2 * 894), Some([0; 3]));
    assert_eq!(flows(&set, 2, start), Some([0; 3]), "nobody was given up: it had no flows");
}

#[test]
fn counts_and_cells_survive_the_wrap_of_ticks() {
    for start in [65_530, u32::MAX - 20] {
        let mut set = Set::zeroed();
        for tick in 0..30u32 {
            note(&mut set, 1, start.wrapping_add(tick));
        }
        let now = start.wrapping_add(29);
        let Known::Entry(entry, last) = set.find(&key(1), 1, now) else { panic!("is there") };
        assert_eq!(entry.source(last, now).map(|window| window.ports), [1; 3], "from {start}");
        if start == 65_530 {
            assert_eq!(flows(&set, 1, now).map(|f| f[2]), Some(30));
        }
    }
}

#[test]
fn an_old_scan_does_not_come_back_after_73_minutes() {
    let mut set = Set::zeroed();
    for port in 0..96 {
        set.note(&key(1), 1, 1_000, [port, u32::MAX]);
    }
    // One flow every 30 s, always to the same port.
    let mut tick = 1_000;
    while tick < 1_000 + 3 * 65_536 {
        tick += 447;
        set.note(&key(1), 1, tick, [0, u32::MAX]);
        let Known::Entry(entry, last) = set.find(&key(1), 1, tick) else { panic!("is there") };
        let ports = entry.source(last, tick)[2].ports;
        assert!(ports == 1 || tick < 1_000 + 894, "{ports} ports at tick {tick}");
    }
}

#[test]
fn a_clock_that_is_behind_counts_as_now() {
    let mut set = Set::zeroed();
    note(&mut set, 1, 10_005);
    note(&mut set, 1, 10_000);
    assert_eq!(flows(&set, 1, 10_004), Some([2; 3]));
    assert_eq!(set.last[0], 10_005);
}

#[test]
fn a_flood_pushes_out_one_entry_with_history_and_then_itself() {
    let mut set = Set::zeroed();
    for (number, times) in [(1, 3), (2, 9), (3, 5), (4, 7)] {
        for _ in 0..times {
            assert_eq!(note(&mut set, number, 100), Noted::Counted);
        }
    }
    for spoofed in 1000..200_000 {
        assert_eq!(note(&mut set, spoofed, 100 + spoofed / 1000), Noted::Replaced);
    }
    let now = 300;
    assert_eq!(flows(&set, 1, now), None, "the lightest had to go, and that is known");
    for (number, times) in [(2, 9), (3, 5), (4, 7)] {
        assert_eq!(flows(&set, number, now).map(|f| f[2]), Some(times));
    }
    assert_eq!(set.used(now), 4);
    // A new source always gets in, and grows if it goes on.
    note(&mut set, 5, now);
    note(&mut set, 5, now);
    assert_eq!(flows(&set, 5, now).map(|f| f[0]), Some(2));
    // A minute after the flood, what is not there had no flows.
    assert_eq!(flows(&set, 1, now + 894), Some([0; 3]));
}

#[test]
fn quiet_entries_go_first_of_equals_the_one_idle_longest() {
    let tags = [1, 2, 3, 4];
    assert_eq!(victim(&[1, 2, 0, 4], &[9; 4], &[1, 1, 9, 1], 9), 2, "a free one");
    assert_eq!(victim(&tags, &[990, 1000, 50, 999], &[1, 1, 5000, 1], 1000), 2, "one without flows for 60 s");
    assert_eq!(victim(&tags, &[999, 1000, 998, 999], &[1, 1, 2, 1], 1000), 0, "the longest idle of the lightest");
    assert_eq!(victim(&tags, &[999, 1000, 998, 990], &[9, 8, 7, 8], 1000), 2);
    assert_eq!(victim(&tags, &[u32::MAX, 3, 3, 3], &[9, 9, 9, 9], 4), 0, "ticks wrap");
}

#[test]
fn an_entry_that_is_taken_over_starts_from_nothing() {
    let mut set = Set::zeroed();
    for port in 0..(7 * COMPONENT as u32) {
        set.note(&key(1), 1, 100, [port, u32::MAX]);
    }
    for number in 2..5 {
        note(&mut set, number, 100);
    }
    note(&mut set, 9, 100 + 894);
    let Known::Entry(entry, last) = set.find(&key(9), 9, 100 + 894) else { panic!("is there") };
    let [_, _, minute] = entry.source(last, 100 + 894);
    assert_eq!((minute.new_flows, minute.ports, minute.hosts), (1, 1, 0));
    assert_eq!(set.replaced, 0, "nobody with flows had to go");
}
