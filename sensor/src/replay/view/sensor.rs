//! The view `sensor`: who, when, why the row was written, its label, then the whole feature contract.

use sensor_common::features::{FEATURES, Feature};
use sensor_common::packet::protocol;

use super::{Column, Row, Value, integer, put, text};

/// Columns in front of the features.
const IDENTITY: [Column; 10] = [
    text("capture", "the capture, as it was named", |row, text| text.push_str(row.capture)),
    text("src", "address of the initiator", |row, text| put(text, row.source.address)),
    integer("sport", "1", "port of the initiator, 0 without ports", |row| Some(row.source.port.into())),
    text("dst", "address of the responder", |row, text| put(text, row.destination.address)),
    integer("dport", "1", "port of the responder, 0 without ports", |row| Some(row.destination.port.into())),
    text("protocol_name", "IP protocol: tcp, udp, icmp, icmpv6, sctp, else its number", protocol_name),
    integer(
        "first_ns",
        "nanoseconds",
        "time of the first packet since the epoch of the capture (usually 1970, UTC)",
        |row| Some(row.record.first_ns as i64),
    ),
    integer("packets", "packets", "wire packets of both directions", |row| Some(row.record.packets() as i64)),
    text("end", "why the row was written: snapshot, or how the flow ended", |row, text| {
        text.push_str(row.reason.name())
    }),
    text("label", "label by the rules of --labels, empty without one", |row, text| {
        text.push_str(row.label());
    }),
];

pub(super) fn columns() -> Vec<Column> {
    let feature = |feature: &'static Feature| Column {
        name: feature.name,
        unit: feature.unit,
        definition: feature.definition,
        differs: "",
        value: if feature.whole { Value::Whole(feature) } else { Value::Real(feature) },
    };
    IDENTITY.into_iter().chain(FEATURES.iter().map(feature)).collect()
}

fn protocol_name(row: &Row<'_>, text: &mut String) {
    match row.record.key.protocol {
        protocol::ICMP => text.push_str("icmp"),
        protocol::TCP => text.push_str("tcp"),
        protocol::UDP => text.push_str("udp"),
        protocol::ICMPV6 => text.push_str("icmpv6"),
        protocol::SCTP => text.push_str("sctp"),
        number => put(text, number),
    }
}
