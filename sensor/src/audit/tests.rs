//! Lines, rotation, and what is lost.

use super::*;
use crate::verdicts::{Evidence, Rate};

fn verdict() -> Box<Verdict> {
    let evidence =
        Evidence { who: "operator uid 0".into(), label: Some("scan".into()), score: Some(0.97), ..Evidence::default() };
    Box::new(Verdict {
        id: 7,
        scope: "198.18.66.0/24".parse().expect("a scope"),
        action: ActionName::Drop,
        rate: Rate::default(),
        origin: crate::config::OriginName::Operator,
        evidence,
        created_unix_ms: 1_700_000_000_000,
        until_unix_ms: 1_700_000_600_000,
        until_ns: 5,
    })
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(path).expect("a file");
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[test]
fn each_event_is_one_line_of_json() {
    let folder = tempfile::tempdir().expect("a directory");
    let audit = Audit::open(&AuditConfig::default(), Some(folder.path()));
    let until = rfc3339(verdict().until_unix_ms);
    audit.write(Event::Verdict { verdict: verdict(), done: ActionName::Tag, until });
    audit.write(Event::Removed { verdict: verdict(), by: "uid 0\n\"x\"".into(), packets: 3 });
    audit.write(Event::Mode { from: Mode::Observe, to: Mode::Enforce, by: "uid 0".into() });
    audit.flush(Duration::from_secs(10));
    let lines = lines(&folder.path().join("audit.jsonl"));
    assert_eq!(lines.len(), 3);
    for (name, value) in [
        ("event", "verdict"),
        ("scope", "198.18.66.0/24"),
        ("action", "drop"),
        ("done", "tag"),
        ("label", "scan"),
        ("until", "2023-11-14T22:23:20.000Z"),
    ] {
        assert_eq!(lines[0][name], value, "{}", lines[0]);
    }
    assert!(lines[0]["time"].as_str().is_some_and(|time| time.ends_with('Z')));
    assert_eq!((&lines[1]["by"], &lines[2]["to"]), (&"uid 0\n\"x\"".into(), &"enforce".into()));
    assert_eq!((audit.written(), audit.lost()), (3, 0));
}

#[test]
fn files_rotate_and_only_so_many_are_kept() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("a");
    let mut file = Rotating::open(&path, 100, 3).expect("opens");
    for number in 0..50 {
        file.write(format!("{number:039}\n").as_bytes()).expect("writes");
    }
    let name = |number: u32| folder.path().join(if number == 0 { "a".into() } else { format!("a.{number}") });
    let text = |number: u32| fs::read_to_string(name(number)).expect("a file");
    assert!(text(0).ends_with("49\n") && text(1).ends_with("47\n") && text(2).ends_with("45\n"));
    assert!((0..3).all(|number| text(number).len() <= 100) && !name(3).exists());
    let mut again = Rotating::open(&path, 100, 3).expect("opens");
    again.write(&[b'x'; 39]).expect("writes");
    assert!(text(0).ends_with('x') && text(1).ends_with("49\n"), "it goes on where the last one stopped");
    let mut alone = Rotating::open(&folder.path().join("b"), 100, 1).expect("opens");
    (0..9).for_each(|_| alone.write(&[b'y'; 60]).expect("writes"));
    assert_eq!(fs::metadata(folder.path().join("b")).expect("a file").len(), 60);
}

#[test]
fn a_file_that_cannot_be_renamed_does_not_grow() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("a");
    // A name that no file can be renamed to.
    fs::create_dir_all(folder.path().join("a.1/x")).expect("a directory");
    let mut file = Rotating::open(&path, 100, 2).expect("opens");
    let written = (0..9).filter(|_| file.write(&[b'z'; 40]).is_ok()).count();
    assert_eq!((written, fs::metadata(&path).expect("a file").len()), (2, 80));
    fs::remove_dir_all(folder.path().join("a.1")).expect("removed");
    file.write(&[b'z'; 40]).expect("it can be renamed now");
    assert_eq!(fs::metadata(&path).expect("a file").len(), 40);
}

#[test]
fn an_audit_that_cannot_be_opened_loses_lines_and_counts_them() {
    let config = AuditConfig { path: Some("/proc/no/such/place".into()), ..AuditConfig::default() };
    let audit = Audit::open(&config, None);
    audit.write(Event::Stop);
    assert_eq!((audit.written(), audit.lost()), (0, 1));
    let audit = Audit::open(&AuditConfig { path: None, ..config }, None);
    audit.write(Event::Stop);
    assert_eq!(audit.lost(), 0, "nothing is wanted");
}

#[test]
fn a_full_queue_loses_lines_and_counts_them() {
    let (queue, inbox) = sync_channel(2);
    let audit = Audit { queue: Some(queue), ..Audit::none() };
    (0..5).for_each(|_| audit.write(Event::Stop));
    assert_eq!((audit.lost(), inbox.try_iter().count()), (3, 2));
    Audit::none().write(Event::Stop);
    Audit::none().flush(Duration::from_secs(9));
}

#[test]
fn a_pipe_without_a_reader_holds_nobody_up() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0)
        .expect("a pipe");
    let text = format!("{:#}", append(&path).expect_err("no file"));
    assert!(text.contains("pipe"), "{text}");
}
