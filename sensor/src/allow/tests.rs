//! What is protected, and for how long.

use super::*;

fn item(text: &str) -> Item {
    text.parse().expect(text)
}

fn list(items: &[&str]) -> List {
    let mut list = List::default();
    items.iter().for_each(|text| drop(list.add(entry(item(text), Why::Operator))));
    list
}

fn record(flow: &str) -> FlowRecord {
    let Ok(Scope::Flow(key)) = flow.parse() else { panic!("{flow} is no flow") };
    let mut record = FlowRecord::zeroed();
    record.key = key;
    record
}

#[test]
fn every_item_reads_back_as_it_was_written() {
    for text in ["198.18.0.0/16", "2001:db8::1", "tcp/22", "udp/53", "dev:eth0", "tcp,198.18.0.1:1,198.18.0.2:2"] {
        assert_eq!(item(text).to_string(), text);
    }
    for (text, word) in [("tcp/0", "1 to 65535"), ("tcp,198.18.0.1:22", "tcp/22"), ("eth0", "dev:eth0")] {
        let error = format!("{:#}", text.parse::<Item>().expect_err(text));
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn an_item_stays_until_its_last_reason_goes() {
    let mut list = List::of(&["198.18.7.1/24".parse().expect("a prefix")], &[], &[]);
    let network = item("198.18.7.0/24");
    assert_eq!(list.add(entry(network.clone(), Why::Gateway)), None, "it is protected already");
    let error = list.remove(&network, Why::Operator).expect_err("not the operator's").to_string();
    assert!(error.contains("because of configuration and gateway"), "{error}");
    assert_eq!(list.remove(&network, Why::Configuration).expect("there"), None);
    let gone = Change { item: network.clone(), allowed: false };
    assert_eq!(list.replace(Why::Gateway, &[]), [gone]);
    assert!(list.remove(&network, Why::Gateway).is_err() && list.entries().is_empty());
    assert!(!list.protects(&record("udp,198.18.7.9:1,198.18.0.10:2")));
}

#[test]
fn a_refreshed_set_changes_only_what_is_new_or_gone() {
    let mut list = List::default();
    let of = |names: &[&str]| names.iter().map(|name| (item(name), String::new())).collect::<Vec<_>>();
    assert_eq!(list.replace(Why::Resolver, &of(&["198.18.0.53", "2001:db8::53"])).len(), 2);
    assert!(list.replace(Why::Resolver, &of(&["2001:db8::53", "198.18.0.53"])).is_empty());
    let changes = list.replace(Why::Resolver, &of(&["198.18.0.54", "198.18.0.53"]));
    let change = |name: &str, allowed| Change { item: item(name), allowed };
    assert_eq!(changes, [change("198.18.0.54", true), change("2001:db8::53", false)]);
}

#[test]
fn endpoints_ports_interfaces_and_flows_protect() {
    let mut list = list(&["198.18.7.0/24", "tcp/22", "tcp,198.18.0.10:2222,198.18.66.7:50000", "2001:db8:7::/48"]);
    for flow in [
        "udp,198.18.7.1:9,198.18.0.10:5514",
        "udp,198.18.0.10:5514,198.18.7.1:9",
        "icmp,[2001:db8::1]:0,[2001:db8:7::9]:0",
        "tcp,198.18.0.10:2222,198.18.66.7:50000",
        "tcp,198.18.0.10:2222,198.18.66.7:50000,vlan=5",
        "icmpv6,[2001:db8::1]:0,[2001:db8::2]:0",
        "udp,0.0.0.0:68,255.255.255.255:67",
    ] {
        assert!(list.protects(&record(flow)), "{flow}");
    }
    let mut ssh = record("tcp,198.18.0.10:22,198.18.66.7:50000");
    assert!(!list.protects(&ssh), "here the low end began: 50000 is the responder's port");
    ssh.state |= state::INITIATOR_HIGH;
    assert!(list.protects(&ssh));
    let mut other = record("tcp,198.18.0.10:2222,198.18.66.7:50001");
    assert!(!list.protects(&other));
    other.ifindex = 3;
    list.set_indexes([3].into());
    assert!(list.protects(&other));
}

/// Addresses of a link protect without being on the list, where they can be.
#[test]
fn addresses_of_a_link_protect_where_they_can_be() {
    let mut list = List::default();
    list.set_own(["198.18.0.10".parse().expect("an address")].into());
    let protects = |list: &List, flow: &str, high: bool, ifindex: u32| {
        let mut record = record(flow);
        record.state = if high { state::INITIATOR_HIGH } else { 0 };
        record.ifindex = ifindex;
        list.protects(&record)
    };
    // The second end begins where it says true.
    for (flow, high, expected) in [
        ("udp,198.18.0.7:5353,224.0.0.251:5353", false, true),
        ("udp,198.18.0.10:80,224.0.0.251:5353", true, false),
        ("tcp,169.254.1.9:4000,198.18.0.10:80", false, false),
        ("tcp,169.254.169.254:80,198.18.0.10:4000", true, true),
        ("tcp,127.0.0.1:4000,198.18.0.10:80", false, false),
        ("tcp,[fe80::1]:4000,[fe80::10]:179", false, true),
    ] {
        assert_eq!(protects(&list, flow, high, 2), expected, "{flow}");
    }
    assert!(protects(&list, "tcp,127.0.0.1:4000,127.0.0.1:80", false, 1), "loopback");
    list.set_link_local([2].into());
    assert!(protects(&list, "tcp,169.254.1.9:4000,198.18.0.10:80", false, 2), "a neighbour");
    assert!(!protects(&list, "tcp,169.254.1.9:4000,198.18.0.10:80", false, 3), "of another link");
}

#[test]
fn what_is_protected_as_a_whole_gets_no_verdict() {
    let list = list(&["198.18.7.0/24", "tcp/22"]);
    let forbids = |scope: &str| list.forbids(&scope.parse().expect(scope));
    assert!(forbids("198.18.7.9").expect("covered").contains("198.18.7.0/24"));
    assert!(forbids("198.18.7.0/25").is_some() && forbids("198.18.0.0/16").is_none());
    assert!(forbids("tcp,198.18.0.10:22").is_some() && forbids("tcp,198.18.0.10:80").is_none());
    assert!(forbids("udp,198.18.0.10:1,198.18.7.9:2").is_some());
    assert!(forbids("udp,0.0.0.0:68,255.255.255.255:67").is_some());
    assert!(forbids("icmpv6,2001:db8::1,2001:db8::2").is_none(), "the kernel knows which of its packets are vital");
}

#[test]
fn ports_on_the_list_are_those_of_this_host() {
    let mut list = list(&["tcp/443"]);
    list.set_own(["198.18.0.10".parse().expect("an address")].into());
    let served = "tcp,198.18.0.10:443,198.18.66.7:50000";
    let opened = "tcp,198.18.0.10:50000,198.18.66.7:443";
    for (flow, protected) in [(served, true), (opened, false)] {
        let mut record = record(flow);
        for initiator in [0, state::INITIATOR_HIGH] {
            record.state = initiator;
            assert_eq!(list.protects(&record), protected, "{flow}, whoever is said to have begun it");
        }
        assert_eq!(list.forbids(&flow.parse().expect(flow)).is_some(), protected, "{flow}");
    }
}

#[test]
fn echoes_are_not_what_a_network_lives_by() {
    let mut record = record("icmpv6,[2001:db8::1]:7,[2001:db8::2]:7");
    assert!(List::default().protects(&record));
    record.directions[0].flags[icmp_kind::ECHO_REQUEST] = 1;
    assert!(!List::default().protects(&record));
}

#[test]
fn entries_end() {
    let mut list = List::default();
    let now = Moment { ns: 1_000_000_000, unix_ms: 1_700_000_000_000 };
    let until_unix_ms = Some(now.plus_ms(5_000).unix_ms);
    let timed = Entry { until_unix_ms, ..entry(item("198.18.7.1"), Why::Operator) };
    assert!(list.restore(timed.clone(), now));
    assert!(list.expire(now.plus_ms(4_999).ns).0.is_empty());
    let (ended, changes) = list.expire(now.plus_ms(5_000).ns);
    assert_eq!((ended.len(), changes.len()), (1, 1));
    assert!(!list.restore(timed, now.plus_ms(5_000)), "it has ended");
}
