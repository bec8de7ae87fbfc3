//! The book's invariants.

use super::*;

fn at(seconds: u64) -> Moment {
    Moment { ns: 1_000 * 1_000_000_000, unix_ms: 1_700_000_000_000 }.plus_ms(seconds * 1_000)
}

fn order(scope: &str, action: Action, origin: Origin, seconds: u64) -> Order {
    let rate = if action == Action::Limit { Rate { packets: 10, bytes: 0 } } else { Rate::default() };
    let scope = scope.parse().expect(scope);
    Order { scope, action, rate, origin, for_ms: seconds * 1_000, evidence: Evidence::default() }
}

fn book() -> Book {
    Book::new(Room::new(10_000, 0.0), 7)
}

fn added(book: &mut Book, order: Order, now: Moment) -> u64 {
    match book.add(order, now).expect("taken") {
        Change::Added(id, _) => id,
        Change::Renewed(id) => panic!("renewed {id}"),
    }
}

#[test]
fn the_longest_prefix_and_the_strongest_action_go_first() {
    let mut book = book();
    let wide = added(&mut book, order("198.18.0.0/16", Action::Tag, Origin::Model, 60), at(0));
    let narrow = added(&mut book, order("198.18.66.7", Action::Drop, Origin::Model, 60), at(0));
    let six = added(&mut book, order("2001:db8:66::/48", Action::Drop, Origin::Operator, 60), at(0));
    assert_eq!((wide, narrow, six), (7, 8, 9));
    let of = |book: &Book, address: &str| book.of_source(address.parse().expect(address)).map(|verdict| verdict.id);
    assert_eq!(of(&book, "198.18.66.7"), Some(narrow));
    assert_eq!(of(&book, "198.18.66.8"), Some(wide));
    assert_eq!(of(&book, "198.19.0.1"), None);
    assert_eq!(of(&book, "2001:db8:66:1::1"), Some(six));
    assert_eq!(of(&book, "2001:db8:67::1"), None);
    let Scope::Flow(key) = "tcp,198.18.66.7:1,198.18.0.1:2".parse().expect("a flow") else { panic!("no flow") };
    let initiator = "198.18.66.7".parse().expect("an address");
    assert_eq!(book.of_flow(&key, initiator).map(|verdict| verdict.id), Some(narrow));
    let own = added(&mut book, order("tcp,198.18.66.7:1,198.18.0.1:2", Action::Tag, Origin::Model, 60), at(0));
    let holds = |book: &Book| book.of_flow(&key, initiator).map(|verdict| verdict.id);
    assert_eq!(holds(&book), Some(narrow), "a tag of its own does not save a flow of a source that is dropped");
    book.remove(narrow).expect("held");
    assert_eq!(holds(&book), Some(own), "of two tags, its own");
    let blocked = added(&mut book, order("198.18.66.0/24", Action::Drop, Origin::Operator, 60), at(0));
    assert_eq!(holds(&book), Some(blocked));
    let dropped = added(&mut book, order("tcp,198.18.66.7:1,198.18.0.1:2", Action::Drop, Origin::Model, 60), at(0));
    assert_ne!(own, dropped);
    assert_eq!(holds(&book), Some(blocked), "of two drops, the operator's: no breaker opens it");
    book.remove(blocked).expect("held");
    assert_eq!(holds(&book), Some(dropped));
    assert_eq!(of(&book, "198.18.66.7"), Some(wide));
    assert_eq!(book.held(), [1, 2, 0]);
}

#[test]
fn a_tag_around_a_flow_does_not_keep_the_model_from_more() {
    let mut book = book();
    let initiator = "10.1.2.3".parse().expect("an address");
    let Scope::Flow(key) = "tcp,10.1.2.3:1,198.18.0.1:2".parse().expect("a flow") else { panic!("no flow") };
    added(&mut book, order("10.0.0.0/8", Action::Tag, Origin::Operator, 60), at(0));
    let covers = |book: &Book| Action::ALL.map(|action| book.covers(&key, initiator, action));
    assert_eq!(covers(&book), [true, true, false, false]);
    added(&mut book, order("10.1.0.0/16", Action::Drop, Origin::Operator, 60), at(0));
    assert_eq!(covers(&book), [true; 4]);
    let mut book = self::book();
    added(&mut book, order("tcp,10.1.2.3:1,198.18.0.1:2", Action::Tag, Origin::Operator, 60), at(0));
    assert_eq!(covers(&book), [true; 4], "of this very flow the operator has decided");
}

#[test]
fn models_add_no_source_inside_what_an_operator_blocks() {
    let mut book = book();
    let of = |text: &str| text.parse::<IpNet>().expect(text);
    let inside = added(&mut book, order("198.18.66.7", Action::Drop, Origin::Model, 60), at(0));
    added(&mut book, order("198.19.0.7", Action::Drop, Origin::Model, 60), at(0));
    let tag = added(&mut book, order("198.18.0.0/16", Action::Tag, Origin::Operator, 60), at(0));
    assert_eq!(book.commanded(&of("198.18.66.7/32")), None, "a tag stops nothing");
    let wide = added(&mut book, order("198.18.0.0/15", Action::Limit, Origin::Operator, 60), at(0));
    assert_eq!(book.commanded(&of("198.18.66.7/32")).map(|verdict| verdict.id), Some(wide));
    assert_eq!(book.commanded(&of("198.20.0.1/32")), None);
    assert_eq!(book.models_inside(&of("198.18.0.0/16")), [inside]);
    assert!(book.get(tag).is_some());
}

#[test]
fn what_the_kernel_did_not_take_leaves_what_was() {
    let mut book = book();
    let drop = |seconds| order("198.18.66.7", Action::Drop, Origin::Operator, seconds);
    added(&mut book, drop(60), at(0));
    let before = book.of(&drop(0).scope).cloned();
    for (order, renewed) in [(drop(600), true), (order("198.18.66.7", Action::Tag, Origin::Operator, 60), false)] {
        let change = book.add(order, at(1)).expect("taken");
        assert_eq!(matches!(change, Change::Renewed(_)), renewed);
        book.take_back(&change, before.clone());
        assert_eq!(book.of(&drop(0).scope), before.as_ref());
        assert_eq!((book.len(), book.held()), (1, [0, 1, 0]));
    }
    assert_eq!(book.expire(at(60).ns, 9).len(), 1, "at its own end");
    let change = book.add(drop(60), at(61)).expect("taken");
    book.take_back(&change, None);
    assert!(book.is_empty());
}

#[test]
fn the_ramp_and_the_breaker_find_what_models_decided() {
    let mut book = book();
    let scored = |scope, action, origin, score| {
        let order = order(scope, action, origin, 60);
        Order { evidence: Evidence { score, ..order.evidence }, ..order }
    };
    let doubtful = added(&mut book, scored("198.18.66.1", Action::Drop, Origin::Model, Some(0.92)), at(0));
    let certain = added(&mut book, scored("198.18.66.2", Action::Limit, Origin::Model, Some(0.995)), at(0));
    added(&mut book, scored("198.18.66.3", Action::Tag, Origin::Model, Some(0.92)), at(0));
    added(&mut book, scored("198.18.66.4", Action::Drop, Origin::Operator, None), at(0));
    added(&mut book, scored("tcp,198.18.0.10:80", Action::Limit, Origin::Rule, None), at(0));
    assert_eq!(book.models_below(0.99), [doubtful]);
    assert_eq!(book.models_below(f64::INFINITY), [doubtful, certain]);
}

#[test]
fn an_operator_goes_before_a_model() {
    let mut book = book();
    let by_model = added(&mut book, order("198.18.66.7", Action::Drop, Origin::Model, 60), at(0));
    let Change::Added(by_operator, Some(old)) =
        book.add(order("198.18.66.7", Action::Tag, Origin::Operator, 60), at(1)).expect("taken")
    else {
        panic!("the model's verdict is replaced")
    };
    assert_eq!((old.id, book.len()), (by_model, 1));
    let error = book.add(order("198.18.66.7", Action::Drop, Origin::Model, 60), at(2)).expect_err("held").to_string();
    assert!(error.contains(&format!("verdict {by_operator} of origin operator")), "{error}");
    // When the operator's has ended, the model is heard again, expired or not taken out yet.
    assert!(book.add(order("198.18.66.7", Action::Drop, Origin::Model, 60), at(61)).is_ok());
}

#[test]
fn the_same_again_is_longer_and_never_shorter() {
    let mut book = book();
    let id = added(&mut book, order("198.18.66.7", Action::Drop, Origin::Model, 60), at(0));
    assert_eq!(book.add(order("198.18.66.7", Action::Drop, Origin::Model, 60), at(30)).expect("taken"), {
        Change::Renewed(id)
    });
    book.add(order("198.18.66.7", Action::Drop, Origin::Model, 5), at(31)).expect("taken");
    assert_eq!(book.get(id).map(|verdict| verdict.until_ns), Some(at(90).ns));
    assert!(book.expire(at(89).ns, usize::MAX).is_empty());
    assert_eq!(book.expire(at(90).ns, usize::MAX).len(), 1);
    assert!(book.is_empty() && book.of_source("198.18.66.7".parse().expect("address")).is_none());
}

#[test]
fn an_operator_may_say_the_same_for_a_shorter_time() {
    let mut book = book();
    let id = added(&mut book, order("198.18.66.7", Action::Drop, Origin::Operator, 600), at(0));
    let mut again = order("198.18.66.7", Action::Drop, Origin::Operator, 5);
    again.evidence.who = "operator uid 7".to_owned();
    assert_eq!(book.add(again, at(10)).expect("taken"), Change::Renewed(id));
    let verdict = book.get(id).expect("held");
    assert_eq!((verdict.until_ns, verdict.evidence.who.as_str()), (at(15).ns, "operator uid 7"));
    assert_eq!(book.expire(at(15).ns, usize::MAX).len(), 1);
}

#[test]
fn ten_thousand_end_together_in_batches() {
    let mut book = book();
    for number in 0..10_000u32 {
        let address = std::net::Ipv4Addr::from(0xc612_0000 + number);
        added(&mut book, order(&address.to_string(), Action::Drop, Origin::Operator, 60), at(0));
    }
    let error = book.add(order("2001:db8::1", Action::Drop, Origin::Operator, 1), at(0)).expect_err("full").to_string();
    assert!(error.contains("policy.max_verdicts"), "{error}");
    assert!(book.add(order("198.18.0.1", Action::Drop, Origin::Operator, 60), at(1)).is_ok(), "renewed all the same");
    let mut batches = Vec::new();
    while !book.is_empty() {
        batches.push(book.expire(at(70).ns, 4_096).len());
    }
    assert_eq!(batches, [4_096, 4_096, 1_808]);
    assert_eq!(book.held(), [0; 3]);
}

#[test]
fn models_leave_places_to_operators() {
    let mut book = Book::new(Room::new(8, 0.25), 1);
    let flow = |port: u32| format!("tcp,198.18.66.7:{port},198.18.0.1:2");
    let drop = |port: u32, origin, seconds| order(&flow(port), Action::Drop, origin, seconds);
    let ids: Vec<u64> =
        (0..6).map(|port| added(&mut book, drop(1_000 + port, Origin::Model, 600 - u64::from(port)), at(0))).collect();
    let error = book.add(drop(2_000, Origin::Model, 60), at(1)).expect_err("full").to_string();
    assert!(error.contains("policy.operator_share") && error.contains("origin model"), "{error}");
    assert_eq!(
        book.gives_way(&drop(2_000, Origin::Model, 60)),
        None,
        "a flow that goes on is not given up for another"
    );
    assert!(book.add(order("198.18.66.7", Action::Drop, Origin::Model, 60), at(1)).is_ok(), "another kind");
    for port in 3_000..3_002 {
        assert_eq!(book.gives_way(&drop(port, Origin::Operator, 60)), None, "there is room");
        added(&mut book, drop(port, Origin::Operator, 60), at(1));
    }
    // All eight places are taken. The model's that ends soonest goes, unless the flow of one has ended.
    assert_eq!(book.gives_way(&drop(3_002, Origin::Operator, 60)), Some((ids[5], false)));
    assert!(book.add(drop(3_002, Origin::Operator, 60), at(1)).is_err(), "who asks makes room first");
    book.flow_ended(ids[2]);
    assert_eq!(book.gives_way(&drop(2_000, Origin::Model, 60)), Some((ids[2], true)), "for a model's, too");
    assert_eq!(book.gives_way(&drop(3_002, Origin::Fleet, 60)), Some((ids[2], true)));
    assert_eq!(book.gives_way(&drop(1_000, Origin::Operator, 60)), None, "it replaces the model's of the same flow");
    book.flow_goes_on(ids[2]);
    assert_eq!(book.gives_way(&drop(2_000, Origin::Model, 60)), None);
    for port in 3_002..3_008 {
        let (id, _) = book.gives_way(&drop(port, Origin::Operator, 60)).expect("a model's gives way");
        book.remove(id).expect("held");
        added(&mut book, drop(port, Origin::Operator, 60), at(1));
    }
    assert_eq!(
        (book.held(), book.gives_way(&drop(4_000, Origin::Operator, 60))),
        ([8, 1, 0], None),
        "all are operators'"
    );
    let newest = book.newest().next().expect("held").id;
    book.flow_ended(newest);
    assert_eq!(
        book.gives_way(&drop(4_000, Origin::Operator, 60)),
        None,
        "an operator's holds whether its flow goes on or not"
    );
}

#[test]
fn what_cannot_be_is_refused() {
    let mut book = book();
    for (scope, action, word) in [
        ("0.0.0.0/0", Action::Drop, "everybody"),
        ("198.18.66.7", Action::Pass, "sensor allow add"),
        ("tcp,198.18.0.10:80", Action::Drop, "only be limited"),
    ] {
        let error = book.add(order(scope, action, Origin::Operator, 60), at(0)).expect_err(scope).to_string();
        assert!(error.contains(word), "{scope}: {error}");
    }
    let unlimited = Order { rate: Rate::default(), ..order("198.18.66.7", Action::Limit, Origin::Operator, 60) };
    assert!(book.add(unlimited, at(0)).expect_err("no rate").to_string().contains("rate"));
    assert!(book.add(order("tcp,198.18.0.10:80", Action::Limit, Origin::Model, 60), at(0)).is_ok());
}

#[test]
fn a_restored_verdict_has_the_time_it_had_left() {
    let mut first = book();
    let id = added(&mut first, order("198.18.66.7", Action::Drop, Origin::Operator, 60), at(0));
    let json = serde_json::to_string(first.get(id).expect("held")).expect("JSON");
    let read = || serde_json::from_str::<Verdict>(&json).expect("JSON");
    let restored = |unix_ms: u64| {
        let mut book = book();
        // Another boot: the monotonic clock began anew.
        let now = Moment { ns: 5_000_000_000, unix_ms };
        book.restore(read(), now).map(|id| (book.get(id).expect("held").until_ns - now.ns) / 1_000_000)
    };
    assert_eq!(restored(at(20).unix_ms), Some(40_000));
    assert_eq!(restored(at(60).unix_ms), None);
    assert_eq!(restored(at(0).unix_ms - 30_000), Some(60_000), "not longer than it was given");
    assert_eq!(restored(1_577_836_800_000), None, "a clock that begins in 2020 gives it no new life");
    let mut next = Book::new(Room::new(1, 0.0), 1);
    next.restore(read(), at(1)).expect("taken over");
    assert_eq!(next.next_id(), id + 1);
    assert!(next.restore(read(), at(1)).is_none(), "once");
}
