//! Rows of features as CSV: who, when, why the row was written, its label, then the whole feature contract.
//!
//! Values are written in the shortest form that reads back to the same number, missing ones as nothing. Called by
//! [`super::extract`].

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use sensor_common::features::FEATURES;
use sensor_common::flow::{FlowKey, FlowRecord, state};
use sensor_common::packet::protocol;

use super::labels::Labels;
use super::table::Reason;

/// Columns in front of the features.
const IDENTITY: [&str; 10] =
    ["capture", "src", "sport", "dst", "dport", "protocol_name", "first_ns", "packets", "end", "label"];

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
    output: csv::Writer<Box<dyn Write + 'a>>,
    labels: Labels,
    /// One value, reused.
    text: Vec<u8>,
    rows: u64,
}

impl<'a> Export<'a> {
    /// Writes the header.
    pub(super) fn new(output: Box<dyn Write + 'a>, labels: Labels) -> Result<Export<'a>> {
        let mut output = csv::WriterBuilder::new().buffer_capacity(1 << 16).from_writer(output);
        let names = FEATURES.iter().map(|feature| feature.name);
        output.write_record(IDENTITY.into_iter().chain(names))?;
        Ok(Export { output, labels, text: Vec::with_capacity(64), rows: 0 })
    }

    /// Rows that were written.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Writes one record. `capture` is the path as it was given, `file` its last part.
    pub(super) fn row(&mut self, capture: &str, file: &str, record: &FlowRecord, reason: Reason) -> Result<()> {
        let (source, destination) = endpoints(record);
        self.output.write_field(capture)?;
        self.field(format_args!("{}", source.address))?;
        self.integer(source.port as u64)?;
        self.field(format_args!("{}", destination.address))?;
        self.integer(destination.port as u64)?;
        match protocol_name(record.key.protocol) {
            Some(name) => self.output.write_field(name)?,
            None => self.integer(record.key.protocol as u64)?,
        }
        self.integer(record.first_ns)?;
        self.integer(record.packets())?;
        self.output.write_field(reason.name())?;
        let label = self.labels.of(file, source.address, record.key.protocol);
        self.output.write_field(label)?;
        for feature in FEATURES {
            self.number((feature.value)(record))?;
        }
        // An empty record ends the row.
        self.output.write_record(None::<&[u8]>)?;
        self.rows += 1;
        Ok(())
    }

    /// Ends the file.
    pub(super) fn finish(&mut self) -> Result<()> {
        Ok(self.output.flush()?)
    }

    fn field(&mut self, value: std::fmt::Arguments<'_>) -> Result<()> {
        self.text.clear();
        self.text.write_fmt(value)?;
        Ok(self.output.write_field(&self.text)?)
    }

    /// Most values are small integers: their digits are a fifth of the cost of a general float's.
    fn number(&mut self, value: f64) -> Result<()> {
        if value.is_nan() {
            return Ok(self.output.write_field(b"")?);
        }
        if (0.0..9e15).contains(&value) && value.fract() == 0.0 {
            return self.integer(value as u64);
        }
        self.field(format_args!("{value}"))
    }

    fn integer(&mut self, mut value: u64) -> Result<()> {
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (value % 10) as u8;
            value /= 10;
            if value == 0 {
                break;
            }
        }
        Ok(self.output.write_field(&digits[at..])?)
    }
}

fn protocol_name(number: u8) -> Option<&'static str> {
    Some(match number {
        protocol::ICMP => "icmp",
        protocol::TCP => "tcp",
        protocol::UDP => "udp",
        protocol::ICMPV6 => "icmpv6",
        protocol::SCTP => "sctp",
        _ => return None,
    })
}
