//! The feature contract: every number a model can be given, declared once.
//!
//! [`FEATURES`] is the single source of `sensor features`, docs/features.md, the training pipeline's column names and
//! the checks on a model's inputs. A feature is a pure function of a [`Sample`]. Missing is not zero: where a
//! value does not exist (an empty direction, inter-arrival times of one frame, a window of a UDP flow) it is NaN, and
//! the column `missing when` says so. Deviations are population deviations. Times are in seconds, so that a 32-bit
//! float keeps their leading digits; lengths are in bytes. Frames are counted where times are (a super-packet of
//! segmentation offload is one frame), wire packets everywhere else.
//!
//! [`COLUMNS`] declares what a row says beside that: which flow, when, why. No model is given those.

mod base;
mod columns;
mod context;
mod detail;
mod flow;

use crate::context::HostContext;
use crate::flow::FlowRecord;

pub use self::base::responder_port;
pub use self::columns::{COLUMNS, Column, ColumnKind};

/// Moves on when a feature is added, removed or redefined.
pub const CONTRACT_VERSION: u32 = 2;

/// What features are computed from: one flow at one time.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// The flow.
    pub record: &'a FlowRecord,
    /// What goes on around it, [`HostContext::NONE`] where that is not known.
    pub context: &'a HostContext,
}

impl<'a> Sample<'a> {
    /// A flow of whose surroundings nothing is known.
    pub fn of(record: &'a FlowRecord) -> Sample<'a> {
        Sample { record, context: &HostContext::NONE }
    }
}

/// One feature.
#[derive(Clone, Copy)]
pub struct Feature {
    /// Name: the column in exports and the input name in models.
    pub name: &'static str,
    /// Unit of the value.
    pub unit: &'static str,
    /// Group of the contract.
    pub group: &'static str,
    /// Exact definition.
    pub definition: &'static str,
    /// When the value does not exist (NaN).
    pub missing: &'static str,
    /// Whether every value that exists is a whole number: exports have integers there.
    pub whole: bool,
    /// The value.
    pub value: fn(&Sample<'_>) -> f64,
}

impl core::fmt::Debug for Feature {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Feature({})", self.name)
    }
}

impl Feature {
    /// The same feature, with values between the whole numbers.
    const fn real(self) -> Feature {
        Feature { whole: false, ..self }
    }

    /// Whether the value is of the host context, not of the flow's own record.
    pub fn needs_context(&self) -> bool {
        self.group == context::GROUP
    }
}

/// Looks a feature up by its name.
pub fn by_name(name: &str) -> Option<&'static Feature> {
    FEATURES.iter().find(|feature| feature.name == name)
}

/// Identifies the whole contract: all features, then all of [`COLUMNS`] in the same manner. No model's hash: that is
/// [`hash_of`] its features.
pub fn contract_hash() -> String {
    let columns = COLUMNS.iter().map(|column| [column.name, column.unit, column.definition, column.missing]);
    hash(FEATURES.iter().map(hashed).chain(columns))
}

/// Identifies names, units and definitions of these features, in this order: what a model was trained on. A feature
/// that is added to the contract changes no model's hash.
pub fn hash_of(features: &[&Feature]) -> String {
    hash(features.iter().map(|feature| hashed(feature)))
}

fn hashed(feature: &Feature) -> [&'static str; 4] {
    [feature.name, feature.unit, feature.definition, feature.missing]
}

/// FNV-1a, 64 bits, as 16 hexadecimal digits, over name, unit, definition and missing rule, each ended by a zero byte.
fn hash(declared: impl Iterator<Item = [&'static str; 4]>) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in declared.flatten().flat_map(|text| text.bytes().chain([0])) {
        hash = (hash ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3);
    }
    format!("{hash:016x}")
}

macro_rules! record_feature {
    ($name:expr, $unit:expr, $group:expr, $definition:expr, $missing:expr, |$r:ident| $value:expr) => {
        Feature {
            name: $name,
            unit: $unit,
            group: $group,
            definition: $definition,
            missing: $missing,
            whole: true,
            value: |sample| {
                let $r = sample.record;
                $value
            },
        }
    };
}
use record_feature;

const PARTS: [&[Feature]; 13] = [
    &base::FLOW,
    &base::FORWARD,
    &base::REVERSE,
    &base::FORWARD_SPACING,
    &base::REVERSE_SPACING,
    &base::FLOW_SPACING,
    &base::FIRST,
    &flow::FLOW,
    &detail::FORWARD,
    &detail::REVERSE,
    &context::SHORT,
    &context::MIDDLE,
    &context::LONG,
];

const COUNT: usize = {
    let (mut sum, mut part) = (0, 0);
    while part < PARTS.len() {
        sum += PARTS[part].len();
        part += 1;
    }
    sum
};

/// Every feature of the contract, in contract order.
pub static FEATURES: &[Feature] = {
    static ALL: [Feature; COUNT] = {
        let mut all = [base::FLOW[0]; COUNT];
        let (mut part, mut filled) = (0, 0);
        while part < PARTS.len() {
            let mut item = 0;
            while item < PARTS[part].len() {
                all[filled] = PARTS[part][item];
                filled += 1;
                item += 1;
            }
            part += 1;
        }
        all
    };
    &ALL
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_plain() {
        let mut names: Vec<_> = FEATURES.iter().map(|feature| feature.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FEATURES.len());
        assert!(
            names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
        );
        assert_eq!(contract_hash().len(), 16);
    }

    #[test]
    fn a_hash_is_of_the_named_definitions_in_order() {
        let of = |names: &[&str]| hash_of(&names.iter().map(|name| by_name(name).expect(name)).collect::<Vec<_>>());
        assert_ne!(of(&["protocol", "duration"]), of(&["duration", "protocol"]));
        assert_eq!(of(&["protocol"]), of(&["protocol"]));
        assert_ne!(contract_hash(), hash_of(&FEATURES.iter().collect::<Vec<_>>()), "the columns are in the contract's");
    }

    #[test]
    fn definitions_are_whole_and_values_never_infinite() {
        let record = FlowRecord::zeroed();
        for feature in FEATURES {
            assert!(!feature.definition.is_empty() && !feature.missing.is_empty(), "{}", feature.name);
            let value = (feature.value)(&Sample::of(&record));
            assert!(value.is_nan() || value.is_finite(), "{}: {value}", feature.name);
        }
    }
}
