//! The file formats, read back by readers that are not ours.

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;

use super::*;
use crate::replay::rows::{self, Rows};

/// Rows of the conversation in a format.
fn rows_in(format: Format) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("a \"quoted\", one.pcap");
    std::fs::write(&path, pcap(&conversation(), false, true, 1)).expect("write");
    let options =
        ExtractOptions { captures: vec![path], snapshots: vec![2], format: Some(format), ..ExtractOptions::default() };
    let mut output = Vec::new();
    run(&options, Box::new(&mut output), &mut io::sink()).expect("rows");
    output
}

/// Name and value of each cell: an empty text where it is missing.
fn csv_cells() -> Vec<Vec<(String, String)>> {
    let text = rows_in(Format::Csv);
    let mut reader = csv::Reader::from_reader(&text[..]);
    let names = reader.headers().expect("header").clone();
    let cells = |row: csv::StringRecord| {
        names.iter().zip(row.iter()).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    reader.records().map(|row| cells(row.expect("row"))).collect()
}

/// The folder of the capture differs between two runs.
fn without_folder(value: &str) -> &str {
    value.rsplit('/').next().unwrap_or(value)
}

#[test]
fn json_lines_hold_what_csv_holds() {
    let text = rows_in(Format::Jsonl);
    let text = std::str::from_utf8(&text).expect("UTF-8");
    let expected = csv_cells();
    assert_eq!((text.lines().count(), expected.len()), (2, 2));
    for (line, expected) in text.lines().zip(expected) {
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).expect("an object");
        assert_eq!(object.len(), expected.len());
        for (name, cell) in expected {
            match &object[&name] {
                serde_json::Value::Null => assert_eq!(cell, "", "{name}"),
                serde_json::Value::String(text) => assert_eq!(without_folder(text), without_folder(&cell), "{name}"),
                serde_json::Value::Number(number) => {
                    // The JSON reader rounds its last digit.
                    let (found, expected) = (number.as_f64().expect("number"), cell.parse::<f64>().expect("number"));
                    assert!((found - expected).abs() <= expected.abs() * f64::EPSILON, "{name}: {found} {expected}");
                }
                other => panic!("{name}: {other}"),
            }
        }
    }
}

#[test]
fn parquet_holds_what_csv_holds() {
    let reader = SerializedFileReader::new(bytes::Bytes::from(rows_in(Format::Parquet))).expect("a Parquet file");
    let about = reader.metadata().file_metadata();
    let keys = about.key_value_metadata().expect("metadata");
    assert!(keys.iter().any(|pair| pair.key == "sensor.contract_hash"), "{keys:?}");
    let expected = csv_cells();
    let rows: Vec<_> = reader.get_row_iter(None).expect("rows").map(|row| row.expect("row")).collect();
    assert_eq!(rows.len(), expected.len());
    let (mut texts, mut integers, mut floats, mut missing) = (0, 0, 0, 0);
    for (row, expected) in rows.iter().zip(expected) {
        assert_eq!(row.len(), expected.len());
        for ((name, field), (expected_name, cell)) in row.get_column_iter().zip(expected) {
            assert_eq!(*name, expected_name);
            match field {
                Field::Null => {
                    missing += 1;
                    assert_eq!(cell, "", "{name}");
                }
                Field::Str(text) => {
                    texts += 1;
                    assert_eq!(without_folder(text), without_folder(&cell), "{name}");
                }
                Field::Long(number) => {
                    integers += 1;
                    assert_eq!(number.to_string(), cell, "{name}");
                }
                Field::Double(number) => {
                    floats += 1;
                    assert_eq!(Some(*number), cell.parse().ok(), "{name}");
                }
                other => panic!("{name}: {other}"),
            }
        }
    }
    assert!(texts > 5 && integers > 50 && floats > 10 && missing > 5, "{texts} {integers} {floats} {missing}");
}

#[test]
fn the_ending_names_the_format() {
    for (name, format) in [
        ("a.csv", Format::Csv),
        ("a", Format::Csv),
        ("a.PARQUET", Format::Parquet),
        ("a.b.jsonl", Format::Jsonl),
        ("/dev/null", Format::Csv),
    ] {
        assert_eq!(Format::of(Some(Path::new(name))).expect(name), format, "{name}");
    }
    Format::of(Some(Path::new("a.txt"))).expect_err("no format");
}

#[test]
fn what_is_no_number_is_missing_in_parquet() {
    let columns: Vec<_> = View::Sensor.columns().into_iter().filter(|column| column.name == "duration").collect();
    let mut file = Vec::new();
    let rows::Writer::Parquet(mut parquet) =
        rows::start(Format::Parquet, &columns, Box::new(&mut file), &[]).expect("a writer")
    else {
        panic!("another format");
    };
    for value in [f64::INFINITY, 1.5, f64::NEG_INFINITY, f64::NAN] {
        parquet.float(value);
        parquet.end().expect("memory");
    }
    parquet.finish().expect("memory");
    drop(parquet);
    let reader = SerializedFileReader::new(bytes::Bytes::from(file)).expect("a Parquet file");
    let found: Vec<_> = reader
        .get_row_iter(None)
        .expect("rows")
        .map(|row| row.expect("row").get_column_iter().next().expect("a column").1.clone())
        .collect();
    assert_eq!(found, [Field::Null, Field::Double(1.5), Field::Null, Field::Null]);
}
