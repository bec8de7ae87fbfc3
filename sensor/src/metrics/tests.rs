//! The exposition holds what is declared, counts what it is given, and never steps back.

use bytemuck::Zeroable;
use sensor_common::counter::{Cause, Hook};

use super::*;

/// Metrics with a sample of everything.
fn sample() -> Metrics {
    let metrics = Metrics::new();
    let mut counters = InterfaceCounters::zeroed();
    counters.seen[Hook::Ingress as usize][Action::Pass as usize].packets = 90;
    counters.seen[Hook::Ingress as usize][Action::Pass as usize].bytes = 9_000;
    counters.seen[Hook::Egress as usize][Action::Drop as usize].packets = 10;
    counters.unrecorded[Cause::NotIp as usize] = 5;
    counters.unrecorded[Cause::BucketFull as usize] = 3;
    counters.flows_created = 7;
    counters.evicted_lost_packets = 2;
    metrics.kernel("eth0", &counters);
    metrics.kernel("eth1", &counters);
    metrics.interfaces([("eth0".to_owned(), true), ("eth2".to_owned(), false)].into(), 1);
    metrics.ended_packets(50, 9);
    metrics.unscored();
    metrics.program("sensor_xdp", Duration::from_millis(1500), 1000);
    metrics.table(65_536, 16_384);
    metrics.context(3, 2);
    metrics.map_memory(50_000_000, 1);
    metrics.flows_ended(EndReason::Idle, 4);
    metrics.inference(100, Duration::from_micros(700));
    metrics.inference_error();
    metrics.verdicts(Action::Drop, "scan \"x\"\\", 2);
    metrics.would_verdicts(Action::Tag, "scan", 3);
    metrics.reported("scan", 1);
    metrics.taken_off("eth1");
    metrics.lease(true);
    metrics.poll(Duration::from_millis(2), true);
    metrics.model(ModelRole::Active, Some(("abc", "baseline")));
    metrics.model(ModelRole::Shadow, Some(("def", "next")));
    metrics.model_load(ModelRole::Active, LoadSource::File, false);
    let (mut decisions, labels) = ([[0; 4]; 4], [1, 4]);
    decisions[Action::Pass as usize][Action::Drop as usize] = 5;
    let duration = Duration::from_micros(900);
    metrics.shadow(&Agreement { duration, decisions, labels, differences: vec![0.0, 0.02, 0.4] });
    metrics.shadow_skipped(6);
    metrics.shadow_error();
    metrics.drift([("fwd_packets", 0.3)].into_iter(), Some(0.05), crate::model::drift::Level::High);
    metrics.drift_fallback(true);
    metrics.enforcement(Enforcement {
        mode: Some(crate::config::Mode::Tag),
        verdicts: [(("prefix", Action::Limit, crate::config::OriginName::Operator), 3)].into(),
        state_kept: Some(true),
        ..Enforcement::default()
    });
    metrics.log_lost([("stderr", 7)].into_iter());
    metrics.verdict_change(VerdictChange::Expired, "flow", crate::config::OriginName::Model);
    metrics.breaker_tripped(crate::breaker::Cap::Sources);
    metrics.config_taken("00ff".to_owned());
    metrics
}

#[test]
fn every_declared_metric_is_exposed_with_its_labels_and_nothing_else() {
    let text = sample().prometheus();
    let mut exposed = Vec::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let metric = declared::ALL.iter().find(|metric| metric.name == name).expect(line);
            assert_eq!(metric.kind.name(), kind);
            assert!(text.contains(&format!("# HELP {name} {}.\n", metric.help)), "{name}");
            exposed.push(name);
        } else if !line.starts_with('#') && !line.contains("_bucket{") {
            let name = line.split(['{', ' ']).next().expect("a name");
            if let Some(metric) = declared::ALL.iter().find(|metric| metric.name == name) {
                let labels: Vec<_> =
                    metric.labels.iter().filter(|label| line.contains(&format!("{label}=\""))).collect();
                assert_eq!(labels.len(), metric.labels.len(), "{line}");
                assert_eq!(line.contains('{'), !labels.is_empty(), "{line}");
            }
        }
    }
    let mut declared: Vec<_> = declared::ALL.iter().map(|metric| metric.name).collect();
    exposed.sort_unstable();
    declared.sort_unstable();
    assert_eq!(exposed, declared, "each once");
}

#[test]
fn values() {
    let metrics = sample();
    let text = metrics.prometheus();
    for line in [
        "sensor_packets_total{interface=\"eth0\",direction=\"ingress\",action=\"pass\"} 90",
        "sensor_packets_total{interface=\"eth1\",direction=\"egress\",action=\"drop\"} 10",
        "sensor_lookups_total{interface=\"eth0\",result=\"hit\"} 85",
        "sensor_lookups_total{interface=\"eth0\",result=\"miss\"} 10",
        "sensor_loss_packets_total{stage=\"parse\",cause=\"not_ip\"} 10",
        "sensor_loss_packets_total{stage=\"evict\",cause=\"ring_full\"} 4",
        "sensor_interface_attached{interface=\"eth2\"} 0",
        "sensor_ended_packets_total{outcome=\"released\"} 50",
        "sensor_unscored_ended_flows_total 1",
        "sensor_flows_created_total 14",
        "sensor_flows_ended_total{reason=\"idle\"} 4",
        "sensor_flows_ended_total{reason=\"closed\"} 0",
        "sensor_table_occupancy_ratio 0.25",
        "sensor_verdicts_total{action=\"drop\",label=\"scan \\\"x\\\"\\\\\"} 2",
        "sensor_program_run_seconds_total{program=\"sensor_xdp\"} 1.5",
        "sensor_inference_seconds_count 1",
        "sensor_lease_active 1",
        "sensor_model_info{role=\"active\",hash=\"abc\",name=\"baseline\"} 1",
        "sensor_model_loads_total{role=\"active\",source=\"file\",result=\"refused\"} 1",
        "sensor_shadow_decisions_total{active=\"pass\",shadow=\"drop\"} 5",
        "sensor_shadow_decisions_total{active=\"drop\",shadow=\"drop\"} 0",
        "sensor_shadow_labels_total{agreement=\"same\"} 4",
        "sensor_shadow_score_difference_count 3",
        "sensor_drift_feature_psi{feature=\"fwd_packets\"} 0.3",
        "sensor_drift_level 2",
        "sensor_drift_fallback_active 1",
        "sensor_mode{mode=\"tag\"} 1",
        "sensor_mode{mode=\"enforce\"} 0",
        "sensor_verdicts_held{scope=\"prefix\",action=\"limit\",origin=\"operator\"} 3",
        "sensor_verdict_changes_total{change=\"expired\",scope=\"flow\",origin=\"model\"} 1",
        "sensor_breaker_trips_total{cap=\"sources\"} 1",
        "sensor_never_drop_entries{why=\"gateway\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    let totals = metrics.totals();
    assert_eq!((totals.packets, totals.bytes, totals.dropped, totals.lost), (200, 18_000, 20, 6 + 4));
    let view = metrics.packets_view(Some("eth0"));
    assert_eq!((view.seen, view.recorded, view.unrecorded, view.dropped), (100, 82, 8, 10));
    assert_eq!(metrics.loss_view()["insert"]["bucket_full"], 6);
    assert_eq!(metrics.verdicts_view().withheld["tag"]["scan"], 3);
}

#[test]
fn derived_counters_do_not_step_back() {
    let metrics = Metrics::new();
    let mut counters = InterfaceCounters::zeroed();
    counters.seen[0][0].packets = 10;
    metrics.kernel("eth0", &counters);
    counters.flows_created = 1; // the packet of this flow is not yet in `seen`
    metrics.kernel("eth0", &counters);
    assert!(metrics.prometheus().contains("sensor_lookups_total{interface=\"eth0\",result=\"hit\"} 10\n"));
}

#[test]
fn labels_are_bounded_over_all_models() {
    let metrics = Metrics::new();
    for number in 0..1_000 {
        metrics.verdicts(Action::Drop, &format!("label-{number}"), 1);
        metrics.reported(&format!("label-{number}"), 1);
    }
    metrics.verdicts(Action::Drop, "label-0", 1);
    let text = metrics.prometheus();
    assert_eq!(text.lines().filter(|line| line.starts_with("sensor_verdicts_total{")).count(), 256 + 1);
    for line in [
        "sensor_verdicts_total{action=\"drop\",label=\"label-0\"} 2",
        "sensor_verdicts_total{action=\"drop\",label=\"other\"} 744",
        "sensor_reported_flows_total{label=\"other\"} 744",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert_eq!(metrics.totals().verdicts, 1_001);
}

#[test]
fn a_sum_stays_when_interfaces_are_renamed_and_when_they_are_gone() {
    let metrics = Metrics::new();
    let counted = |packets: u64| {
        let mut counters = InterfaceCounters::zeroed();
        counters.seen[0][0].packets = packets;
        counters
    };
    let seen = |name: Option<&str>| metrics.packets_view(name).seen;
    metrics.kernel("eth0", &counted(5));
    metrics.kernel("veth1", &counted(7));
    metrics.rename(("veth1", None), ("lan1", &counted(7)));
    assert_eq!((seen(Some("veth1")), seen(Some("lan1")), seen(None)), (0, 7, 12));
    metrics.rename(("lan1", Some(&counted(2))), ("veth1", &counted(5)));
    assert_eq!((seen(Some("veth1")), seen(Some("lan1")), seen(None)), (5, 2, 12));
    metrics.fold(&["veth1".to_owned(), "lan1".to_owned()], "(gone)", Some(&counted(7)));
    assert_eq!((seen(Some("veth1")), seen(Some("(gone)")), seen(None)), (0, 7, 12));
    assert!(!metrics.prometheus().contains("veth1"), "its series have ended");
}
