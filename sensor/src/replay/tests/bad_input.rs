//! Captures that are cut, damaged or none, and outputs that cannot be written: each has an error that says so, and
//! what could be read is kept.

use super::*;

#[test]
fn a_cut_capture_keeps_what_was_read() {
    let file = pcap(&conversation(), false, true, 1);
    let found = extract_bytes(&file[..file.len() - 10], &[]);
    let text = format!("{:#}", found.result.as_ref().expect_err("cut short"));
    assert!(text.contains("at packet 7") && text.contains("cut short"), "{text}");
    assert_eq!(found.rows.len(), 1);
    assert_eq!(found.get(0, "packets"), "5");
    assert!(found.report.contains("6 packets = 5 in 1 flows + 1 not_ip"), "{}", found.report);
    for end in 0..file.len() {
        // Whatever the length, nothing panics and the packets balance (checked inside).
        let _outcome = extract_bytes(&file[..end], &[]);
    }
    let mut damaged = file;
    damaged[24 + 8..24 + 12].copy_from_slice(&[0xff; 4]);
    let text = format!("{:#}", extract_bytes(&damaged, &[]).result.expect_err("damaged"));
    assert!(text.contains("claims 4294967295 bytes"), "{text}");
}

#[test]
fn what_is_no_capture_is_said_so() {
    for (bytes, expected) in [
        (&b"#!/bin/sh\n"[..], "neither a pcap"),
        (b"", "is empty"),
        (b"abc", "too short"),
        (b"\x1f\x8b\x08\x00", "gzip"),
    ] {
        let text = format!("{:#}", extract_bytes(bytes, &[]).result.expect_err("no capture"));
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn an_output_is_never_overwritten() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (capture, output) = (folder.path().join("a.pcap"), folder.path().join("a.csv"));
    std::fs::write(&capture, pcap(&conversation(), false, true, 1)).expect("write");
    let options = ExtractOptions { captures: vec![capture], output: Some(output.clone()), ..ExtractOptions::default() };
    extract(&options).expect("a new file");
    let text = std::fs::read_to_string(&output).expect("rows");
    assert_eq!(text.lines().count(), 2);
    let error = extract(&options).expect_err("it exists now");
    assert!(format!("{error:#}").contains("exists: remove it, name another output, or use --force"), "{error:#}");
    assert_eq!(std::fs::read_to_string(&output).expect("rows"), text);
}

#[test]
fn an_output_appears_when_it_is_complete() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (capture, output) = (folder.path().join("a.pcap"), folder.path().join("a.csv"));
    std::fs::write(&capture, pcap(&conversation(), false, true, 1)).expect("write");
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(folder.path())
            .expect("folder")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort_unstable();
        names
    };
    let labels = Some(folder.path().join("no-labels.csv"));
    let mut options =
        ExtractOptions { captures: vec![capture.clone()], output: Some(output.clone()), labels, ..Default::default() };
    let error = extract(&options).expect_err("there are no labels");
    assert!(format!("{error:#}").contains("a.csv was not written"), "{error:#}");
    assert_eq!(names(), ["a.pcap"], "nothing is left behind");
    options.labels = None;
    options.captures.push(folder.path().join("missing.pcap"));
    let error = extract(&options).expect_err("the second capture is missing");
    assert!(format!("{error:#}").contains("missing.pcap: open the capture"), "{error:#}");
    assert_eq!(names(), ["a.csv", "a.pcap"], "what could be read is kept");
    options.captures.pop();
    options.force = true;
    options.snapshots = vec![1];
    extract(&options).expect("replaced");
    assert_eq!(std::fs::read_to_string(&output).expect("rows").lines().count(), 3);
}

#[test]
fn a_full_disk_is_an_error() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let capture = folder.path().join("a.pcap");
    std::fs::write(&capture, pcap(&conversation(), false, true, 1)).expect("write");
    for format in [Format::Csv, Format::Jsonl, Format::Parquet] {
        let options = ExtractOptions {
            captures: vec![capture.clone()],
            output: Some("/dev/full".into()),
            format: Some(format),
            ..ExtractOptions::default()
        };
        let text = format!("{:#}", extract(&options).expect_err("no space"));
        assert!(text.contains("write the rows") && text.contains("No space left"), "{text}");
    }
}

#[test]
fn a_reader_that_left_is_an_error() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (capture, fifo) = (folder.path().join("a.pcap"), folder.path().join("fifo"));
    std::fs::write(&capture, pcap(&conversation(), false, true, 1)).expect("write");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).expect("fifo");
    // Both ends are open while the output is opened; then nobody reads.
    let reader = std::fs::File::options().read(true).write(true).open(&fifo).expect("fifo");
    let output = Output::open(Some(&fifo), false).expect("a pipe is written to as it is");
    let writer = output.writer().expect("handle");
    drop(reader);
    let options = ExtractOptions { captures: vec![capture], ..ExtractOptions::default() };
    let error = run(&options, Box::new(writer), &mut io::sink()).expect_err("closed");
    assert!(is_broken_pipe(&error), "{error:#}");
}

#[test]
fn what_cannot_work_is_said_before_anything_is_read() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let capture = folder.path().join("a.pcap");
    std::fs::write(&capture, pcap(&conversation(), false, true, 1)).expect("write");
    let error = |change: &dyn Fn(&mut ExtractOptions)| {
        let mut options = ExtractOptions { captures: vec![capture.clone()], ..ExtractOptions::default() };
        change(&mut options);
        format!("{:#}", extract(&options).expect_err("cannot work"))
    };
    let twice = folder.path().join("../").join(folder.path().file_name().expect("name")).join("a.pcap");
    assert!(error(&|options| options.captures.push(twice.clone())).contains("named twice"));
    assert!(error(&|options| options.idle_timeout = Some(Duration::ZERO)).contains("idle timeout of 0"));
    assert!(error(&|options| options.max_flows = 0).contains("at least one flow"));
    assert!(error(&|options| options.output = Some("flows.xlsx".into())).contains("ending .xlsx"));
    assert!(error(&|options| options.output = Some(folder.path().into())).contains("is a directory"));
    let text = error(&|options| (options.output, options.force) = (Some(twice.clone()), true));
    assert!(text.contains("is a capture that is read"), "{text}");
    let text = error(&|options| {
        options.output = Some(folder.path().join("a.csv"));
        options.captures = vec![folder.path().into()];
    });
    assert!(text.contains("it is a directory: name the captures inside it"), "{text}");
}

#[test]
fn a_section_describes_so_many_interfaces() {
    let described = |count: usize| {
        let file = pcapng(&conversation(), false);
        // The section header has 28 bytes; an interface without options 20.
        let interface = [&[1, 0, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0][..], &[20, 0, 0, 0]].concat();
        extract_bytes(&[&file[..28], &file[28..], &interface.repeat(count)].concat(), &[]).result
    };
    described(capture::MAX_INTERFACES - 1).expect("readable");
    let text = format!("{:#}", described(capture::MAX_INTERFACES).expect_err("one too many"));
    assert!(text.contains("more than 65536 interfaces"), "{text}");
}

#[test]
fn times_stay_where_records_can_hold_them() {
    let time_of = |file: &[u8]| {
        let mut capture = Capture::open(file).expect("a capture");
        capture.read().expect("readable").expect("a packet").time_ns
    };
    let mut file = pcap(&conversation(), false, true, 1);
    file[24..32].fill(0);
    assert_eq!(time_of(&file), 1, "0 is no time");
    assert_eq!(time_of(&pcapng(&[(u64::MAX - 1_000 * SECOND_NS, arp())], false)), i64::MAX as u64);
}
