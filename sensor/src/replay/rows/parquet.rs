//! Parquet through the low-level column writers of the `parquet` crate (docs/decisions/0010): text as UTF-8, whole
//! numbers as 64-bit integers, others as doubles, missing as null; Snappy.
//!
//! Invariant: at most [`ROWS`] rows are in memory; they are a row group.

use std::io::{self, Write};
use std::sync::Arc;

use anyhow::{Context, Result};
use parquet::basic::{Compression, ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;

use super::Rows;
use crate::replay::view::{Column, Kind};

/// Rows in a row group.
const ROWS: usize = 8192;

type Output<'a> = Box<dyn Write + Send + 'a>;

/// A Parquet file that is being written.
pub(in crate::replay) struct Parquet<'a> {
    /// `None` once the file is closed.
    writer: Option<SerializedFileWriter<Output<'a>>>,
    cells: Vec<Cells>,
    /// Column of the next value.
    column: usize,
    rows: usize,
}

/// The values of one column; `present` has a 1 for each row that has one, else a 0.
struct Cells {
    present: Vec<i16>,
    values: Values,
}

enum Values {
    Text(Vec<ByteArray>),
    Integer(Vec<i64>),
    Float(Vec<f64>),
}

impl<'a> Parquet<'a> {
    pub(super) fn new(columns: &[Column], output: Output<'a>, about: &[(&str, String)]) -> Result<Parquet<'a>> {
        let fields = columns.iter().map(field).collect::<Result<Vec<_>>>()?;
        let schema = Type::group_type_builder("flows").with_fields(fields).build()?;
        let about = about.iter().map(|(key, value)| KeyValue::new((*key).to_owned(), value.clone())).collect();
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_created_by(concat!("sensor ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_key_value_metadata(Some(about))
            .build();
        let writer = SerializedFileWriter::new(output, Arc::new(schema), Arc::new(properties)).map_err(unwrapped)?;
        let cells = columns.iter().map(|column| Cells {
            present: Vec::new(),
            values: match column.kind() {
                Kind::Text => Values::Text(Vec::new()),
                Kind::Integer => Values::Integer(Vec::new()),
                Kind::Float => Values::Float(Vec::new()),
            },
        });
        Ok(Parquet { writer: Some(writer), cells: cells.collect(), column: 0, rows: 0 })
    }

    fn next(&mut self) -> Option<&mut Cells> {
        self.column += 1;
        self.cells.get_mut(self.column - 1)
    }

    /// Writes the row group.
    fn group(&mut self) -> Result<()> {
        let Some(writer) = self.writer.as_mut().filter(|_| self.rows > 0) else { return Ok(()) };
        self.rows = 0;
        let mut group = writer.next_row_group().map_err(unwrapped)?;
        for Cells { present, values } in &mut self.cells {
            let mut column = group.next_column().map_err(unwrapped)?.context("a column more than the schema has")?;
            match values {
                Values::Text(values) => {
                    column.typed::<ByteArrayType>().write_batch(values, Some(present), None).map_err(unwrapped)?;
                    values.clear();
                }
                Values::Integer(values) => {
                    column.typed::<Int64Type>().write_batch(values, Some(present), None).map_err(unwrapped)?;
                    values.clear();
                }
                Values::Float(values) => {
                    column.typed::<DoubleType>().write_batch(values, Some(present), None).map_err(unwrapped)?;
                    values.clear();
                }
            }
            column.close().map_err(unwrapped)?;
            present.clear();
        }
        group.close().map_err(unwrapped)?;
        Ok(())
    }
}

fn field(column: &Column) -> Result<Arc<Type>> {
    let physical = match column.kind() {
        Kind::Text => Physical::BYTE_ARRAY,
        Kind::Integer => Physical::INT64,
        Kind::Float => Physical::DOUBLE,
    };
    let mut builder = Type::primitive_type_builder(column.name, physical).with_repetition(Repetition::OPTIONAL);
    if column.kind() == Kind::Text {
        builder = builder.with_logical_type(Some(LogicalType::String)).with_converted_type(ConvertedType::UTF8);
    }
    Ok(Arc::new(builder.build()?))
}

/// The error of the output inside an error of the crate, so that a closed pipe is seen as one.
fn unwrapped(error: parquet::errors::ParquetError) -> anyhow::Error {
    match error {
        parquet::errors::ParquetError::External(inner) => match inner.downcast::<io::Error>() {
            Ok(error) => anyhow::Error::from(*error).context("write the rows"),
            Err(inner) => anyhow::anyhow!("write the rows: {inner}"),
        },
        other => anyhow::Error::from(other).context("write the rows"),
    }
}

impl Rows for Parquet<'_> {
    fn text(&mut self, value: &str) {
        if let Some(Cells { present, values: Values::Text(values) }) = self.next() {
            present.push(1);
            values.push(ByteArray::from(value));
        }
    }

    fn integer(&mut self, value: i64) {
        match self.next() {
            Some(Cells { present, values: Values::Integer(values) }) => {
                present.push(1);
                values.push(value);
            }
            Some(Cells { present, values: Values::Float(values) }) => {
                present.push(1);
                values.push(value as f64);
            }
            _ => {}
        }
    }

    fn float(&mut self, value: f64) {
        match self.next() {
            Some(Cells { present, .. }) if !value.is_finite() => present.push(0),
            Some(Cells { present, values: Values::Float(values) }) => {
                present.push(1);
                values.push(value);
            }
            Some(Cells { present, values: Values::Integer(values) }) => {
                present.push(1);
                values.push(value as i64);
            }
            _ => {}
        }
    }

    fn missing(&mut self) {
        if let Some(Cells { present, values: _ }) = self.next() {
            present.push(0);
        }
    }

    fn end(&mut self) -> Result<()> {
        self.column = 0;
        self.rows += 1;
        if self.rows < ROWS { Ok(()) } else { self.group() }
    }

    /// A row group is not cut short: small ones would make a large, slow file.
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.group()?;
        if let Some(writer) = self.writer.take() {
            let mut output = writer.into_inner().map_err(unwrapped)?;
            output.flush().context("write the rows")?;
        }
        Ok(())
    }
}
