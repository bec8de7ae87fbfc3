use super::*;
use crate::hash::hash_words;

/// Values 0, 1, 2 … as a sweep has them, under hash keys of their own for each trial.
fn count(trial: u64, values: u32, components: usize) -> f64 {
    let seed = |i: usize| {
        let mut x = (trial + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(i as u64 * 0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    };
    let mut cells = [0; CELL_WORDS];
    for value in 0..values {
        hit(&mut cells, cell_of(hash_words(&[0xc612_0000 + value], seed), components), 7);
    }
    distinct(&cells, 0, components, 7, 7)[0] as f64
}

/// Root mean square of the relative error over many hash keys.
fn error(values: u32, components: usize, trials: u64) -> f64 {
    let square = |trial| (count(trial, values, components) / values as f64 - 1.0).powi(2);
    ((0..trials).map(square).sum::<f64>() / trials as f64).sqrt()
}

#[test]
fn the_error_is_what_is_stated() {
    for values in [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, reliable(COMPONENTS / 2) as u32] {
        let error = error(values, COMPONENTS / 2, 600);
        assert!(error <= 0.22, "{values} values: {error}");
    }
    for (values, trials) in [(100, 400), (10_000, 200), (100_000, 60), (reliable(COMPONENTS) as u32, 40)] {
        let error = error(values, COMPONENTS, trials);
        assert!(error <= 0.25, "{values} values: {error}");
    }
    for trial in 0..200 {
        assert_eq!(count(trial, 1, COMPONENTS / 2), 1.0);
        for values in 2..5 {
            let estimate = count(trial, values, COMPONENTS);
            assert!((estimate - values as f64).abs() <= 3.0, "{values}: {estimate}");
        }
    }
    assert_eq!(count(3, 1 << 17, COMPONENTS / 2), ceiling(COMPONENTS / 2) as f64, "a full sketch says its most");
}

#[test]
fn linear_counting_is_the_logarithm() {
    for (hit, value) in LINEAR.iter().enumerate() {
        let free = if hit == COMPONENT { 0.5 } else { (COMPONENT - hit) as f64 };
        let exact = -16.0 * (free / 16.0).ln() * 65_536.0;
        assert!((exact - *value as f64).abs() <= 0.5, "{hit}: {exact} {value}");
    }
}

#[test]
fn cells_are_in_range_and_spread() {
    let mut hits = [0u32; COMPONENTS];
    for value in 0..1 << 16u32 {
        let cell = cell_of(hash_words(&[value], |i| 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(i as u64 + 1)), COMPONENTS);
        hits[cell as usize / COMPONENT] += 1;
    }
    for (component, hits) in hits.iter().enumerate() {
        let share = (1 << 16) >> (component + 1).min(COMPONENTS - 1);
        assert!((*hits as f64 / share as f64 - 1.0).abs() < 0.5 + 2.0 / (share as f64).sqrt(), "{component}: {hits}");
    }
    assert_eq!(cell_of(0, 7), 6 * 16);
    assert_eq!(cell_of(u32::MAX, 7), 15);
    assert_eq!(cell_of(0b10_0011, 7), 16 + 3);
}

#[test]
fn windows_slide_and_old_hits_are_swept() {
    let mut cells = [0; CELL_WORDS];
    for (value, tick) in [(0u32, 100), (1, 230), (2, 900)] {
        hit(&mut cells, value * 16, tick);
    }
    assert_eq!(distinct(&cells, 0, 7, 900, 900), [1, 1, 3]);
    assert_eq!(distinct(&cells, 0, 7, 900, 914), [1, 1, 3]);
    assert_eq!(distinct(&cells, 0, 7, 900, 915), [0, 1, 3]);
    assert_eq!(distinct(&cells, 0, 7, 900, 994), [0, 1, 2], "60 s after the first");
    assert_eq!(distinct(&cells, 7, 7, 900, 900), [0; 3], "the other half");
    // 73 minutes later the cell's tick is the same again.
    assert_eq!(distinct(&cells, 0, 7, 900, 900 + 65_536), [0; 3]);
    hit(&mut cells, 5, 65_636);
    assert_eq!(distinct(&cells, 0, 7, 65_636, 65_636)[2], 2, "an unswept cell comes back");
    sweep(&mut cells, 65_636 - 20_000);
    hit(&mut cells, 5, 65_636);
    assert_eq!(distinct(&cells, 0, 7, 65_636, 65_636)[2], 1);
    // Tick 0 of the 16 bits is stored as the one before.
    hit(&mut cells, 80, 65_536);
    assert_eq!(distinct(&cells, 0, 7, 65_536, 65_536)[0], 1);
    // Out of range: nothing.
    let before = cells;
    hit(&mut cells, u32::MAX, 9);
    assert_eq!(cells, before);
}
