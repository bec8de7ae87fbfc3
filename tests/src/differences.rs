//! What two records differ in, by the names of their fields.
//!
//! The names come from the derived `Debug`, which prints every field there is: a new field is compared, and named, without
//! anybody thinking of it. Used wherever records of two paths are held against each other.

use std::fmt::Debug;

use sensor::bpf::load::ContextTables;
use sensor::context::HostNotes;
use sensor_common::context::Set;
use sensor_common::flow::{FlowRecord, state};

/// The parts of a record that are valid, without the kernel's own words: what all paths must agree on.
#[must_use]
pub fn comparable(record: &FlowRecord) -> FlowRecord {
    let mut record = record.normalized();
    record.sequence = 0;
    record.generation = 0;
    record.verdict = 0;
    // The host has no buckets.
    record.state &= (1 << state::WAYS_SHIFT) - 1;
    record
}

/// One field in which two values differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The field, as in `directions[1].flags[3]`.
    pub field: String,
    /// Its value in the first.
    pub left: String,
    /// Its value in the second.
    pub right: String,
}

/// The fields of two records that differ, in the order of their declaration; none if the records agree.
#[must_use]
pub fn differences(left: &FlowRecord, right: &FlowRecord) -> Vec<Difference> {
    let (left, right) = (comparable(left), comparable(right));
    if left == right { Vec::new() } else { fields_that_differ(&left, &right) }
}

/// The entries of the programs' host context that were compared with the host's, and the fields that differ.
#[must_use]
pub fn context_differences(kernel: Option<&ContextTables>, native: &HostNotes) -> (u64, Vec<Difference>) {
    let difference =
        |field: String, left: &str, right: &str| Difference { field, left: left.into(), right: right.into() };
    let Some(ContextTables { sources, services }) = kernel else {
        return (0, vec![difference("(tables)".to_owned(), "absent", "present")]);
    };
    let (mut entries, mut found) = (0, Vec::new());
    let (native_sources, native_services) = native.sets();
    for (what, kernel, native) in [("source", sources, native_sources), ("service", services, native_services)] {
        for (number, native) in native.iter().enumerate() {
            let Some(kernel) = kernel.copy(number) else {
                found.push(difference(format!("{what} set {number}"), "being written", "present"));
                continue;
            };
            let kernel = Set { sequence: 0, ..kernel };
            entries += native.tags.iter().filter(|tag| **tag != 0).count() as u64;
            if kernel != *native {
                let fields = fields_that_differ(&kernel, native);
                found.extend(
                    fields
                        .into_iter()
                        .map(|one| Difference { field: format!("{what} set {number}: {}", one.field), ..one }),
                );
            }
        }
    }
    (entries, found)
}

/// The same for any two values of a type whose `Debug` is derived.
#[must_use]
pub fn fields_that_differ<T: Debug>(left: &T, right: &T) -> Vec<Difference> {
    let (left, right) = (leaves(left), leaves(right));
    let mut found: Vec<Difference> = left
        .iter()
        .zip(&right)
        .filter(|(left, right)| left != right)
        .map(|(left, right)| Difference { field: left.0.clone(), left: left.1.clone(), right: right.1.clone() })
        .collect();
    if left.len() != right.len() {
        let [left, right] = [&left, &right].map(|leaves| format!("{} values", leaves.len()));
        found.push(Difference { field: "(shape)".to_owned(), left, right });
    }
    found
}

/// Every leaf of a value's pretty `Debug` text with the path to it.
fn leaves(value: &impl Debug) -> Vec<(String, String)> {
    let text = format!("{value:#?}");
    let mut leaves = Vec::new();
    // One entry per bracket that is open: its name, and the position of the next element if it is a list.
    let mut path: Vec<(String, Option<usize>)> = Vec::new();
    for line in text.lines().map(|line| line.trim().trim_end_matches(',')) {
        if matches!(line, "}" | "]" | ")") {
            path.pop();
            continue;
        }
        let position = path.last_mut().and_then(|(_, next)| {
            let position = (*next)?;
            *next = Some(position + 1);
            Some(position)
        });
        let (name, value) = match (line.split_once(": "), position) {
            (_, Some(position)) => (format!("[{position}]"), line),
            (Some((name, value)), None) => (name.to_owned(), value),
            (None, None) => (String::new(), line),
        };
        match value.as_bytes().last() {
            Some(b'{') => path.push((name, None)),
            Some(b'[' | b'(') => path.push((name, Some(0))),
            _ => {
                leaves.push((join(path.iter().map(|(name, _)| name.as_str()).chain([name.as_str()])), value.to_owned()))
            }
        }
    }
    leaves
}

fn join<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut path = String::new();
    for name in names.filter(|name| !name.is_empty()) {
        if !path.is_empty() && !name.starts_with('[') {
            path.push('.');
        }
        path += name;
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_a_record_is_named() {
        let zero = FlowRecord::zeroed();
        let ones: FlowRecord = bytemuck::cast([u64::MAX; size_of::<FlowRecord>() / 8]);
        let all = fields_that_differ(&zero, &ones);
        let bytes: usize =
            all.iter().map(|one| one.right.parse::<u64>().map_or(0, |value| value.ilog2() as usize / 8 + 1)).sum();
        // Every byte of the record is in a field that was printed.
        assert_eq!(bytes, size_of::<FlowRecord>());
        let named = |field: &str| all.iter().any(|one| one.field == field);
        for field in ["key.low[3]", "directions[1].flags[5]", "first[15].direction", "first_ns"] {
            assert!(named(field), "{field}");
        }
    }

    #[test]
    fn what_is_not_valid_is_not_compared() {
        let (mut left, mut right) = (FlowRecord::zeroed(), FlowRecord::zeroed());
        left.directions[1].packets = 7;
        right.first[3].flags = 1;
        right.generation = 9;
        assert_eq!(differences(&left, &right), []);
        right.directions[0].l3_max = 40;
        let expected =
            Difference { field: "directions[0].l3_max".to_owned(), left: "0".to_owned(), right: "40".to_owned() };
        assert_eq!(differences(&left, &right), [expected]);
    }
}
