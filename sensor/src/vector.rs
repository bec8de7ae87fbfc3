//! A record's feature vector: what a model is given, in the order that its contract names.
//!
//! A value that does not exist stays NaN: only the model knows what to put in its place, and its graph does so.

use sensor_common::features::{Feature, Sample};

/// Fills `row` with the values of `features` for `sample`, rounded to 32-bit floats; a missing one is NaN.
///
/// # Panics
/// If `row` and `features` differ in length.
pub fn fill(features: &[&Feature], sample: &Sample<'_>, row: &mut [f32]) {
    assert_eq!(features.len(), row.len(), "a row holds one value per feature");
    for (value, feature) in row.iter_mut().zip(features) {
        *value = (feature.value)(sample) as f32;
    }
}

#[cfg(test)]
mod tests {
    use sensor_common::features::by_name;
    use sensor_common::flow::FlowRecord;

    use super::*;

    #[test]
    fn missing_is_not_zero() {
        let mut frame = [0u8; 46];
        frame[12..16].copy_from_slice(&[0x08, 0x00, 0x45, 0]);
        frame[17] = 32;
        frame[23] = sensor_common::packet::protocol::UDP;
        frame[39] = 12;
        let packet = sensor_common::packet::parse(&frame[..]).expect("well-formed");
        let mut record = FlowRecord::zeroed();
        record.start(&packet, 5, 0, 1);
        record.update(&packet, 5);
        let features: Vec<_> = ["fwd_payload_bytes", "bwd_packets", "bwd_l3_mean", "fwd_syn"]
            .map(|name| by_name(name).expect(name))
            .into();
        let mut row = [7.0; 4];
        fill(&features, &Sample::of(&record), &mut row);
        assert_eq!(row[..2], [4.0, 0.0]);
        assert!(row[2].is_nan() && row[3].is_nan());
    }
}
