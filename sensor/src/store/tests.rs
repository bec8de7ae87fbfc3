//! What is kept is there again, and damage is set aside.

use super::*;
use crate::verdicts::book::{Book, Change, Room};
use crate::verdicts::{Evidence, Moment, Order, Rate};
use sensor_common::verdict::{Action, Origin};

fn verdicts(count: u32) -> Vec<Verdict> {
    let mut book = Book::new(Room { each: 20_000 }, 1);
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
