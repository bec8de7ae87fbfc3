//! The sliding-window counter: a count for the sub-window that time is in, and one for the sub-window before.
//!
//! A window of w ticks is cut into sub-windows of w ticks each, counted from tick 0. The estimate for the last w ticks is
//! the current count plus the previous one weighted by the share that the window still covers. It is exact for
//! arrivals at an even rate; whatever their timing, the error is below the previous sub-window's count.

/// Sliding windows of every context value.
pub const WINDOWS: usize = 3;
/// Their lengths in ticks of 2^26 ns (see [`crate::table::TICK_SHIFT`]): 1.007 s, 9.999 s and 59.995 s.
pub const WINDOW_TICKS: [u32; WINDOWS] = [15, 149, 894];
/// What they are called in names of features.
pub const WINDOW_NAMES: [&str; WINDOWS] = ["1s", "10s", "60s"];
/// The longest of them, ticks.
pub const LONGEST: u32 = WINDOW_TICKS[WINDOWS - 1];

/// Sub-windows of `window` ticks from tick `last` to tick `now`, which is not before it.
#[inline(always)]
pub const fn steps(last: u32, now: u32, window: u32) -> u32 {
    (now / window).wrapping_sub(last / window)
}

/// The count of the last `window` ticks as of tick `now`, from the counts as they were left at tick `last`, rounded to
/// the nearest integer. A `now` before `last` is taken for `last`: CPUs' clocks differ by a little.
pub fn estimate(current: u64, previous: u64, last: u32, now: u32, window: u32) -> u64 {
    let now = later(last, now);
    let (current, previous) = match steps(last, now, window) {
        0 => (current, previous),
        1 => (0, current),
        _ => (0, 0),
    };
    let covered = (window - 1 - now % window) as u128;
    current.saturating_add(((previous as u128 * covered + window as u128 / 2) / window as u128) as u64)
}

/// The later of two ticks, which are less than half of their range apart.
#[inline(always)]
pub const fn later(a: u32, b: u32) -> u32 {
    if (b.wrapping_sub(a) as i32) < 0 { a } else { b }
}

/// Ticks from `last` to `now`; none if `now` is before it.
#[inline(always)]
pub const fn idle_of(last: u32, now: u32) -> u32 {
    later(last, now).wrapping_sub(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_what_their_names_say() {
        for (ticks, name) in WINDOW_TICKS.iter().zip(WINDOW_NAMES) {
            let seconds: f64 = name.trim_end_matches('s').parse().expect("a number");
            let length = (*ticks as u64) << crate::table::TICK_SHIFT;
            assert!((length as f64 / 1e9 / seconds - 1.0).abs() < 0.007, "{name}: {length} ns");
        }
    }

    #[test]
    fn an_even_rate_is_exact_at_every_tick() {
        for window in WINDOW_TICKS {
            let (mut current, mut previous, mut last) = (0u64, 0u64, 0u32);
            for now in 0..5 * window {
                match steps(last, now, window) {
                    0 => {}
                    1 => (current, previous) = (0, current),
                    _ => unreachable!("every tick has an event"),
                }
                current += 3;
                last = now;
                if now >= window {
                    assert_eq!(estimate(current, previous, last, now, window), 3 * window as u64, "tick {now}");
                }
            }
        }
    }

    #[test]
    fn a_burst_fades_and_is_gone_after_two_windows() {
        let window = WINDOW_TICKS[0];
        let at = |now| estimate(1000, 0, 3, now, window);
        assert_eq!([at(3), at(14)], [1000, 1000]);
        assert_eq!([at(15), at(22), at(29)], [933, 467, 0]);
        assert_eq!([at(30), at(1_000_000)], [0, 0]);
        assert_eq!(estimate(7, 0, 100, 99, window), 7, "a clock that is behind");
    }

    #[test]
    fn later_survives_the_wrap() {
        assert_eq!(later(u32::MAX - 1, 5), 5);
        assert_eq!(later(5, u32::MAX - 1), 5);
        assert_eq!(later(7, 7), 7);
    }
}
