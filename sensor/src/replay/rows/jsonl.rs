//! JSON lines: one object a row, a member a column. Missing is `null`.

use std::io::Write;

use anyhow::{Context, Result};

use super::{BUFFER, Rows, number};
use crate::replay::view::Column;

/// A file of JSON lines that is being written.
pub(in crate::replay) struct JsonLines<'a> {
    output: Box<dyn Write + Send + 'a>,
    text: Vec<u8>,
    /// What stands before each value: `{"name":` or `,"name":`.
    names: Vec<String>,
    /// Column of the next value.
    column: usize,
}

impl<'a> JsonLines<'a> {
    pub(super) fn new(columns: &[Column], output: Box<dyn Write + Send + 'a>) -> JsonLines<'a> {
        let names = columns.iter().enumerate().map(|(position, column)| {
            let before = if position == 0 { '{' } else { ',' };
            format!("{before}{}:", serde_json::Value::from(column.name))
        });
        JsonLines { output, text: Vec::with_capacity(BUFFER + (BUFFER >> 2)), names: names.collect(), column: 0 }
    }

    fn name(&mut self) {
        if let Some(name) = self.names.get(self.column) {
            self.text.extend_from_slice(name.as_bytes());
        }
        self.column += 1;
    }
}

impl Rows for JsonLines<'_> {
    fn text(&mut self, value: &str) {
        self.name();
        // Writing to memory does not fail.
        let _infallible = serde_json::to_writer(&mut self.text, value);
    }

    #[inline]
    fn integer(&mut self, value: i64) {
        self.name();
        number::integer(&mut self.text, value);
    }

    #[inline]
    fn float(&mut self, value: f64) {
        if value.is_finite() {
            self.name();
            number::float(&mut self.text, value);
        } else {
            self.missing();
        }
    }

    fn missing(&mut self) {
        self.name();
        self.text.extend_from_slice(b"null");
    }

    fn end(&mut self) -> Result<()> {
        self.text.extend_from_slice(b"}\n");
        self.column = 0;
        if self.text.len() < BUFFER { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<()> {
        self.output.write_all(&self.text).context("write the rows")?;
        self.text.clear();
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.flush()?;
        self.output.flush().context("write the rows")
    }
}
