//! Every feature of the contract lives: over all captures there are it takes at least two values, or says here why not.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use sensor::replay::{ExtractOptions, run};
use sensor_common::features::FEATURES;
use sensor_common::packet::Options;
use sensor_tests::parity::captures;

/// Features that captures cannot move, in the contract's order, and why.
const STILL: [(&str, &str); 3] = [
    ("first_1_iat", "nothing comes before the first frame: 0"),
    ("lost_updates", "native code never finds a record locked"),
    ("table_pressure", "native code has no buckets"),
];

/// Of each column, its name, its first value, and whether another one came.
type Seen = Vec<(String, Option<String>, bool)>;

/// Takes CSV and keeps no row.
#[derive(Clone, Default)]
struct Columns(Arc<Mutex<(Seen, Vec<u8>)>>);

impl Write for Columns {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = self.0.lock().expect("one thread");
        let (seen, rest) = &mut *inner;
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            rest.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                row(seen, std::str::from_utf8(rest).expect("text").trim_end());
                rest.clear();
            }
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn row(seen: &mut Seen, line: &str) {
    if seen.is_empty() {
        *seen = line.split(',').map(|name| (name.to_owned(), None, false)).collect();
        return;
    }
    for ((_, first, moved), value) in seen.iter_mut().zip(line.split(',')) {
        match first {
            None => *first = Some(value.to_owned()),
            Some(first) => *moved |= first != value,
        }
    }
}

#[test]
fn every_feature_takes_two_values() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = std::env::var_os("SENSOR_CAPTURES").map_or_else(|| here.join("../../shared/captures"), PathBuf::from);
    let mut files = captures(&[here.join("golden/captures")]).expect("captures of the project");
    let many = folder.is_dir();
    if many {
        files.extend(captures(&[folder]).expect("a folder of captures"));
    }
    let columns = Columns::default();
    let options = ExtractOptions { captures: files, parser: Options::ALL, ..ExtractOptions::default() };
    // Files that are no captures, or damaged ones, are an error at the end.
    let _ = run(&options, Box::new(columns.clone()), &mut io::sink());
    let inner = columns.0.lock().expect("one thread");
    let moved: HashMap<&str, bool> = inner.0.iter().map(|(name, _, moved)| (&name[..], *moved)).collect();
    let still: Vec<&str> = FEATURES.iter().map(|feature| feature.name).filter(|name| !moved[name]).collect();
    if !many {
        println!("no captures but those of tests/golden: {} features are not moved by them: {still:?}", still.len());
        assert!(still.len() < FEATURES.len() / 2, "{still:?}");
        return;
    }
    // Both ways: what has come to life does not stay on the list.
    let known = STILL.map(|(name, _)| name);
    assert_eq!(still, known, "features (left) with one value in every row of {} captures", options.captures.len());
}
