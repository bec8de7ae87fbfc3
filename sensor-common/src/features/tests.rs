//! Values against the same ones in floating point, computed from the packets: an oracle that shares no code.

use proptest::prelude::*;

use super::*;
use crate::packet::{Packet, protocol};

/// Direction, gap to the frame before in ns, payload in bytes.
type Frame = (bool, u64, u32);

fn packet(&(reverse, _, payload): &Frame) -> Packet {
    let mut packet = Packet { from_low: !reverse, ..bytemuck::Zeroable::zeroed() };
    packet.key.protocol = protocol::UDP;
    packet.key.family = 4;
    (packet.key.low[0], packet.key.high[0]) = (1, 2);
    (packet.segments, packet.payload_len, packet.header_len) = (1, payload, 28);
    packet.segment_size = payload;
    packet
}

fn record(frames: &[Frame]) -> FlowRecord {
    let mut record = FlowRecord::zeroed();
    let mut now = 1_000;
    for (number, frame) in frames.iter().enumerate() {
        now += frame.1;
        if number == 0 {
            record.start(&packet(frame), now, 0, 1);
        }
        record.update(&packet(frame), now);
    }
    record
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
}

/// The whole number's step, or a part of the value that floating point cannot tell apart.
fn near(value: f64, exact: f64, step: f64) -> bool {
    (value - exact).abs() <= step + exact.abs() * 1e-9
}

proptest! {
    #[test]
    fn means_deviations_and_rates_are_those_of_the_packets(
        frames in prop::collection::vec((any::<bool>(), 1..1u64 << 40, 0..65_000u32), 2..60),
        shift in 0..34u32,
    ) {
        let frames: Vec<Frame> = frames.into_iter().map(|(reverse, gap, payload)| (reverse, gap >> shift, payload)).collect();
        let record = record(&frames);
        let value = |name: &str| by_name(name).expect(name).value(&Sample::of(&record));
        let gaps: Vec<f64> = frames[1..].iter().map(|frame| frame.1 as f64 / 1e9).collect();
        prop_assert!(near(value("flow_iat_mean"), mean(&gaps), 1e-9));
        prop_assert!(near(value("flow_iat_std"), deviation(&gaps), 1e-9), "{} {}", value("flow_iat_std"), deviation(&gaps));
        prop_assert!(near(value("flow_iat_max"), gaps.iter().copied().fold(0.0, f64::max), 0.0));
        let duration = gaps.iter().sum::<f64>();
        prop_assert!(near(value("duration"), duration, 0.0));
        if duration == 0.0 {
            prop_assert!(value("packets_per_second").is_nan());
        } else {
            let rate = frames.len() as f64 / duration;
            prop_assert!(near(value("packets_per_second"), rate, 1.0 / 65536.0), "{} {rate}", value("packets_per_second"));
        }
        for (prefix, reverse) in [("fwd", frames[0].0), ("bwd", !frames[0].0)] {
            let sent: Vec<f64> = frames.iter().filter(|frame| frame.0 == reverse).map(|frame| frame.2.into()).collect();
            let [mean_name, std_name] = [format!("{prefix}_payload_mean"), format!("{prefix}_payload_std")];
            if sent.is_empty() {
                prop_assert!(value(&mean_name).is_nan() && value(&std_name).is_nan());
                continue;
            }
            prop_assert!(near(value(&mean_name), mean(&sent), 1.0 / 65536.0));
            // Near 0, a step of the variance is a large one of its root.
            prop_assert!(near(value(&std_name), deviation(&sent), 1.0 / 256.0), "{} {}", value(&std_name), deviation(&sent));
        }
    }
}

/// What the kernel will compare is the number; what a model sees, the value.
#[test]
fn each_real_feature_has_a_form_and_each_form_is_used() {
    let forms: Vec<Form> = FEATURES.iter().map(|feature| feature.form).collect();
    for form in [
        Form::Count,
        Form::Nanoseconds,
        Form::Microseconds,
        Form::Fraction,
        Form::Entropy,
        Form::Root,
        Form::RootNanoseconds,
        Form::RootMicroseconds,
    ] {
        assert!(forms.contains(&form), "{form:?}");
    }
    let real = forms.iter().filter(|form| **form != Form::Count).count();
    assert_eq!(real, 62);
}

#[test]
fn names_are_unique_and_plain() {
    let mut names: Vec<_> = FEATURES.iter().map(|feature| feature.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), FEATURES.len());
    assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')));
    assert_eq!(contract_hash().len(), 16);
}

#[test]
fn a_hash_is_of_the_named_definitions_in_order() {
    let of = |names: &[&str]| hash_of(&names.iter().map(|name| by_name(name).expect(name)).collect::<Vec<_>>());
    assert_ne!(of(&["protocol", "duration"]), of(&["duration", "protocol"]));
    assert_eq!(of(&["protocol"]), by_name("protocol").expect("a feature").hash());
    assert_ne!(contract_hash(), hash_of(&FEATURES.iter().collect::<Vec<_>>()), "the columns are in the contract's");
}

#[test]
fn definitions_are_whole_and_values_never_infinite() {
    let record = FlowRecord::zeroed();
    for feature in FEATURES {
        assert!(!feature.definition.is_empty() && !feature.missing().is_empty(), "{}", feature.name);
        let value = feature.value(&Sample::of(&record));
        assert!(value.is_nan() || value.is_finite(), "{}: {value}", feature.name);
    }
}
