//! The control socket: who may connect, who may change anything, and requests that are malformed, huge, or many.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sensor_tests::agent::Agent;
use sensor_tests::checks::Must as _;
use sensor_tests::topology::{Lab, UPLINK};

use super::door::Door;
use super::scene::{Files, lab, metric};

/// A user and groups that nobody has.
const NOBODY: &str = "65533";
const GROUP: &str = "65432";
const OTHER_GROUP: &str = "65431";

/// An agent whose socket is in a directory that everybody can look into.
fn agent(files: &Files, lab: &Lab) -> Agent {
    let directory = tempfile::TempDir::with_prefix("sensor-agent-").map_err(Into::into).must("make a directory");
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.path(), open).map_err(Into::into).must("open the directory");
    let (config, state) = (files.path("sensor.toml"), files.path("state"));
    let args =
        ["-i", UPLINK, "--model", "", "--config", &config.to_string_lossy(), "--state-dir", &state.to_string_lossy()];
    Agent::start_in(directory, &lab.edge.netns, &args).must("start the agent")
}

/// The status code that a user gets, 0 if it cannot even connect, and the body.
fn as_user(user: &str, group: &str, socket: &Path, method: &str, path: &str, body: &str) -> (u32, String) {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", group, "--clear-groups", "curl", "-sS", "--max-time", "10"]);
    command.args(["-o", "-", "-w", "\n%{http_code}", "-X", method, "-H", "content-type: application/json"]);
    if !body.is_empty() {
        command.args(["-d", body]);
    }
    command.arg("--unix-socket").arg(socket).arg(format!("http://localhost{path}"));
    let output = command.output().map_err(Into::into).must("run curl as somebody else");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, code) = text.rsplit_once('\n').unwrap_or_else(|| panic!("curl says: {text}"));
    (code.parse().unwrap_or(0), body.to_owned())
}

const ADD: &str = r#"{"scope":"198.19.1.1","action":"drop","for_seconds":60}"#;

/// Everything that changes something.
const CHANGES: [(&str, &str, &str); 8] = [
    ("POST", "/v1/verdicts", ADD),
    ("POST", "/v1/verdicts/remove", r#"{"which":"all"}"#),
    ("DELETE", "/v1/verdicts/1", ""),
    ("POST", "/v1/allow", r#"{"item":"198.19.1.1"}"#),
    ("POST", "/v1/allow/remove", r#"{"item":"127.0.0.0/8"}"#),
    ("PUT", "/v1/mode", r#"{"mode":"enforce"}"#),
    ("POST", "/v1/breaker/reset", ""),
    ("POST", "/v1/model", r#"{"path":"/nowhere.onnx"}"#),
];

#[test]
fn strangers_are_refused_and_members_of_the_group_read() {
    let lab = lab(1, 0);
    let files = Files::new(&format!("[agent]\nsocket_group = \"{GROUP}\"\n"), None);
    let agent = agent(&files, &lab);
    let socket = agent.socket();
    let mode = std::fs::metadata(&socket).map_err(Into::into).must("look at the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let reads = ["/v1/status", "/v1/flows", "/v1/verdicts", "/v1/allow", "/v1/mode", "/v1/breaker"];
    for path in reads {
        assert_eq!(as_user(NOBODY, OTHER_GROUP, &socket, "GET", path, "").0, 0, "a stranger cannot connect");
        let (code, body) = as_user(NOBODY, GROUP, &socket, "GET", path, "");
        assert_eq!(code, 200, "{path}: {body}");
    }
    for (method, path, body) in CHANGES {
        assert_eq!(as_user(NOBODY, OTHER_GROUP, &socket, method, path, body).0, 0, "a stranger cannot connect");
        let (code, said) = as_user(NOBODY, GROUP, &socket, method, path, body);
        assert_eq!(code, 403, "{method} {path}: {said}");
        assert!(said.contains(NOBODY) && said.contains("may read"), "{said}");
    }
    let (code, said) = as_user("0", "0", &socket, "POST", "/v1/verdicts", ADD);
    assert_eq!(code, 200, "{said}");
    let before = files.events("verdict").len();
    assert_eq!((before, files.events("mode").len()), (1, 0), "nothing of the others came through");
    println!(
        "control: a stranger gets no connection, a member of the group reads {} routes and is refused {} changes",
        reads.len(),
        CHANGES.len()
    );
    agent.stop().must("stop the agent");

    // Without a group, its owner alone.
    let files = Files::new("", None);
    let agent = self::agent(&files, &lab);
    assert_eq!(as_user(NOBODY, GROUP, &agent.socket(), "GET", "/v1/status", "").0, 0);
    agent.stop().must("stop the agent");
}

#[test]
fn nonsense_gets_an_answer_or_is_cut_off() {
    let lab = lab(1, 0);
    let files = Files::new("", None);
    let agent = files.agent(&lab, &[]);
    let socket = agent.socket();
    let ask = |method: &str, path: &str, body: &str| {
        Door::open(&socket).must("connect").ask(method, path, body).must("an answer").0
    };
    let long = "9".repeat(70_000);
    let mut codes = Vec::new();
    for (method, path, body) in [
        ("GET", "/v1/nothing", ""),
        ("GET", "/v1/verdicts/0x7f", ""),
        ("GET", "/v1/verdicts/99999999999999999999999", ""),
        ("GET", "/v1/verdicts?limit=-1", ""),
        ("GET", "/v1/flows?sort=colour", ""),
        ("GET", "/v1/flows?limit=0", ""),
        ("PATCH", "/v1/mode", ""),
        ("PUT", "/v1/mode", r#"{"mode":"destroy"}"#),
        ("PUT", "/v1/mode", r#"{"mode":"enforce","more":1}"#),
        ("POST", "/v1/verdicts", ""),
        ("POST", "/v1/verdicts", "{"),
        ("POST", "/v1/verdicts", "[[[[[[[["),
        ("POST", "/v1/verdicts", r#"{"scope":"198.19.1.1","action":"drop","for_seconds":-5}"#),
        ("POST", "/v1/verdicts", r#"{"scope":"198.19.1.1","action":"drop","for_seconds":0}"#),
        ("POST", "/v1/verdicts", r#"{"scope":"198.19.1.1","action":"drop","for_seconds":18446744073709551615}"#),
        ("POST", "/v1/verdicts", r#"{"scope":"198.19.1.1","action":"pass","for_seconds":5}"#),
        ("POST", "/v1/verdicts", r#"{"scope":"198.19.1.1","action":"limit","for_seconds":5}"#),
        ("POST", "/v1/verdicts", r#"{"scope":"0.0.0.0/0","action":"drop","for_seconds":5}"#),
        ("POST", "/v1/verdicts", r#"{"scope":"::/0","action":"drop","for_seconds":5}"#),
        ("POST", "/v1/verdicts", r#"{"scope":"198.18.0.10","action":"drop","for_seconds":5}"#),
        ("POST", "/v1/verdicts", r#"{"scope":"7777777-1","action":"drop","for_seconds":5}"#),
        ("POST", "/v1/verdicts", &format!(r#"{{"scope":"{long}","action":"drop","for_seconds":5}}"#)),
        ("POST", "/v1/allow", r#"{"item":"0.0.0.0/0"}"#),
        ("POST", "/v1/allow", r#"{"item":"tcp/0"}"#),
        ("POST", "/v1/allow/remove", r#"{"item":"127.0.0.0/8"}"#),
        ("POST", "/v1/verdicts/remove", r#"{"which":{"id":12345}}"#),
        ("DELETE", "/v1/verdicts/12345", ""),
        ("GET", &format!("/v1/{}", "x".repeat(20_000)), ""),
        ("POST", "/v1/verdicts", &"x".repeat(3 << 20)),
    ] {
        let shown: String = format!("{method} {path} {body}").chars().take(90).collect();
        // A huge body may be answered by hanging up before it is sent.
        let answer = Door::open(&socket).must("connect").ask(method, path, body);
        match answer {
            Ok((code, said)) => {
                assert!((400..500).contains(&code), "{shown}: {code} {said}");
                codes.push(code);
            }
            Err(error) => assert!(body.len() > 1 << 20 || path.len() > 10_000, "{shown}: {error:#}"),
        }
    }
    for bytes in [
        &b"\0\xff\xfe garbage \r\n\r\n"[..],
        b"GET",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut door = Door::open(&socket).must("connect");
        // Whether it hears an answer or a dead line is the same: others are served.
        let _hung_up = door.send(bytes);
        assert_eq!(ask("GET", "/v1/status", ""), 200);
    }
    let status = agent.status().must("ask for the status");
    assert_eq!((&status["mode"], &status["lease"]["state"]), (&"observe".into(), &"active".into()));
    assert_eq!(files.events("verdict").len() + files.events("mode").len(), 0, "nothing was changed");
    println!("control: {} malformed requests, answered {codes:?}", codes.len());
    agent.stop().must("stop the agent");
}

#[test]
fn a_thousand_connections_lock_nobody_out() {
    let most = getrlimit(Resource::Nofile);
    let more = Rlimit { current: most.maximum.or(Some(4_096)), ..most };
    setrlimit(Resource::Nofile, more).map_err(Into::into).must("allow more open files");
    let lab = lab(1, 0);
    let files = Files::new("", None);
    let agent = files.agent(&lab, &[]);
    let begun = Instant::now();
    let mut idle = Vec::new();
    for _ in 0..1_000 {
        let stream = UnixStream::connect(agent.socket()).map_err(Into::into).must("connect");
        idle.push(stream);
    }
    let connected = begun.elapsed();
    let begun = Instant::now();
    let answer = agent.ask_json(&["mode", "tag"]).must("change the mode beside a thousand connections");
    let answered = begun.elapsed();
    assert_eq!(answer["mode"], "tag");
    assert_eq!(metric(&agent, "sensor_lease_active", &[], 1), 1);
    println!(
        "control: 1000 idle connections in {:.2} s, then a command took {:.2} s",
        connected.as_secs_f64(),
        answered.as_secs_f64()
    );
    assert!(answered < Duration::from_secs(5));
    drop(idle);
    agent.stop().must("stop the agent");
}
