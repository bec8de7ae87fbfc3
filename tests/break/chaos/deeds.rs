//! What is done to the agent and around it.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::onnx::model;
use sensor_tests::rng::Rng;
use sensor_tests::topology::UPLINK;

use super::scene::Scene;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// SIGKILL, and another agent takes over.
    Kill,
    /// SIGTERM, and another agent starts.
    Stop,
    /// Another agent takes over from the running one.
    TakeOver,
    /// SIGSTOP for a while.
    Hang,
    /// The disk of the agent's state is full for a while.
    FullDisk,
    /// Nobody reads what it logs for a while.
    UnreadLog,
    /// Interfaces come and go.
    Interfaces,
    /// Its model is loaded again.
    Model,
    /// A broken model.
    BadModel,
    /// SYNs in the name of others.
    Flood,
    /// Another tool takes a program off the interface.
    Detach,
}

impl Deed {
    pub(super) const ALL: [Deed; 11] = [
        Deed::Kill,
        Deed::Stop,
        Deed::TakeOver,
        Deed::Hang,
        Deed::FullDisk,
        Deed::UnreadLog,
        Deed::Interfaces,
        Deed::Model,
        Deed::BadModel,
        Deed::Flood,
        Deed::Detach,
    ];
}

impl Scene {
    pub(super) fn perform(&mut self, deed: Deed, rng: &mut Rng) {
        match deed {
            Deed::Kill => {
                let agent = self.agent.take().expect("there is an agent");
                agent.signal(Signal::KILL);
                agent.ends(false);
                self.agent = Some(self.agent(&["--takeover"]));
            }
            Deed::Stop => {
                let since = Instant::now();
                self.stop();
                self.agent = Some(self.agent(&[]));
                self.attached += 2;
                self.exposed_since(since);
            }
            Deed::TakeOver => {
                let next = self.agent(&["--takeover"]);
                if let Some(last) = self.agent.replace(next) {
                    last.ends(true);
                }
            }
            Deed::Hang => {
                self.now().signal(Signal::STOP);
                std::thread::sleep(rng.millis(200..3_000));
                self.now().signal(Signal::CONT);
            }
            Deed::FullDisk => self.fill_disk(),
            Deed::UnreadLog => self.leave_log_unread(),
            Deed::Interfaces => self.churn(rng),
            Deed::Model => {
                self.now().signal(Signal::HUP);
                std::thread::sleep(rng.millis(100..1_000));
            }
            Deed::BadModel => {
                let path = self.path("bad.onnx");
                let broken = model("bad", 200.0, &[("golden_outputs", "[[1,0],[1,0],[1,0],[1,0]]")]);
                std::fs::write(&path, broken).map_err(Into::into).must("write a model");
                let (done, said) = self.now().ask(&["model", "load", &path]);
                assert!(!done && said.contains("golden"), "{said}");
            }
            Deed::Flood => {
                let lasts = rng.millis(5_000..9_000);
                let (flood, begun) = (self.flood(lasts), Instant::now());
                wait_for("the flood ends", lasts + Duration::from_secs(10), || !flood.is_running());
                self.floods.push((begun, begun + lasts));
            }
            Deed::Detach => self.detach(),
        }
    }

    fn fill_disk(&mut self) {
        let file = self.disk().join("filler");
        // To the last byte.
        let _full = std::fs::write(&file, vec![0; 8 << 20]);
        // Commands do what they can, and say what was not kept.
        let (_, first) = self.now().ask(&["mode", "enforce"]);
        let (_, second) = self.now().ask(&["allow", "add", "198.18.1.99"]);
        std::thread::sleep(Duration::from_millis(500));
        std::fs::remove_file(&file).map_err(Into::into).must("free the disk");
        let works = || self.now().ask(&["allow", "add", "198.18.1.98"]).0;
        wait_for("the state is kept again", Duration::from_secs(20), works);
        eprintln!("        full: {} / {}", first.trim(), second.trim());
        for entry in ["198.18.1.98", "198.18.1.99"] {
            let _gone = self.now().ask(&["allow", "remove", entry]);
        }
    }

    fn leave_log_unread(&mut self) {
        self.now().read(false);
        let begun = Instant::now();
        let mut answered = 0;
        // Each change writes a line or two; the pipe holds a few.
        while begun.elapsed() < Duration::from_secs(3) || answered < 60 {
            for change in ["add", "remove"] {
                let (_, said) = self.now().ask(&["allow", change, "198.18.77.7"]);
                assert!(!said.contains("answered 504") && !said.contains("does not answer"), "{said}");
            }
            answered += 1;
            assert!(begun.elapsed() < Duration::from_secs(60), "it answers too slowly: {answered}");
        }
        self.now().must_ask(&["status"]);
        self.now().read(true);
    }

    fn churn(&mut self, rng: &mut Rng) {
        let edge = &self.lab.edge.netns;
        let names: Vec<String> = (0..rng.range(1..6)).map(|number| format!("churn{number}")).collect();
        for name in &names {
            edge.ip(&format!("link add {name} type veth peer name p{name}")).must("make a pair");
            edge.ip(&format!("link set {name} up")).must("set it up");
        }
        std::thread::sleep(rng.millis(0..800));
        names.iter().for_each(|name| drop(edge.ip(&format!("link del {name}")).must("remove a pair")));
    }

    fn detach(&mut self) {
        let edge = &self.lab.edge.netns;
        let number = edge.within(|| std::fs::read_to_string(format!("/proc/thread-self/net/dev_snmp6/{UPLINK}")));
        let number = number.must("enter the edge").map_err(Into::into).must("ask for the interface's number");
        let number = number.lines().find_map(|line| line.strip_prefix("ifIndex")).unwrap_or_default().trim().to_owned();
        let pin = self.mount.path().join(format!("link-{number}-xdp"));
        let pin = pin.to_string_lossy().into_owned();
        let (since, before) = (Instant::now(), self.now().said().matches("others took").count());
        edge.run("bpftool", &["link", "detach", "pinned", &pin]).must("take it off");
        let again = || self.now().said().matches("others took").count() > before;
        wait_for("the agent noticed", Duration::from_secs(20), again);
        let on = || sensor_tests::checks::has_xdp(&self.lab.edge.netns, UPLINK);
        wait_for("it is attached", Duration::from_secs(20), on);
        self.attached += 2;
        self.exposed_since(since);
    }
}
