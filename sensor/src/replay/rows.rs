//! Rows of a table in a file format. A view writes its cells in the order of its columns; a format gives them a form.
//!
//! Missing is not zero and has a form of its own: nothing in CSV, `null` in JSON, null in Parquet. Memory is bounded:
//! CSV and JSON hold [`BUFFER`] bytes, Parquet a row group. Called by [`super::export`].

mod csv;
mod jsonl;
mod number;
mod parquet;

use std::io::Write;
use std::path::Path;

use anyhow::{Result, bail};
use clap::ValueEnum;

use super::view::Column;

pub(super) use self::csv::Csv;
pub(super) use self::jsonl::JsonLines;
pub(super) use self::parquet::Parquet;

/// Bytes of text that are collected before they are written.
const BUFFER: usize = 256 << 10;

/// A file format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Comma-separated values with a header (RFC 4180)
    #[default]
    Csv,
    /// Apache Parquet
    Parquet,
    /// One JSON object a line
    Jsonl,
}

impl Format {
    /// The format of a file, by the ending of its name; CSV without one.
    ///
    /// # Errors
    /// If the ending is that of no format.
    pub fn of(path: Option<&Path>) -> Result<Format> {
        let Some(path) = path else { return Ok(Format::Csv) };
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
        Ok(match ending.as_deref() {
            None | Some("csv") => Format::Csv,
            Some("parquet" | "pq") => Format::Parquet,
            Some("jsonl" | "ndjson" | "json") => Format::Jsonl,
            Some(_) if !path.is_file() && path.exists() => Format::Csv,
            Some(other) => bail!(
                "{}: the ending .{other} is that of no format (.csv, .parquet, .jsonl): name one with --format",
                path.display()
            ),
        })
    }
}

/// Takes the cells of a row, one after the other, in the order of the columns.
pub(super) trait Rows {
    /// A text.
    fn text(&mut self, value: &str);
    /// A whole number.
    fn integer(&mut self, value: i64);
    /// A number; NaN is missing.
    fn float(&mut self, value: f64);
    /// No value.
    fn missing(&mut self);
    /// Ends the row.
    fn end(&mut self) -> Result<()>;
    /// Hands over what is collected, as far as the format can.
    fn flush(&mut self) -> Result<()>;
    /// Ends the file.
    fn finish(&mut self) -> Result<()>;
}

/// Starts a file with these columns.
pub(super) fn start<'a>(
    format: Format,
    columns: &[Column],
    output: Box<dyn Write + Send + 'a>,
    about: &[(&str, String)],
) -> Result<Writer<'a>> {
    Ok(match format {
        Format::Csv => Writer::Csv(Csv::new(columns, output)),
        Format::Jsonl => Writer::JsonLines(JsonLines::new(columns, output)),
        Format::Parquet => Writer::Parquet(Parquet::new(columns, output, about)?),
    })
}

/// A file that is being written. (An enum, not a trait object: a row has hundreds of cells.)
pub(super) enum Writer<'a> {
    Csv(Csv<'a>),
    JsonLines(JsonLines<'a>),
    Parquet(Parquet<'a>),
}
