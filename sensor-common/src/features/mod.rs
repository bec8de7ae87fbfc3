//! The feature contract: every number a model can be given, declared once.
//!
//! [`FEATURES`] is the single source of `sensor features`, docs/features.md, the training pipeline's column names and
//! the checks on a model's inputs. A feature is a pure function of a [`Sample`]: one whole number, which kernel and
//! host compute alike ([`crate::whole`]), and a monotone function of it ([`Form`]), so that a threshold on the value is
//! one on the number. Missing is not zero: where a value does not exist (an empty direction, inter-arrival times of one
//! frame, a window of a UDP flow) it is NaN, and [`Presence`] says so. Deviations are population deviations. Times are
//! in seconds, so that a 32-bit float keeps their leading digits; lengths are in bytes. Frames are counted where times
//! are (a super-packet of segmentation offload is one frame), wire packets everywhere else.
//!
//! [`COLUMNS`] declares what a row says beside that: which flow, when, why. No model is given those.

mod base;
mod columns;
mod context;
mod detail;
mod flow;
mod form;
mod presence;

use crate::context::HostContext;
use crate::flow::FlowRecord;

pub use self::base::responder_port;
pub use self::columns::{COLUMNS, Column, ColumnKind};
pub use self::form::Form;
pub use self::presence::Presence;

/// The form of a model's keys. A feature that is added or redefined does not move it on: each has a hash of its own
/// ([`Feature::hash`]).
pub const CONTRACT_VERSION: u32 = 3;

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
    /// When the value exists; else it is NaN.
    pub presence: Presence,
    /// How the value follows from the whole number.
    pub form: Form,
    /// The whole number, where the value exists. It fits into 63 bits and a sign.
    pub whole: fn(&Sample<'_>) -> i64,
}

impl core::fmt::Debug for Feature {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Feature({})", self.name)
    }
}

impl Feature {
    /// The same feature, whose whole number has another form.
    const fn of(self, form: Form) -> Feature {
        Feature { form, ..self }
    }

    /// The value, NaN where there is none.
    pub fn value(&self, sample: &Sample<'_>) -> f64 {
        if self.presence.holds(sample) { self.form.value((self.whole)(sample)) } else { f64::NAN }
    }

    /// When the value does not exist, in words.
    pub const fn missing(&self) -> &'static str {
        self.presence.missing()
    }

    /// Whether every value that exists is a whole number: exports have integers there.
    pub fn is_whole(&self) -> bool {
        self.form == Form::Count
    }

    /// Identifies the feature: name, unit, definition and missing rule. Whatever is added to the contract, it stays as
    /// long as the feature does.
    pub fn hash(&self) -> String {
        hash(texts(self).into_iter())
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
/// [`Feature::hash`] of each of its features.
pub fn contract_hash() -> String {
    let columns = COLUMNS.iter().flat_map(|column| [column.name, column.unit, column.definition, column.missing]);
    hash(FEATURES.iter().flat_map(texts).chain(columns))
}

/// Identifies these features in this order, as [`Feature::hash`] does one: what models of contract 2 carry.
pub fn hash_of(features: &[&Feature]) -> String {
    hash(features.iter().flat_map(|feature| texts(feature)))
}

/// What a model relies on. Not the form: it rounds what is defined here, by less than models can tell.
fn texts(feature: &Feature) -> [&'static str; 4] {
    [feature.name, feature.unit, feature.definition, feature.missing()]
}

/// FNV-1a, 64 bits, as 16 hexadecimal digits, over texts, each ended by a zero byte.
fn hash(texts: impl Iterator<Item = &'static str>) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in texts.flat_map(|text| text.bytes().chain([0])) {
        hash = (hash ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3);
    }
    format!("{hash:016x}")
}

macro_rules! record_feature {
    ($name:expr, $unit:expr, $group:expr, $definition:expr, $presence:expr, |$r:ident| $value:expr) => {
        Feature {
            name: $name,
            unit: $unit,
            group: $group,
            definition: $definition,
            presence: $presence,
            form: Form::Count,
            whole: |sample| {
                let $r = sample.record;
                ($value) as i64
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
mod tests;
