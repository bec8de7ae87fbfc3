//! What is kept is there again, and damage is set aside.

use std::fs;
use std::path::PathBuf;

use redb::TableDefinition;

use super::database::FILE;
use super::settings::{Found, Settings};
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
        let Ok((database, _)) = database::read_or_make(&folder.path().join(FILE)) else { panic!("a store") };
        let transaction = database.begin_write().expect("a transaction");
        // As an agent wrote it before rows had checksums.
        let row = serde_json::to_vec(&verdicts(1)[0]).expect("JSON");
        let mut table = transaction.open_table(TableDefinition::<u64, &[u8]>::new("verdicts")).expect("a table");
        table.insert(1, row.as_slice()).expect("a row");
        table.insert(2, &b"{}"[..]).expect("a row");
        drop(table);
        let mut table = transaction.open_table(TableDefinition::<&str, &[u8]>::new("allowed")).expect("a table");
        table.insert("x", &b"no JSON"[..]).expect("a row");
        drop(table);
        transaction.commit().expect("committed");
    }
    let (_store, saved) = Store::open(Some(folder.path()));
    assert_eq!((saved.verdicts, saved.allowed.len()), (verdicts(1), 0));
    assert!(saved.state.doubt.expect("two rows are lost").text.contains("2 rows"));
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
        assert!(store.is_behind() && saved.state.doubt.is_some());
        store.replace(verdicts(1).iter(), [].iter(), saved.state);
        assert!(store.flush(Duration::from_secs(10)), "case {number}: a new one is in its place");
        let aside = path.with_extension(format!("redb.damaged.{}", number + 1));
        assert!(aside.exists(), "case {number}");
        drop(store);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn without_a_place_nothing_is_kept_and_it_is_said() {
    let (mut store, saved) = Store::open(Some(Path::new("/proc/no/such/place")));
    assert_eq!(saved.state, State::default(), "nothing is known against a mode");
    store.verdict(&verdicts(1)[0]);
    assert!(!store.flush(Duration::from_secs(10)) && store.is_behind() && store.problem().is_some());
    let unkept = confirmed(&mut store);
    assert!(unkept.settings.is_some() && unkept.verdicts.is_some());
    let mut none = Store::none();
    assert!(none.flush(Duration::ZERO) && !none.is_behind());
}

fn confirmed(store: &mut Store) -> Unkept {
    let (reply, answer) = oneshot::channel();
    store.confirm(reply);
    answer.blocking_recv().expect("an answer")
}

#[test]
fn one_file_is_enough_for_the_settings_and_the_other_follows() {
    let folder = tempfile::tempdir().expect("a directory");
    // The database cannot be opened, as on a disk with errors.
    fs::create_dir(folder.path().join(FILE)).expect("a directory in the way");
    let (mut store, _) = Store::open(Some(folder.path()));
    assert!(store.problem().is_some() && store.is_behind());
    let (all, state) = (verdicts(20), enforce());
    all.iter().for_each(|verdict| store.verdict(verdict));
    store.state(state.clone());
    store.allow(&operators());
    let unkept = confirmed(&mut store);
    assert!(unkept.settings.is_none() && unkept.verdicts.is_some(), "{unkept:?}");
    fs::remove_dir(folder.path().join(FILE)).expect("out of the way");
    store.replace(all.iter(), [operators()].iter(), state.clone());
    assert!(store.flush(Duration::from_secs(20)) && store.problem().is_none());
    assert_eq!(confirmed(&mut store), Unkept::default());
    drop(store);
    let (_store, saved) = reopen(folder.path());
    assert_eq!((saved.verdicts, saved.allowed, saved.state), (all, vec![operators()], state));
}

fn operators() -> allow::Entry {
    allow::entry("198.18.7.0/24".parse().expect("an item"), Why::Operator)
}

fn enforce() -> State {
    State { mode: Some(SavedMode { mode: Mode::Enforce, configured: Mode::Enforce }), next_id: 21, ..State::default() }
}

/// Opens a store whose thread may still be ending.
fn reopen(directory: &Path) -> (Store, Saved) {
    let (store, saved) = Store::open(Some(directory));
    assert!(store.problem().is_none(), "{:?}", store.problem());
    (store, saved)
}

/// A directory with mode enforce, one never-drop entry and some verdicts, as an agent leaves it.
fn left() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a directory");
    let (mut store, _) = Store::open(Some(folder.path()));
    verdicts(20).iter().for_each(|verdict| store.verdict(verdict));
    store.allow(&operators());
    store.state(enforce());
    assert_eq!(confirmed(&mut store), Unkept::default());
    drop(store);
    // Its thread lets go of the file.
    drop(reopen(folder.path()));
    while let Err(database::Refused::Busy(_)) = database::open(&folder.path().join(FILE)) {
        std::thread::sleep(Duration::from_millis(5));
    }
    folder
}

fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().expect("a directory");
    for name in [FILE, settings::FILE] {
        fs::copy(from.join(name), to.path().join(name)).expect("copied");
    }
    to
}

fn flip(path: &PathBuf, bit: usize) {
    let mut bytes = fs::read(path).expect("a file");
    bytes[bit / 8] ^= 1 << (bit % 8);
    fs::write(path, bytes).expect("written");
}

#[test]
fn each_flipped_bit_of_the_file_for_people_is_noticed() {
    let folder = left();
    let text = fs::read(folder.path().join(settings::FILE)).expect("a file");
    let words = String::from_utf8(text.clone()).expect("text");
    assert!(words.contains("mode = \"enforce\"") && words.contains("198.18.7.0/24"), "people can read it: {words}");
    assert!(Settings::of_text(&text).is_ok());
    for bit in 0..text.len() * 8 {
        let mut flipped = text.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Settings::of_text(&flipped).is_err(), "bit {bit}");
    }
    for cut in 0..text.len() {
        assert!(Settings::of_text(&text[..cut]).is_err(), "{cut} bytes");
    }
    // The database has all, but the mode is not trusted.
    let damaged = copy(folder.path());
    flip(&damaged.path().join(settings::FILE), 3_000);
    let (mut store, saved) = reopen(damaged.path());
    assert_eq!((saved.verdicts.len(), saved.allowed, saved.state.mode), (20, vec![operators()], None));
    let doubt = saved.state.doubt.expect("a reason");
    assert!(doubt.text.contains(settings::FILE), "{}", doubt.text);
    assert!(damaged.path().join(format!("{}.damaged.1", settings::FILE)).exists() && store.is_behind());
    // The doubt stays until somebody ends it.
    let state = State { doubt: Some(doubt.clone()), ..saved.state };
    store.replace(saved.verdicts.iter(), [operators()].iter(), state);
    assert_eq!(confirmed(&mut store), Unkept::default());
    drop(store);
    let (_store, saved) = reopen(damaged.path());
    assert_eq!(saved.state.doubt, Some(doubt));
}

#[test]
fn a_flipped_bit_of_the_database_is_noticed_or_changes_nothing() {
    let folder = left();
    let bytes = fs::read(folder.path().join(FILE)).expect("a file");
    // Where something is written, and a few other places.
    let used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    let (sound, mut noticed, mut harmless) = (verdicts(20), 0, 0);
    for number in 0..300 {
        let at = if number % 6 == 5 { number * bytes.len() / 300 } else { used[number * used.len() / 300] };
        let damaged = copy(folder.path());
        flip(&damaged.path().join(FILE), at * 8 + number % 8);
        let (_store, saved) = Store::open(Some(damaged.path()));
        // Each verdict that is left is one that there was.
        assert!(saved.verdicts.iter().all(|verdict| sound.contains(verdict)), "byte {at}");
        assert_eq!(saved.allowed, [operators()], "byte {at}: never dropped, whatever is damaged");
        match saved.state.doubt {
            Some(_) => {
                assert_eq!(saved.state.mode, None, "byte {at}");
                noticed += 1;
            }
            None => {
                assert_eq!((saved.state, saved.verdicts), (enforce(), sound.clone()), "byte {at}: unnoticed and wrong");
                harmless += 1;
            }
        }
    }
    assert!(noticed > 20 && harmless > 20, "{noticed} noticed, {harmless} changed nothing");
}

#[test]
fn a_database_that_cannot_be_opened_may_hold_later_changes() {
    let folder = left();
    let path = folder.path().join(FILE);
    fs::rename(&path, folder.path().join("aside")).expect("renamed");
    // Nothing that could be opened as a file, whoever asks.
    fs::create_dir(&path).expect("made");
    let (store, saved) = Store::open(Some(folder.path()));
    assert!(store.problem().is_some());
    assert_eq!((saved.allowed, saved.state.mode), (vec![operators()], None));
    assert!(saved.state.doubt.expect("a reason").text.contains("cannot be opened"));
}

#[test]
fn a_pipe_in_place_of_the_settings_does_not_stop_the_start() {
    let folder = left();
    let path = folder.path().join(settings::FILE);
    fs::remove_file(&path).expect("removed");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).expect("a pipe");
    let (_store, saved) = Store::open(Some(folder.path()));
    assert!(saved.state.doubt.expect("a reason").text.contains("is not a file"));
}

#[test]
fn what_is_gone_or_older_than_it_was_is_noticed() {
    let folder = left();
    for (name, verdicts) in [(FILE, 0), (settings::FILE, 20)] {
        let less = copy(folder.path());
        fs::remove_file(less.path().join(name)).expect("removed");
        let (_store, saved) = reopen(less.path());
        assert_eq!((saved.verdicts.len(), saved.allowed, saved.state.mode), (verdicts, vec![operators()], None));
        assert!(saved.state.doubt.expect("a reason").text.contains(name));
    }
    // Each of both as it was before the last changes, which the other knows of.
    let (mut store, _) = reopen(folder.path());
    let before = copy(folder.path());
    for mode in [Mode::Observe, Mode::Tag] {
        store.state(State { mode: Some(SavedMode { mode, configured: Mode::Enforce }), ..enforce() });
        assert_eq!(confirmed(&mut store), Unkept::default());
    }
    drop(store);
    drop(reopen(folder.path()));
    for name in [FILE, settings::FILE] {
        let older = copy(folder.path());
        fs::copy(before.path().join(name), older.path().join(name)).expect("copied");
        let (_store, saved) = reopen(older.path());
        assert_eq!(saved.state.mode, None, "{name}");
        assert!(saved.state.doubt.is_some(), "{name}");
    }
}

#[test]
fn the_later_of_two_sound_files_holds() {
    let settings = |sequence, in_database, mode| {
        let mut settings = Settings { sequence, in_database, ..Settings::default() };
        settings.set_state(State { mode: Some(SavedMode { mode, configured: Mode::Observe }), ..State::default() });
        settings
    };
    let rows = |sequence, in_file, mode| {
        let state = settings(sequence, 0, mode).state();
        database::Rows { head: database::Head { state, sequence, in_file }, ..database::Rows::default() }
    };
    let (file, other) = (settings(5, 4, Mode::Tag), rows(4, 4, Mode::Enforce));
    let (saved, _, doubts) = merge::merge(Found::Sound(file), Found::Sound(other), true);
    assert_eq!(
        (saved.state.mode.map(|saved| saved.mode), doubts.len()),
        (Some(Mode::Tag), 0),
        "a crash between the two"
    );
    let (file, other) = (settings(3, 3, Mode::Tag), rows(5, 3, Mode::Observe));
    let (saved, _, doubts) = merge::merge(Found::Sound(file), Found::Sound(other), true);
    assert_eq!(
        (saved.state.mode.map(|saved| saved.mode), doubts.len()),
        (Some(Mode::Observe), 0),
        "the file could not be written"
    );
    let (file, other) = (settings(5, 4, Mode::Tag), rows(5, 5, Mode::Enforce));
    let (saved, _, doubts) = merge::merge(Found::Sound(file), Found::Sound(other), true);
    assert_eq!((saved.state.mode, doubts.len()), (None, 1), "one of them is wrong");
    // A database that another agent holds is not gone.
    let (saved, _, doubts) = merge::merge(Found::Sound(settings(5, 5, Mode::Tag)), Found::Absent, false);
    assert_eq!((saved.state.mode.map(|saved| saved.mode), doubts.len()), (Some(Mode::Tag), 0));
    let (_, _, doubts) = merge::merge(Found::Absent, Found::Sound(rows(0, 0, Mode::Enforce)), true);
    assert_eq!(doubts.len(), 0, "an agent before there was such a file");
    let (_, _, doubts) = merge::merge(Found::Absent, Found::Absent, true);
    assert_eq!(doubts.len(), 0, "the first start");
}
