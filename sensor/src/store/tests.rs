//! What is kept is there again, and damage is set aside.

use super::*;
use crate::verdicts::book::{Book, Change, Room};
use crate::verdicts::{Evidence, Moment, Order, Rate};
use sensor_common::verdict::{Action, Origin};

fn verdicts(count: u32) -> Vec<Verdict> {
    let mut book = Book::new(Room::new(20_000, 0.0), 1);
    for number in 0..count {
        let scope = std::net::Ipv4Addr::from(0xc612_0000 + number).to_string().parse().expect("a scope");
        let evidence = Evidence { who: "test".into(), score: Some(0.5), ..Evidence::default() };
        let (action, origin, rate) = (Action::Drop, Origin::Operator, Rate::default());
        let order = Order { scope, action, rate, origin, for_ms: 1_000, evidence };
        assert!(matches!(book.add(order, Moment::default()), Ok(Change::Added(..))));
    }
    // The monotonic clock of this boot is not kept.
    book.iter().cloned().map(|verdict| Verdict { until_ns: 0, ..verdict }).collect()
}

#[test]
fn what_was_kept_is_there_again() {
    let folder = tempfile::tempdir().expect("a directory");
    let all = verdicts(10_000);
    let entry = |why| allow::entry("198.18.7.0/24".parse().expect("an item"), why);
    let state = State {
        mode: Some(SavedMode { mode: Mode::Enforce, configured: Mode::Observe }),
        next_id: 10_001,
        ..State::default()
    };
    {
        let (mut store, saved) = Store::open(Some(folder.path()));
        assert!(saved.verdicts.is_empty() && saved.state == State::default());
        all.iter().for_each(|verdict| store.verdict(verdict));
        store.no_verdict(1);
        store.allow(&entry(Why::Operator));
        store.allow(&entry(Why::Gateway));
        store.state(state.clone());
        assert!(store.flush(Duration::from_secs(20)), "{} errors", store.errors());
    }
    let (mut store, saved) = Store::open(Some(folder.path()));
    assert_eq!((saved.verdicts.len(), &saved.verdicts[..], &saved.state), (9_999, &all[1..], &state));
    assert_eq!(saved.allowed, [entry(Why::Operator)]);
    store.replace(all[..2].iter(), [].iter(), State::default());
    assert!(store.flush(Duration::from_secs(20)));
    drop(store);
    let (_store, saved) = Store::open(Some(folder.path()));
    assert_eq!((saved.verdicts.len(), saved.allowed.len(), saved.state.next_id), (2, 0, 0));
}

#[test]
fn a_row_that_cannot_be_read_costs_no_other() {
    let folder = tempfile::tempdir().expect("a directory");
    {
        let (database, _) = try_open(folder.path()).expect("a store");
        let transaction = database.begin_write().expect("a transaction");
        let row = serde_json::to_vec(&verdicts(1)[0]).expect("JSON");
        let mut table = transaction.open_table(VERDICTS).expect("a table");
        table.insert(1, row.as_slice()).expect("a row");
        table.insert(2, &b"{}"[..]).expect("a row");
        drop(table);
        let mut table = transaction.open_table(ALLOWED).expect("a table");
        table.insert("x", &b"no JSON"[..]).expect("a row");
        drop(table);
        transaction.commit().expect("committed");
    }
    let (_store, saved) = Store::open(Some(folder.path()));
    assert_eq!((saved.verdicts, saved.allowed.len()), (verdicts(1), 0));
    assert!(!folder.path().join("state.redb.damaged.1").exists());
}

#[test]
fn a_damaged_store_is_set_aside() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join(FILE);
    drop(Store::open(Some(folder.path())));
    std::thread::sleep(Duration::from_millis(50));
    let sound = fs::read(&path).expect("a file");
    for (number, damaged) in [vec![7u8; 10_000], sound[..sound.len() / 3].to_vec(), {
        let mut bytes = sound.clone();
        bytes[64..4_096].fill(0xa5);
        bytes
    }]
    .into_iter()
    .enumerate()
    {
        fs::write(&path, damaged).expect("write");
        let (mut store, saved) = Store::open(Some(folder.path()));
        assert!(saved.verdicts.is_empty());
        store.verdict(&verdicts(1)[0]);
        assert!(store.flush(Duration::from_secs(10)), "case {number}: a new one is in its place");
        let aside = path.with_extension(format!("redb.damaged.{}", number + 1));
        assert!(aside.exists(), "case {number}");
        drop(store);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn without_a_place_nothing_is_kept_and_nothing_fails() {
    let (mut store, _) = Store::open(Some(Path::new("/proc/no/such/place")));
    store.verdict(&verdicts(1)[0]);
    assert!(store.flush(Duration::ZERO) && !store.is_behind());
}

#[test]
fn a_disk_that_was_full_is_written_again_when_it_is_not() {
    let folder = tempfile::tempdir().expect("a directory");
    let (mut store, _) = Store::open(Some(folder.path()));
    let all = verdicts(20);
    all.iter().for_each(|verdict| store.verdict(verdict));
    assert!(store.flush(Duration::from_secs(20)) && store.problem().is_none());
    // What a full disk does to the library: every transaction fails until the file is opened anew. Here the file cannot
    // be opened anew, either, until somebody takes the directory away that is in its place.
    let (file, kept) = (folder.path().join(FILE), folder.path().join("kept"));
    let mut writer = Writer {
        database: None,
        path: file.clone(),
        errors: store.errors.clone(),
        failed: store.failed.clone(),
        problem: store.problem.clone(),
        said: None,
        failed_at: None,
    };
    drop(store);
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(Refused::Busy(_)) = open(&file) {
        assert!(Instant::now() < deadline, "the store's thread ends");
        std::thread::sleep(Duration::from_millis(20));
    }
    fs::rename(&file, &kept).expect("rename");
    fs::create_dir(&file).expect("a directory in the way");
    for _ in 0..3 {
        let result = writer.write(vec![Op::NoVerdict(1)]);
        assert!(result.is_err());
        writer.note(result);
    }
    assert!(writer.problem.lock().expect("whole").is_some() && writer.failed.load(Ordering::Relaxed));
    fs::remove_dir(&file).expect("out of the way");
    fs::rename(&kept, &file).expect("rename");
    // As `Store::replace` does.
    writer.failed.store(false, Ordering::Relaxed);
    let result = writer.write(vec![Op::Replace(all[5..].to_vec(), Vec::new())]);
    result.as_ref().expect("written");
    writer.note(result);
    assert!(writer.problem.lock().expect("whole").is_none());
    drop(writer);
    let (_store, saved) = Store::open(Some(folder.path()));
    assert_eq!(saved.verdicts, all[5..]);
}
