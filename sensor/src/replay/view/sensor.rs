//! The view `sensor`: the whole contract. First [`COLUMNS`] (who, when, why the row was written, its label), then the
//! features.

use sensor_common::features::{COLUMNS, FEATURES, Feature};
use sensor_common::flow::{FlowRecord, state};
use sensor_common::packet::{Encapsulation, protocol};

use super::{Column, Row, Value, put};
use crate::community_id::community_id;
use crate::replay::table::Reason;

/// What stands in each of [`COLUMNS`], by name, in their order.
const VALUES: [(&str, Value); COLUMNS.len()] = [
    ("capture", Value::Text(|row, text| text.push_str(row.capture))),
    ("src", Value::Text(|row, text| put(text, row.source.address))),
    ("sport", Value::Integer(|row| Some(row.source.port.into()))),
    ("dst", Value::Text(|row, text| put(text, row.destination.address))),
    ("dport", Value::Integer(|row| Some(row.destination.port.into()))),
    ("protocol_name", Value::Text(protocol_name)),
    ("first_ns", Value::Integer(|row| Some(row.record.first_ns as i64))),
    ("packets", Value::Integer(|row| Some(row.record.packets() as i64))),
    ("end", Value::Text(|row, text| text.push_str(end(row.reason, row.record)))),
    ("label", Value::Text(|row, text| text.push_str(row.label()))),
    ("vlan_outer", Value::Integer(|row| id(row.record.key.vlans[0].into()))),
    ("vlan_inner", Value::Integer(|row| id(row.record.key.vlans[1].into()))),
    ("encapsulation", Value::Text(encapsulation)),
    ("tunnel_id", Value::Integer(|row| id(row.record.key.tunnel))),
    ("interface", Value::Integer(|row| id(row.record.ifindex))),
    ("community_id", Value::Text(|row, text| text.push_str(&community_id(row.record)))),
    ("initiator_known_by", Value::Text(initiator_known_by)),
    // The record's clock is the capture's here.
    ("first_seen_ns", Value::Integer(|row| Some(row.record.first_ns as i64))),
    ("last_seen_ns", Value::Integer(|row| Some(row.record.last_ns as i64))),
    ("last_ns", Value::Integer(|row| Some(row.record.last_ns as i64))),
    ("snapshot", Value::Integer(|row| Some(snapshot(row.reason)))),
];

pub(super) fn columns() -> Vec<Column> {
    let feature = |feature: &'static Feature| Column {
        name: feature.name,
        unit: feature.unit,
        definition: feature.definition,
        differs: "",
        value: if feature.whole { Value::Whole(feature) } else { Value::Real(feature) },
    };
    let declared = COLUMNS.iter().zip(VALUES).map(|(column, (_, value))| Column {
        name: column.name,
        unit: column.unit,
        definition: column.definition,
        differs: "",
        value,
    });
    declared.chain(FEATURES.iter().map(feature)).collect()
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

/// A number where 0 stands for none.
fn id(number: u32) -> Option<i64> {
    (number != 0).then_some(number.into())
}

/// The name of a reason; of a connection that TCP closed, by what.
fn end(reason: Reason, record: &FlowRecord) -> &'static str {
    match reason {
        Reason::Closed if record.state & state::GRACEFUL != 0 => "fin",
        Reason::Closed if record.state & state::RST != 0 => "rst",
        _ => reason.name(),
    }
}

fn snapshot(reason: Reason) -> i64 {
    match reason {
        Reason::Snapshot(number) => number.into(),
        _ => 0,
    }
}

fn encapsulation(row: &Row<'_>, text: &mut String) {
    let number = row.record.key.encapsulation;
    let found = Encapsulation::TUNNELS.into_iter().find(|tunnel| *tunnel as u8 == number);
    text.push_str(found.unwrap_or(Encapsulation::None).name());
}

fn initiator_known_by(row: &Row<'_>, text: &mut String) {
    let by_syn = row.record.state & state::INITIATOR_BY_SYN != 0;
    text.push_str(if by_syn { "syn" } else { "first_packet" });
}

#[cfg(test)]
mod tests {
    use sensor_common::features::ColumnKind;

    use super::*;
    use crate::replay::view::Kind;

    #[test]
    fn values_are_those_of_the_declared_columns() {
        for ((declared, (name, _)), column) in COLUMNS.iter().zip(VALUES).zip(columns()) {
            let kind = match declared.kind {
                ColumnKind::Text => Kind::Text,
                ColumnKind::Integer => Kind::Integer,
            };
            assert_eq!((declared.name, kind), (name, column.kind()));
        }
        assert_eq!(columns().len(), COLUMNS.len() + FEATURES.len());
    }

    #[test]
    fn a_closed_connection_ended_by_fin_or_by_reset() {
        let of = |bits| end(Reason::Closed, &FlowRecord { state: bits, ..FlowRecord::zeroed() });
        assert_eq!(of(state::CLOSED | state::GRACEFUL), "fin");
        assert_eq!(of(state::CLOSED | state::RST), "rst");
        assert_eq!(of(state::CLOSED | state::GRACEFUL | state::RST), "fin", "it was over before the reset");
        let open = FlowRecord { state: state::CLOSED | state::RST, ..FlowRecord::zeroed() };
        assert_eq!((end(Reason::Idle, &open), snapshot(Reason::Snapshot(3))), ("idle", 3));
    }
}
