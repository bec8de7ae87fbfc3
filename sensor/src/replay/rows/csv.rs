//! Comma-separated values (RFC 4180, but with line feeds alone): a header, then a line a row. Missing is nothing.

use std::io::Write;

use anyhow::{Context, Result};

use super::{BUFFER, Rows, number};
use crate::replay::view::Column;

/// A CSV file that is being written.
pub(in crate::replay) struct Csv<'a> {
    output: Box<dyn Write + Send + 'a>,
    text: Vec<u8>,
}

impl<'a> Csv<'a> {
    pub(super) fn new(columns: &[Column], output: Box<dyn Write + Send + 'a>) -> Csv<'a> {
        let mut csv = Csv { output, text: Vec::with_capacity(BUFFER + (BUFFER >> 2)) };
        for column in columns {
            csv.text(column.name);
        }
        csv.line();
        csv
    }

    /// Turns the comma behind the last cell into a line feed.
    fn line(&mut self) {
        if let Some(last) = self.text.last_mut() {
            *last = b'\n';
        }
    }
}

impl Rows for Csv<'_> {
    fn text(&mut self, value: &str) {
        if value.bytes().any(|byte| matches!(byte, b',' | b'"' | b'\n' | b'\r')) {
            self.text.push(b'"');
            self.text.extend_from_slice(value.replace('"', "\"\"").as_bytes());
            self.text.push(b'"');
        } else {
            self.text.extend_from_slice(value.as_bytes());
        }
        self.text.push(b',');
    }

    #[inline]
    fn integer(&mut self, value: i64) {
        number::integer(&mut self.text, value);
        self.text.push(b',');
    }

    #[inline]
    fn float(&mut self, value: f64) {
        if value.is_finite() {
            number::float(&mut self.text, value);
        }
        self.text.push(b',');
    }

    #[inline]
    fn missing(&mut self) {
        self.text.push(b',');
    }

    fn end(&mut self) -> Result<()> {
        self.line();
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
