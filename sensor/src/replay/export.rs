//! Rows of flows: a view's columns in a file format. Called by [`super::run`].

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use sensor_common::features::{CONTRACT_VERSION, Sample, contract_hash};
use sensor_common::flow::{FlowKey, FlowRecord, state};

use super::labels::Labels;
use super::rows::{self, Format, Rows, Writer};
use super::table::Reason;
use super::view::{self, Column, Row, View};

/// One end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Address.
    pub address: IpAddr,
    /// Port, 0 without ports, the identifier for ICMP echo.
    pub port: u16,
}

/// Initiator and responder of a flow.
pub fn endpoints(record: &FlowRecord) -> (Endpoint, Endpoint) {
    let FlowKey {
        low,
        high,
        low_port,
        high_port,
        protocol: _,
        family,
        encapsulation: _,
        reserved: _,
        vlans: _,
        tunnel: _,
    } = record.key;
    let low = Endpoint { address: address(family, low), port: low_port };
    let high = Endpoint { address: address(family, high), port: high_port };
    if record.state & state::INITIATOR_HIGH == 0 { (low, high) } else { (high, low) }
}

fn address(family: u8, words: [u32; 4]) -> IpAddr {
    if family == 4 {
        return Ipv4Addr::from(words[0]).into();
    }
    Ipv6Addr::from(words.iter().fold(0u128, |bits, word| bits << 32 | *word as u128)).into()
}

/// Writes rows.
pub(super) struct Export<'a> {
    writer: Writer<'a>,
    columns: Vec<Column>,
    labels: Labels,
    /// One text, reused.
    text: String,
    rows: u64,
}

impl<'a> Export<'a> {
    /// Starts the file.
    pub(super) fn new(
        view: View,
        format: Format,
        output: Box<dyn Write + Send + 'a>,
        labels: Labels,
    ) -> Result<Export<'a>> {
        let columns = view.columns();
        let about =
            [("sensor.contract_version", CONTRACT_VERSION.to_string()), ("sensor.contract_hash", contract_hash())];
        let writer = rows::start(format, &columns, output, &about)?;
        Ok(Export { writer, columns, labels, text: String::with_capacity(64), rows: 0 })
    }

    /// Rows that were written.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Writes one record. `capture` is the path as it was given, `file` its last part.
    pub(super) fn row(&mut self, capture: &str, file: &str, sample: &Sample<'_>, reason: Reason) -> Result<()> {
        let Sample { record, context } = *sample;
        let Export { writer, columns, labels, text, rows } = self;
        let (source, destination) = endpoints(record);
        let row = Row { number: *rows, capture, file, record, context, reason, source, destination, labels };
        *rows += 1;
        match writer {
            Writer::Csv(csv) => put(columns, &row, text, csv),
            Writer::JsonLines(lines) => put(columns, &row, text, lines),
            Writer::Parquet(parquet) => put(columns, &row, text, parquet),
        }
    }

    /// Hands over what is collected, as far as the format can.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.rows_mut().flush()
    }

    /// Ends the file.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.rows_mut().finish()
    }

    fn rows_mut(&mut self) -> &mut dyn Rows {
        match &mut self.writer {
            Writer::Csv(csv) => csv,
            Writer::JsonLines(lines) => lines,
            Writer::Parquet(parquet) => parquet,
        }
    }
}

fn put(columns: &[Column], row: &Row<'_>, text: &mut String, rows: &mut impl Rows) -> Result<()> {
    view::write(columns, row, text, rows);
    rows.end()
}
