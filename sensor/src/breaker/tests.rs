//! What opens the breaker, what does not, and when it closes.

use std::time::Duration;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn config() -> BreakerConfig {
    BreakerConfig {
        drops_per_second: 1_000,
        source_share: 0.5,
        min_sources: 3,
        verdicts_per_minute: 60,
        reset_after: Duration::from_secs(30),
    }
}

fn breaker() -> Breaker {
    Breaker::new(config(), None, 0)
}

fn address(number: u32) -> IpAddr {
    IpAddr::from((0xc612_0000 + number).to_be_bytes())
}

fn proven(number: u32) -> Party {
    Party::Proven(address(number))
}

fn udp(port: u16) -> Service {
    Service { address: address(0), port, protocol: sensor_common::packet::protocol::UDP }
}

fn cap(opened: Option<Opened>) -> Option<Cap> {
    opened.map(|opened| match opened {
        Opened::All(trip) | Opened::Service(_, trip) => trip.cap,
    })
}

/// An hour of `clients` that are let pass, each once a minute.
fn ordinary(breaker: &mut Breaker, clients: u32) -> u64 {
    for minute in 0..60 {
        (0..clients).for_each(|client| breaker.passed(proven(1_000 + client), minute * 60 * SECOND));
    }
    3_600 * SECOND
}

#[test]
fn one_attacker_does_not_open_it_however_many_clients_there_are() {
    for clients in [0, 1, 4, 50] {
        let mut breaker = breaker();
        let now = ordinary(&mut breaker, clients);
        for flow in 0..2_000 {
            assert_eq!(breaker.accused(proven(1), now + flow * 10_000_000, 0), None, "{clients} clients, flow {flow}");
        }
        let load = Load { drops: 1 << 40, sources: 1 };
        assert_eq!(breaker.second(Load::default(), now + 20 * SECOND, 0), Second::default());
        assert_eq!(breaker.second(load, now + 21 * SECOND, 0), Second::default(), "its own flood, either");
        assert_eq!(breaker.trip(), None);
    }
}

#[test]
fn a_few_attackers_at_night_do_not_open_it() {
    let mut breaker = breaker();
    let now = ordinary(&mut breaker, 12) + 600 * SECOND;
    assert!((0..9).all(|attacker| breaker.accused(proven(attacker), now, 0).is_none()), "12 clients are of this hour");
}

#[test]
fn a_model_that_accuses_everybody_opens_it_within_ten_seconds() {
    // Clients, time from one's flow to the next one's.
    for (clients, every) in [(3, SECOND), (4, SECOND), (9, SECOND), (30, SECOND / 4), (2_000, SECOND / 100)] {
        for before in [false, true] {
            let mut breaker = breaker();
            let mut now = if before { ordinary(&mut breaker, clients) } else { 0 };
            let begin = now;
            let tripped = (0..clients).cycle().take(4_000).find_map(|client| {
                now += every;
                breaker.accused(proven(1_000 + client), now, 0)
            });
            let after = (now - begin) / SECOND;
            assert!(matches!(tripped, Some(Opened::All(_))) && after <= 10, "{clients} clients: {after} s, {before}");
        }
    }
}

#[test]
fn one_or_two_clients_are_everybody_if_the_configuration_says_so() {
    let mut breaker = breaker();
    assert!((0..10).all(|_| breaker.accused(proven(1), 0, 0).is_none() && breaker.accused(proven(2), 0, 0).is_none()));
    let mut proxied = Breaker::new(BreakerConfig { min_sources: 1, ..config() }, None, 0);
    assert_eq!(cap(proxied.accused(proven(1), 0, 0)), Some(Cap::Sources));
}

#[test]
fn a_share_of_many_is_looked_at_in_the_last_minute() {
    let mut breaker = breaker();
    let now = ordinary(&mut breaker, 40);
    (0..40).for_each(|client| breaker.passed(proven(1_000 + client), now));
    let tripped = (0..50).find(|attacker| breaker.accused(proven(*attacker), now, 0).is_some());
    assert_eq!(tripped, Some(40), "the forty-first beside forty clients");
    let trip = *breaker.trip().expect("open");
    assert_eq!((trip.cap, trip.allowed), (Cap::Sources, 0.5));
    assert!(trip.to_string().contains("51 % of the active sources"), "{trip}");
    assert_eq!(breaker.accused(proven(99), now, 0), None, "it is open already");
}

#[test]
fn forged_sources_open_no_more_than_their_own_service() {
    let mut breaker = breaker();
    let forged = |number| Party::Unproven(udp(53), address(number));
    let tripped = (0..100).find_map(|number| breaker.accused(forged(number), SECOND, 0));
    assert!(matches!(tripped, Some(Opened::Service(service, Trip { cap: Cap::Service, .. })) if service == udp(53)));
    assert_eq!(breaker.trip(), None);
    assert!(breaker.holds(forged(7)) && !breaker.holds(Party::Unproven(udp(443), address(7))));
    assert!(!breaker.holds(proven(7)), "who has proven itself is judged as ever");
    // Thousands of services, each with one source, neither.
    for port in 1_000..9_000 {
        assert_eq!(breaker.accused(Party::Unproven(udp(port), address(1)), SECOND, 0), None);
    }
    assert_eq!(breaker.services().open(), [udp(53)], "an open one is not forgotten for them");
    for second in 62..=91 {
        assert_eq!(breaker.second(Load::default(), second * SECOND, 0).services, [], "{second}");
    }
    assert_eq!(breaker.second(Load::default(), 92 * SECOND, 0).services, [udp(53)]);
    assert!(!breaker.holds(forged(7)));
}

#[test]
fn a_service_with_clients_that_pass_is_not_held_for_one_that_does_not() {
    let mut breaker = breaker();
    (0..3).for_each(|client| breaker.passed(Party::Unproven(udp(443), address(client)), SECOND));
    assert!((0..900).all(|_| breaker.accused(Party::Unproven(udp(443), address(9)), SECOND, 0).is_none()));
    let opened = (0..3).find_map(|client| breaker.accused(Party::Unproven(udp(443), address(client)), SECOND, 0));
    assert_eq!(cap(opened), Some(Cap::Service), "three of its four are everybody");
    assert_eq!(breaker.reset(), (None, vec![udp(443)]));
}

#[test]
fn verdicts_are_counted_by_source_over_a_minute() {
    let mut breaker = breaker();
    for second in 0..50 {
        (0..1_000).for_each(|client| breaker.passed(proven(10_000 + client), u64::from(second) * SECOND));
        assert_eq!(breaker.accused(proven(second), u64::from(second) * SECOND, 0), None, "{second}");
    }
    let more = (0..60).find(|more| breaker.accused(proven(100 + more), 50 * SECOND, 0).is_some());
    assert_eq!(more, Some(10), "the sixty-first source in this minute");
    assert_eq!(breaker.trip().map(|trip| trip.cap), Some(Cap::Verdicts));
}

#[test]
fn a_rate_of_drops_takes_several_sources() {
    let load = |drops, sources| Load { drops, sources };
    let mut breaker = breaker();
    assert_eq!(breaker.second(load(50_000, 9), SECOND, 0), Second::default(), "the first second knows no rate");
    assert_eq!(breaker.second(load(51_000, 9), 2 * SECOND, 0), Second::default());
    assert_eq!(breaker.second(load(90_000, 2), 3 * SECOND, 0), Second::default(), "two attackers");
    let opened = breaker.second(load(91_001, 3), 4 * SECOND, 0).opened.expect("opens");
    assert_eq!(opened.cap, Cap::Drops);
}

fn open() -> Breaker {
    let mut breaker = breaker();
    assert!((0..3).any(|client| breaker.accused(proven(client), 0, 0).is_some()));
    breaker
}

#[test]
fn it_closes_when_all_was_quiet_for_long_enough() {
    let mut breaker = open();
    let mut held = open();
    // The last accusation is of second 60, so it leaves the window with second 119.
    for second in 1..149 {
        if second == 60 {
            assert!((0..3).all(|client| breaker.accused(proven(client), second * SECOND, 0).is_none()));
        }
        let now = second * SECOND;
        assert_eq!(breaker.second(Load::default(), now, 0), Second::default(), "{second}");
        assert_eq!(held.second(Load { drops: 0, sources: 3 }, now, 0), Second::default());
    }
    let closed = breaker.second(Load::default(), 149 * SECOND, 0).closed.expect("closes");
    assert_eq!((closed.cap, breaker.trip()), (Cap::Sources, None));
    assert_eq!(held.second(Load { drops: 0, sources: 3 }, 900 * SECOND, 0).closed, None, "three would be cut off");
}

#[test]
fn by_command_only_if_the_configuration_says_so() {
    let trip = *open().trip().expect("open");
    let mut by_hand = Breaker::new(BreakerConfig { reset_after: Duration::ZERO, ..config() }, Some(trip), 0);
    let quiet = Load::default();
    assert!((0..100_000).all(|second| by_hand.second(quiet, second * SECOND, 0) == Second::default()));
    assert_eq!(by_hand.reset().0, Some(trip));
    assert_eq!(by_hand.trip(), None);
    // What was withheld until now is not of the first second after.
    assert_eq!(by_hand.second(Load { drops: 1 << 40, sources: 9 }, 100_001 * SECOND, 0), Second::default());
}

#[test]
fn a_restart_does_not_begin_the_quiet_time_anew() {
    let mut first = open();
    // The accusations leave the window with second 59.
    for second in 0..=79 {
        assert_eq!(first.second(Load::default(), second * SECOND, 0), Second::default());
    }
    assert_eq!(first.quiet_ms(), 20_000);
    // Another boot: the monotonic clock begins anew.
    let mut next = Breaker::new(config(), first.trip().copied(), first.quiet_ms());
    let closed = (0..60).find(|second| next.second(Load::default(), (5 + second) * SECOND, 0).closed.is_some());
    assert_eq!(closed, Some(10), "seconds that were left of thirty");
}

#[test]
fn another_model_has_let_nobody_pass() {
    let mut breaker = breaker();
    let now = ordinary(&mut breaker, 40);
    assert!((0..3).all(|client| breaker.accused(proven(1_000 + client), now, 0).is_none()));
    breaker.another_model();
    assert_eq!(cap(breaker.accused(proven(1_004), now, 0)), Some(Cap::Sources));
}

#[test]
fn a_rule_blocks_no_more_sources_than_the_share() {
    let mut breaker = breaker();
    ordinary(&mut breaker, 10);
    let blocked = (0..).find(|blocked| breaker.would_block_too_many(*blocked));
    assert_eq!(blocked, Some(5), "the sixth of ten");
    assert!(!Breaker::new(config(), None, 0).would_block_too_many(1), "one or two are no share");
}

#[test]
fn caps_can_be_off() {
    let off = BreakerConfig { drops_per_second: 0, source_share: 1.0, verdicts_per_minute: 0, ..config() };
    let mut breaker = Breaker::new(off, None, 0);
    assert!((0..1_000).all(|number| breaker.accused(proven(number), SECOND, 0).is_none()));
    assert!((0..1_000).all(|number| breaker.accused(Party::Unproven(udp(1), address(number)), SECOND, 0).is_none()));
    assert_eq!(breaker.second(Load { drops: u64::MAX, sources: 50 }, SECOND, 0), Second::default());
}

#[test]
fn a_trip_that_an_earlier_version_kept_is_read() {
    let kept = r#"{"cap":"flows","measured":0.9,"allowed":0.8,"unix_ms":7}"#;
    assert_eq!(serde_json::from_str::<Trip>(kept).expect("read").cap, Cap::Sources);
}
