//! The columns that say which flow a row is of and when it was seen: texts and integers too large for a model's floats.
//!
//! They are part of the contract and of [`super::contract_hash`], never inputs of a model: no [`super::Feature`] has
//! their names, so a model that asks for one is refused. Declared here, filled where rows are written.

/// Type of a column's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnKind {
    /// Text, UTF-8.
    Text,
    /// Whole numbers, 64 bits.
    Integer,
}

impl ColumnKind {
    /// The name in documents.
    pub const fn name(self) -> &'static str {
        match self {
            ColumnKind::Text => "text",
            ColumnKind::Integer => "integer",
        }
    }
}

/// One column that is not for models.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Name: the column in exports.
    pub name: &'static str,
    /// Type of the values.
    pub kind: ColumnKind,
    /// Unit of the values, "" for text.
    pub unit: &'static str,
    /// Group of the contract.
    pub group: &'static str,
    /// Exact definition.
    pub definition: &'static str,
    /// When there is no value: an empty text, or no number.
    pub missing: &'static str,
}

const fn text(name: &'static str, group: &'static str, definition: &'static str, missing: &'static str) -> Column {
    Column { name, kind: ColumnKind::Text, unit: "", group, definition, missing }
}

const fn integer(
    name: &'static str,
    unit: &'static str,
    group: &'static str,
    definition: &'static str,
    missing: &'static str,
) -> Column {
    Column { name, kind: ColumnKind::Integer, unit, group, definition, missing }
}

const NEVER: &str = "never";

/// Every such column, in the order of exports, where they stand in front of the features.
pub const COLUMNS: &[Column] = &[
    text("capture", "row", "the capture, as it was named", "the flow is of no capture"),
    text("src", "identity", "address of the initiator, the innermost one in a tunnel", NEVER),
    integer("sport", "1", "identity", "port of the initiator (ICMP echo: the identifier, without ports 0)", NEVER),
    text("dst", "identity", "address of the responder, the innermost one in a tunnel", NEVER),
    integer("dport", "1", "identity", "port of the responder (ICMP echo: the identifier, without ports 0)", NEVER),
    text("protocol_name", "identity", "IP protocol: tcp, udp, icmp, icmpv6, sctp, else its number", NEVER),
    integer(
        "first_ns",
        "nanoseconds",
        "lifetime",
        "time of the first frame: live on the monotonic clock, in a replay that of the capture",
        NEVER,
    ),
    integer("packets", "packets", "volume", "wire packets of both directions", NEVER),
    text(
        "end",
        "lifetime",
        "why the row was written: snapshot (the flow goes on), fin (TCP, both FINs acknowledged before any RST), rst (TCP, \
         reset), idle or active (timeout), reopened (a SYN reused the ports of a closed connection), evicted (a new flow \
         needed the place), clock (the capture's clock went back by more than the idle timeout), end (of the capture), \
         shutdown (of the agent)",
        NEVER,
    ),
    text("label", "row", "label by the rules of --labels", "no rule labels the flow"),
    integer("vlan_outer", "1", "identity", "VLAN id (IEEE 802.1Q), the outer one of two", "no VLAN tag, or id 0"),
    integer("vlan_inner", "1", "identity", "VLAN id of the second tag", "no second VLAN tag, or id 0"),
    text(
        "encapsulation",
        "identity",
        "the innermost tunnel around the flow: none, gre, ipip (IP in IP, any versions), vxlan, geneve, gtp (GTP-U)",
        NEVER,
    ),
    integer(
        "tunnel_id",
        "1",
        "identity",
        "VXLAN or Geneve network identifier, or GRE key",
        "no tunnel, or one without an id, or id 0",
    ),
    integer("interface", "1", "identity", "index of the network interface that saw the first frame", "in a replay"),
    text(
        "community_id",
        "identity",
        "Community ID v1, seed 0, of the innermost addresses, protocol and ports; ICMP and ICMPv6: of type and code of the \
         flow's first message; protocols other than TCP, UDP, SCTP, ICMP and ICMPv6: without ports",
        NEVER,
    ),
    text(
        "initiator_known_by",
        "identity",
        "how the initiator is known: syn (a SYN or SYN-ACK came first) or first_packet (it sent the first packet)",
        NEVER,
    ),
    integer(
        "first_seen_ns",
        "nanoseconds",
        "lifetime",
        "time of the first frame since 1970, UTC, by the wall clock; in a replay that of the capture",
        NEVER,
    ),
    integer(
        "last_seen_ns",
        "nanoseconds",
        "lifetime",
        "time of the last frame so far since 1970, UTC, by the wall clock; in a replay that of the capture",
        NEVER,
    ),
    integer(
        "last_ns",
        "nanoseconds",
        "lifetime",
        "time of the last frame so far: live on the monotonic clock, in a replay that of the capture",
        NEVER,
    ),
    integer(
        "snapshot",
        "1",
        "lifetime",
        "0: the flow's last row; n: the n-th of the packet counts in --snapshots was reached, from 1",
        NEVER,
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::by_name;

    #[test]
    fn columns_are_declared_whole_and_are_no_features() {
        for (position, column) in COLUMNS.iter().enumerate() {
            let Column { name, kind, unit, group, definition, missing } = *column;
            assert!(by_name(name).is_none(), "{name} is a feature");
            assert!(COLUMNS[..position].iter().all(|other| other.name != name), "{name} twice");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert_eq!(unit.is_empty(), kind == ColumnKind::Text, "{name}");
            assert!([group, definition, missing].iter().all(|text| !text.is_empty()), "{name}");
        }
    }
}
