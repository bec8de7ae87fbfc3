//! Views: which columns a row has, and what of a flow stands in them.
//!
//! A view is a list of [`Column`]s over the same record, and the rules by which its tool ends flows. Called by
//! [`super::export`]; [`View::columns`] is also what docs/views.md is made of.

mod cicflowmeter;
mod figures;
mod nfstream;
mod sensor;
#[cfg(test)]
mod tests;

use std::fmt::Write;

use clap::ValueEnum;
use sensor_common::context::HostContext;
use sensor_common::features::{Feature, Sample};
use sensor_common::flow::FlowRecord;

use super::export::Endpoint;
use super::labels::Labels;
use super::rows::Rows;
use super::table::{Reason, Timeouts};

/// A set of columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum View {
    /// The feature contract: what models are given
    #[default]
    Sensor,
    /// CICFlowMeter's columns, with the meaning that their names promise
    #[value(name = "cicflowmeter")]
    CicFlowMeter,
    /// NFStream's columns, and its rules for the end of a flow
    #[value(name = "nfstream")]
    NfStream,
}

impl View {
    /// The columns, in order.
    pub fn columns(self) -> Vec<Column> {
        match self {
            View::Sensor => sensor::columns(),
            View::CicFlowMeter => cicflowmeter::COLUMNS.to_vec(),
            View::NfStream => nfstream::columns(),
        }
    }

    /// When flows end, unless the command line says otherwise.
    pub fn timeouts(self) -> Timeouts {
        match self {
            View::Sensor => Timeouts::default(),
            View::CicFlowMeter => cicflowmeter::timeouts(),
            View::NfStream => nfstream::timeouts(),
        }
    }
}

/// Type of a column's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text, UTF-8.
    Text,
    /// Whole numbers, 64 bits, signed.
    Integer,
    /// Numbers, double precision.
    Float,
}

/// One column of a view.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Name.
    pub name: &'static str,
    /// Unit of the values, "" for text.
    pub unit: &'static str,
    /// Exact definition.
    pub definition: &'static str,
    /// Where it differs from what the tool of that name writes, and why; "" where it does not.
    pub differs: &'static str,
    /// Where the value comes from.
    pub(super) value: Value,
}

/// How a column's value is taken from a row.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    /// Appends to an empty text.
    Text(fn(&Row<'_>, &mut String)),
    /// `None` is missing.
    Integer(fn(&Row<'_>) -> Option<i64>),
    /// NaN is missing.
    Float(fn(&Row<'_>) -> f64),
    /// A feature whose values are whole numbers.
    Whole(&'static Feature),
    /// Any other feature.
    Real(&'static Feature),
    /// A text that is always missing.
    Never,
}

impl Column {
    /// The same column, which differs from that of its tool.
    const fn differs(self, differs: &'static str) -> Column {
        Column { differs, ..self }
    }

    /// Type of the values.
    pub fn kind(&self) -> Kind {
        match self.value {
            Value::Text(_) | Value::Never => Kind::Text,
            Value::Integer(_) | Value::Whole(_) => Kind::Integer,
            Value::Float(_) | Value::Real(_) => Kind::Float,
        }
    }
}

const fn text(name: &'static str, definition: &'static str, get: fn(&Row<'_>, &mut String)) -> Column {
    Column { name, unit: "", definition, differs: "", value: Value::Text(get) }
}

const fn integer(
    name: &'static str,
    unit: &'static str,
    definition: &'static str,
    get: fn(&Row<'_>) -> Option<i64>,
) -> Column {
    Column { name, unit, definition, differs: "", value: Value::Integer(get) }
}

const fn float(name: &'static str, unit: &'static str, definition: &'static str, get: fn(&Row<'_>) -> f64) -> Column {
    Column { name, unit, definition, differs: "", value: Value::Float(get) }
}

/// Appends a value's text to another; writing to memory does not fail.
fn put(text: &mut String, value: impl std::fmt::Display) {
    let _infallible = write!(text, "{value}");
}

/// What the columns of a row are taken from.
pub(super) struct Row<'a> {
    /// Number of the row, from 0.
    pub(super) number: u64,
    /// The capture, as it was named.
    pub(super) capture: &'a str,
    /// Its file name without the folder.
    pub(super) file: &'a str,
    /// The flow.
    pub(super) record: &'a FlowRecord,
    /// What goes on around it.
    pub(super) context: &'a HostContext,
    /// Why the row is written.
    pub(super) reason: Reason,
    /// The flow's initiator.
    pub(super) source: Endpoint,
    /// The flow's responder.
    pub(super) destination: Endpoint,
    /// Rules for the label.
    pub(super) labels: &'a Labels,
}

impl Row<'_> {
    fn sample(&self) -> Sample<'_> {
        Sample { record: self.record, context: self.context }
    }

    /// The flow's label, "" without one.
    fn label(&self) -> &str {
        self.labels.of(self.file, self.source.address, self.record.key.protocol)
    }
}

/// Writes one row. `text` is scratch.
pub(super) fn write(columns: &[Column], row: &Row<'_>, text: &mut String, rows: &mut impl Rows) {
    for column in columns {
        match column.value {
            Value::Text(get) => {
                text.clear();
                get(row, text);
                // There is no empty text that says anything.
                if text.is_empty() { rows.missing() } else { rows.text(text) }
            }
            Value::Integer(get) => match get(row) {
                Some(value) => rows.integer(value),
                None => rows.missing(),
            },
            Value::Float(get) => rows.float(get(row)),
            Value::Whole(feature) => {
                let value = feature.value(&row.sample());
                if value.is_nan() { rows.missing() } else { rows.integer(value as i64) }
            }
            Value::Real(feature) => rows.float(feature.value(&row.sample())),
            Value::Never => rows.missing(),
        }
    }
}
