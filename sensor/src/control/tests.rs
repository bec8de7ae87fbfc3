//! The socket's life, and a round trip of each request with a stand-in for the poll thread.

use std::collections::BTreeMap;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use tokio::sync::mpsc;

use super::client::fetch;
use super::*;
use crate::config::Mode;
use crate::store::Unkept;
use crate::view::flow::tests::flow;
use crate::view::{
    self, BreakerView, ConfigState, ConfigView, EnforceRequest, EnforcementView, FeaturesView, FlowOrder, FlowPage,
    FlowView, FlowsView, LeaseState, LeaseView, ModeView, PacketsView, PollView, Request, SortKey, StatusView,
    TableView, VerdictsView, Which,
};

fn sample_status() -> StatusView {
    StatusView {
        version: "0.1.0".to_owned(),
        pid: 7,
        mode: Mode::Observe,
        uptime_seconds: 1.5,
        lease: LeaseView { state: LeaseState::Active, remaining_seconds: 4.5, seconds: 5.0 },
        poll: PollView { interval_seconds: 0.1, last_seconds: 0.001, overruns: 0 },
        model: None,
        shadow: None,
        drift: None,
        interfaces: Vec::new(),
        table: TableView { capacity: 65_536, occupancy: 3, memory_bytes: 1 << 20, agent_bytes: 1 << 21 },
        context: None,
        packets: PacketsView::default(),
        flows: FlowsView::default(),
        verdicts: VerdictsView::default(),
        enforcement: enforcement(),
        config: ConfigState { hash: "00ff".to_owned(), ..ConfigState::default() },
        state_problem: None,
        state_doubt: None,
        loss: BTreeMap::new(),
    }
}

fn enforcement() -> EnforcementView {
    EnforcementView {
        configured_mode: Mode::Enforce,
        ramp: false,
        breaker: BreakerView { open: false, trip: None, reason: None, services: Vec::new() },
        flow_verdicts: 1,
        source_verdicts: 2,
        service_limits: 3,
        never_drop: 4,
        never_drop_by: [("gateway".to_owned(), 4)].into(),
        withheld_packets: 5,
        protected_packets: 6,
        audit_lost: 7,
    }
}

/// Answers as the poll thread does.
async fn answer(mut requests: mpsc::Receiver<Request>) {
    while let Some(request) = requests.recv().await {
        match request {
            Request::Flows { query, reply } => {
                assert!(query.first, "an administrator asks");
                let mut flows = vec![flow("1-1", 10, None), flow("2-1", 30, Some(0.25)), flow("3-1", 20, None)];
                let page = match query.order {
                    FlowOrder::Largest(sort) => {
                        view::sort_flows(&mut flows, sort, query.limit);
                        FlowPage { flows, next: None }
                    }
                    // Pages of two.
                    FlowOrder::Table { from } => {
                        let next = Some(from + 2).filter(|next| *next < flows.len());
                        FlowPage { flows: flows.into_iter().skip(from).take(2).collect(), next }
                    }
                };
                let _ = reply.send(page);
            }
            Request::Status { reply } => {
                let _ = reply.send(sample_status());
            }
            Request::Features { id, reply } => {
                let features = [("fwd_packets".to_owned(), Some(4.0)), ("bwd_l3_mean".to_owned(), None)].into();
                let view = FeaturesView { flow: flow(&id, 10, None), features };
                let _ = reply.send((id == "2-1").then_some(view));
            }
            Request::HandOver { pid, reply, .. } => {
                let _ = reply.send(Err(format!("nothing is pinned for {pid}")));
            }
            Request::Load { path, shadow, reply, .. } => {
                let refused = format!("{} refused, shadow {shadow}", path.display());
                let _ = reply.send(Err(refused));
            }
            Request::Reload { by, reply } => {
                let _ = reply.send(Err(format!("/etc/s.toml:3:5: refused for {}", by.uid)));
            }
            Request::Config { reply } => {
                let _ = reply.send(ConfigView { toml: "mode = \"tag\"".to_owned(), ..ConfigView::default() });
            }
            Request::Metrics { reply } => {
                let _ = reply.send("sensor_mode 1\n".to_owned());
            }
            Request::Log { reply } => {
                let _ = reply.send("a line\n".to_owned());
            }
            Request::Enforce(EnforceRequest::Mode { to, by, reply, .. }) => {
                assert_eq!(by.uid, rustix::process::geteuid().as_raw(), "the peer is known");
                let mode = to.unwrap_or(Mode::Observe);
                let _ = reply.send(Ok(ModeView { mode, configured: Mode::Observe, ramp: false, doubt: None }));
            }
            Request::Enforce(EnforceRequest::Disallow { item, reply, .. }) => {
                let _ = reply.send(Err(format!("{item} was not added")));
            }
            Request::Enforce(EnforceRequest::Remove { which, reply, .. }) => {
                let _ = reply.send(if which == Which::All { Ok(Vec::new()) } else { Err(format!("{which:?}")) });
            }
            Request::Enforce(EnforceRequest::Kept { reply }) => {
                let (said, answer) = tokio::sync::oneshot::channel();
                let settings = Some("the disk is full\u{1f4be}".to_owned());
                let _ = (said.send(Unkept { settings, verdicts: None }), reply.send(Ok(Some(answer))));
            }
            Request::Enforce(other) => panic!("not asked here: {other:?}"),
        }
    }
}

#[tokio::test]
async fn round_trip() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("run/sensor.sock");
    let socket = ControlSocket::bind(&path, Access::default()).await.expect("binds");
    assert_eq!(fs::metadata(&path).expect("exists").permissions().mode() & 0o777, 0o600);
    let (sender, receiver) = mpsc::channel(4);
    let poll = tokio::spawn(answer(receiver));
    let server = tokio::spawn(socket.serve(sender));

    assert_eq!(get_status(&path).await.expect("status"), sample_status());
    let flows = get_flows(&path, SortKey::Bytes, 2).await.expect("flows");
    assert_eq!(flows, [flow("2-1", 30, Some(0.25)), flow("3-1", 20, None)]);
    let features = get_features(&path, "2-1").await.expect("lives").features;
    assert_eq!((features["fwd_packets"], features["bwd_l3_mean"]), (Some(4.0), None));
    for (id, expected) in [("3-1", "404"), ("3-1&x=1", "no flow")] {
        let error = format!("{:#}", get_features(&path, id).await.expect_err(id));
        assert!(error.contains(expected), "{error}");
    }
    let error = format!("{:#}", load(&path, "/a b/ü.onnx".into(), true).await.expect_err("refused"));
    assert!(error.contains("/a b/ü.onnx refused, shadow true"), "{error}");
    let error = format!("{:#}", reload(&path).await.expect_err("refused"));
    assert!(error.contains("/etc/s.toml:3:5: refused for"), "{error}");
    assert_eq!(get_config(&path).await.expect("configuration").toml, "mode = \"tag\"");
    assert_eq!(get_metrics(&path).await.expect("metrics"), "sensor_mode 1\n");
    assert_eq!(get_log(&path).await.expect("log"), "a line\n");
    let error = hand_over(&path, [0; 2], Duration::from_secs(5)).await.expect_err("no pins").to_string();
    assert!(error.contains("409") && error.contains(&format!("for {}", std::process::id())), "{error}");
    assert_eq!(mode(&path, None).await.expect("mode").value.mode, Mode::Observe);
    let kept = mode(&path, Some(Mode::Enforce)).await.expect("mode");
    assert_eq!((kept.value.mode, kept.not_kept.as_deref()), (Mode::Enforce, Some("the disk is full?")));
    assert_eq!(serde_json::to_value(&kept).expect("JSON")["not_kept"], "the disk is full?");
    assert!(remove_verdicts(&path, Which::All).await.expect("removed").value.is_empty());
    let error = remove_verdicts(&path, Which::Scope("198.18.0.0/16".into())).await.expect_err("none").to_string();
    assert!(error.contains("404") && error.contains("198.18.0.0/16"), "{error}");
    let error = remove_allow(&path, "tcp/22".parse().expect("an item")).await.expect_err("none").to_string();
    assert!(error.contains("tcp/22 was not added"), "{error}");
    assert_eq!(get_flows(&path, SortKey::Score, 0).await.expect("flows").len(), 3);
    let error = fetch::<StatusView>(&path, "/v1/flows?sort=luck").await.expect_err("unknown order").to_string();
    assert!(error.contains("400") && error.contains("luck"), "{error}");
    let error = fetch::<Vec<FlowView>>(&path, "/v1/flows?limit=0").await.expect_err("not all flows").to_string();
    assert!(error.contains("400") && error.contains("nonzero"), "{error}");

    let error = ControlSocket::bind(&path, Access::default()).await.expect_err("in use").to_string();
    assert!(error.contains("another sensor agent") && error.contains(&std::process::id().to_string()), "{error}");
    assert_eq!(get_status(&path).await.expect("the first goes on"), sample_status());

    poll.abort();
    let _ = poll.await;
    let error = get_status(&path).await.expect_err("stopping").to_string();
    assert!(error.contains("stopping"), "{error}");
    server.abort();
    let _ = server.await;
    assert!(!path.exists(), "removed on shutdown");
    let error = get_status(&path).await.expect_err("gone").to_string();
    assert!(error.contains("sensor run"), "{error}");
}

#[tokio::test]
async fn stale_sockets_are_removed_and_other_files_are_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("sensor.sock");
    // The standard library leaves the file behind, as a killed agent does.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
    assert!(path.exists());
    let first = ControlSocket::bind(&path, Access::default()).await.expect("replaces it");

    // Whoever took the name keeps it.
    fs::remove_file(&path).expect("removes");
    fs::write(&path, "not a socket").expect("writes");
    drop(first);
    assert!(path.exists());
    let error = ControlSocket::bind(&path, Access::default()).await.expect_err("a file").to_string();
    assert!(error.contains("not a socket"), "{error}");
}

#[tokio::test]
async fn a_group_may_connect_and_the_name_is_never_open_to_others() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("sensor.sock");
    let group = |name: &str| Access { group: Some(name.to_owned()), ..Access::default() };
    let error = format!("{:#}", ControlSocket::bind(&path, group("no-such-group")).await.expect_err("no group"));
    assert!(error.contains("agent.socket_group"), "{error}");
    let own = rustix::process::getegid().as_raw().to_string();
    let _socket = ControlSocket::bind(&path, group(&own)).await.expect("binds");
    assert_eq!(fs::metadata(&path).expect("exists").permissions().mode() & 0o777, 0o660);
    let left: Vec<_> = fs::read_dir(directory.path()).expect("a directory").collect();
    assert_eq!(left.len(), 1, "the place where it was made is gone: {left:?}");
}

#[test]
fn nothing_is_done_for_whoever_was_told_that_it_is_not() {
    let (reply, answer) = tokio::sync::oneshot::channel();
    let by = view::Peer { uid: 0, pid: None };
    let request = Request::Enforce(EnforceRequest::Mode { to: Some(Mode::Enforce), by, sessions: None, reply });
    assert!(!request.is_abandoned());
    drop(answer);
    assert!(request.is_abandoned());
}
