//! `sensor doctor`: what is here, what will be used, what is missing and how to get it.
//!
//! [`examine`] is pure: probed capabilities in, findings out. Called by `cli`.

use std::fmt::Write;

use serde::Serialize;

use crate::bpf::probe::{
    AttachedXdp, Capabilities, ETHERNET, InterfaceCapabilities, LOOPBACK, MIN_KERNEL, OLDEST_KERNEL, frames_name,
};

/// Largest MTU whose frames fit one buffer of every driver (a page less headroom and tail).
const SINGLE_BUFFER_MTU: u32 = 3498;
/// How the names of the XDP programs of an agent begin.
const OWN_XDP: &str = "sensor_xdp";

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Sensor runs, with less.
    Note,
    /// Sensor cannot run.
    Missing,
    /// Could not be asked.
    Unknown,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub item: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What Sensor will do with it.
    pub used: String,
    /// What the user can do; empty if nothing needs doing.
    pub remedy: String,
}

/// An interface and its findings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InterfaceReport {
    /// What was probed.
    #[serde(flatten)]
    pub capabilities: InterfaceCapabilities,
    /// What it means.
    pub findings: Vec<Finding>,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether `sensor run` can work here.
    pub can_run: bool,
    /// What was probed.
    pub kernel: Capabilities,
    /// What it means.
    pub findings: Vec<Finding>,
    /// Per interface.
    pub interfaces: Vec<InterfaceReport>,
    /// Interfaces that could not be probed, and why.
    pub errors: Vec<String>,
}

struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, item: &'static str, level: Level, found: impl Into<String>, used: &str, remedy: &str) {
        self.0.push(Finding {
            item,
            level,
            found: found.into(),
            used: used.to_owned(),
            remedy: if level == Level::Ok { String::new() } else { remedy.to_owned() },
        });
    }

    /// A question that the kernel answers only to the privileged.
    fn ask(&mut self, item: &'static str, privileged: bool, answer: bool, otherwise: Level, used: &str, remedy: &str) {
        if privileged {
            self.add(item, level(answer, otherwise), yes(answer), used, remedy);
        } else {
            self.add(item, Level::Unknown, "cannot be asked without the privileges above", "", "");
        }
    }
}

fn level(good: bool, otherwise: Level) -> Level {
    if good { Level::Ok } else { otherwise }
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

/// Judges what was probed.
pub fn examine(kernel: Capabilities, interfaces: Vec<InterfaceCapabilities>, errors: Vec<String>) -> Report {
    let findings = judge_kernel(&kernel);
    let interfaces: Vec<_> = interfaces
        .into_iter()
        .map(|capabilities| InterfaceReport { findings: judge_interface(&capabilities), capabilities })
        .collect();
    let can_run = errors.is_empty()
        && !findings
            .iter()
            .chain(interfaces.iter().flat_map(|interface| &interface.findings))
            .any(|finding| finding.level == Level::Missing);
    Report { can_run, kernel, findings, interfaces, errors }
}

/// Adds which interfaces the same packets pass: `pairs` of names, the first of which stands on the other.
pub fn judge_pairs(report: &mut Report, pairs: &[(String, String)]) {
    for (upper, lower) in pairs {
        let Some(place) = report.interfaces.iter_mut().find(|one| one.capabilities.name == *upper) else { continue };
        let mut findings = Findings(std::mem::take(&mut place.findings));
        findings.add(
            "counted twice",
            Level::Note,
            format!("{lower} has the same packets"),
            "a packet that passes both counts twice, in flows, features and limits",
            "watch one of them",
        );
        place.findings = findings.0;
    }
}

/// Adds what is known against the kept state of an agent with the default `agent.state_dir`.
pub fn judge_state(report: &mut Report, doubt: Option<String>) {
    let Some(doubt) = doubt else { return };
    let mut findings = Findings(std::mem::take(&mut report.findings));
    findings.add(
        "kept state",
        Level::Note,
        doubt,
        "mode observe, whatever the configuration says",
        "look at `sensor allow list`, then say what is wanted: `sensor mode enforce`",
    );
    report.findings = findings.0;
}

fn judge_kernel(kernel: &Capabilities) -> Vec<Finding> {
    let Capabilities {
        release,
        version,
        machine,
        privileges,
        btf,
        jit,
        syn_cookies,
        xdp,
        classifier,
        ring_buffer,
        xdp_frags,
        tcx,
        bpf_fs,
    } = kernel;
    let mut findings = Findings(Vec::new());
    let missing = privileges.missing();
    let privileged = missing.is_empty();

    findings.add(
        "kernel",
        match *version {
            version if version >= MIN_KERNEL => Level::Ok,
            version if version >= OLDEST_KERNEL => Level::Note,
            _ => Level::Missing,
        },
        format!("{release} ({machine})"),
        "",
        "Sensor needs Linux 6.1 or newer; 5.15 to 6.0 have what it uses, and were never tested",
    );
    findings.add(
        "privileges",
        level(missing.is_empty(), Level::Missing),
        match (missing.is_empty(), privileges.root) {
            (true, true) => "root".to_owned(),
            (true, false) => "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON".to_owned(),
            (false, _) if privileges.user_namespace => {
                "those of a user namespace, which count for nothing here".to_owned()
            }
            (false, _) => format!("without {}", missing.join(", ")),
        },
        "",
        if privileges.user_namespace {
            "run outside of the user namespace (an unprivileged container, `unshare --user`), as root of the host"
        } else {
            "run as root, or give the service CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
        },
    );
    let missing = Level::Missing;
    findings.ask("xdp programs", privileged, *xdp, missing, "ingress", "a kernel with CONFIG_BPF_SYSCALL=y");
    let remedy = "a kernel with CONFIG_NET_CLS_BPF";
    findings.ask("classifiers", privileged, *classifier, missing, "egress and tagging", remedy);
    let remedy = "a kernel with CONFIG_BPF_SYSCALL=y, 5.8 or later";
    findings.ask("ring buffer", privileged, *ring_buffer, missing, "evicted records", remedy);
    findings.add(
        "btf",
        level(*btf, Level::Note),
        yes(*btf),
        "names in verifier messages; Sensor's programs read no kernel types",
        "a kernel with CONFIG_DEBUG_INFO_BTF=y",
    );
    findings.add(
        "jit",
        match jit {
            Some(on) => level(*on, Level::Note),
            None => Level::Unknown,
        },
        match jit {
            Some(true) => "on",
            Some(false) => "off: every packet costs several times as much",
            None => "unknown",
        },
        "",
        "sysctl -w net.core.bpf_jit_enable=1",
    );
    findings.add(
        "syn cookies",
        match syn_cookies {
            Some(on) => level(*on, Level::Note),
            None => Level::Unknown,
        },
        syn_cookies.map_or("unknown", yes),
        match syn_cookies {
            Some(true) => "the kernel answers floods of SYNs to this host's own services",
            Some(false) => "a flood of SYNs shuts new clients out of this host's own services",
            None => "",
        },
        "sysctl -w net.ipv4.tcp_syncookies=1; policy.half_open_limit is for services that this host forwards to",
    );
    let used = if *xdp_frags { "jumbo frames in native mode" } else { "native mode up to one buffer a frame" };
    let remedy = "5.18 or later for native XDP with jumbo frames; TC ingress works without";
    findings.ask("xdp frags", privileged, *xdp_frags, Level::Note, used, remedy);
    findings.add(
        "tcx",
        level(*tcx, Level::Note),
        yes(*tcx),
        if *tcx { "egress by link" } else { "egress by a clsact qdisc" },
        "6.6 or later; clsact does the same, but others can remove it",
    );
    findings.add(
        "bpf fs",
        level(*bpf_fs, Level::Note),
        yes(*bpf_fs),
        if *bpf_fs { "pins, takeover" } else { "" },
        "mount -t bpf bpf /sys/fs/bpf; without it no agent can take over from another (agent.pins)",
    );
    findings.0
}

fn judge_interface(interface: &InterfaceCapabilities) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    let up = if interface.up { "up" } else { "down" };
    findings.add(
        "link",
        level(interface.up, Level::Note),
        format!(
            "{}, {up}, MTU {}, {} receive and {} transmit queues",
            interface.driver, interface.mtu, interface.rx_queues, interface.tx_queues
        ),
        "",
        &format!("ip link set {} up", interface.name),
    );
    match interface.frames {
        ETHERNET => {}
        LOOPBACK => findings.add(
            "frames",
            Level::Note,
            "loopback",
            "each packet is sent and received here, and counts twice",
            "watch it for what local processes send to each other only",
        ),
        kind => findings.add(
            "frames",
            Level::Missing,
            format!("no Ethernet header: {} (type {kind})", frames_name(kind)),
            "attaching will be refused",
            "watch the interface that its packets leave the host by",
        ),
    }
    let source = if interface.native_known { "the driver says so" } else { "from a list of drivers" };
    findings.add(
        "native xdp",
        level(interface.native_xdp, Level::Note),
        format!("{} ({source})", yes(interface.native_xdp)),
        if interface.native_xdp { "native XDP, else TC ingress" } else { "TC ingress" },
        "nothing to do: TC ingress sees the same packets at a higher cost each",
    );
    if interface.native_xdp && interface.mtu > SINGLE_BUFFER_MTU {
        let frags = interface.native_frags;
        findings.add(
            "jumbo frames",
            match frags {
                Some(frags) => level(frags, Level::Note),
                None => Level::Unknown,
            },
            format!("MTU {}, driver with frags: {}", interface.mtu, frags.map_or("unknown", yes)),
            if frags == Some(true) { "native" } else { "native if the driver takes it, else TC ingress" },
            "an MTU of at most 3498 for native mode",
        );
    }
    if let Some(AttachedXdp { mode, program_id, program }) = &interface.xdp_attached {
        let id = program_id.map_or_else(String::new, |id| format!(", program id {id}"));
        if program.as_deref().is_some_and(|name| name.starts_with(OWN_XDP)) {
            findings.add(
                "xdp program",
                Level::Ok,
                format!("Sensor's own, {mode}{id}"),
                "an agent watches this interface; another one needs --takeover",
                "",
            );
        } else {
            findings.add(
                "other xdp program",
                Level::Missing,
                format!("attached, {mode}{id}"),
                "an interface has one XDP program: attaching will be refused",
                &format!("stop its owner (bpftool net show), or: ip link set dev {} xdp off", interface.name),
            );
        }
    }
    if let Some(on) = interface.rx_vlan_offload {
        findings.add(
            "rx-vlan-offload",
            level(!on, Level::Note),
            if on { "on: native XDP does not see received VLAN tags" } else { "off" },
            if on { "received frames of all VLANs count as untagged" } else { "VLAN ids are part of the flow" },
            &format!("only if VLANs reuse addresses: ethtool -K {} rxvlan off", interface.name),
        );
    }
    if interface.hardware_receive_offload == Some(true) {
        findings.add(
            "lro / gro-hw",
            Level::Note,
            "on: received packets are merged before Sensor sees them",
            "merged packets count as one at XDP, and some drivers refuse native XDP: then TC ingress, which counts segments",
            &format!("where the driver lets you: ethtool -K {} lro off rx-gro-hw off", interface.name),
        );
    }
    findings.0
}

/// The report as text.
pub fn render(report: &Report) -> String {
    let mut text = String::new();
    let mut list = |title: &str, findings: &[Finding]| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{title}");
        for Finding { item, level, found, used, remedy } in findings {
            let mark = match level {
                Level::Ok => "ok",
                Level::Note => "note",
                Level::Missing => "MISSING",
                Level::Unknown => "unknown",
            };
            let used = if used.is_empty() { String::new() } else { format!(" → {used}") };
            let _ = writeln!(text, "  {mark:7} {item:17} {found}{used}");
            if !remedy.is_empty() {
                let _ = writeln!(text, "  {:7} {:17} fix: {remedy}", "", "");
            }
        }
    };
    list("kernel", &report.findings);
    for interface in &report.interfaces {
        list(&format!("interface {}", interface.capabilities.name), &interface.findings);
    }
    for error in &report.errors {
        let _ = writeln!(text, "  MISSING {error}");
    }
    text.push_str(if report.can_run { "sensor can run here\n" } else { "sensor cannot run here: see MISSING above\n" });
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::probe::Privileges;

    fn kernel() -> Capabilities {
        Capabilities {
            release: "6.12.0".to_owned(),
            version: (6, 12),
            machine: "x86_64".to_owned(),
            privileges: Privileges {
                root: true,
                bpf: true,
                net_admin: true,
                perfmon: true,
                sys_admin: true,
                user_namespace: false,
            },
            btf: true,
            jit: Some(true),
            syn_cookies: Some(true),
            xdp: true,
            classifier: true,
            ring_buffer: true,
            xdp_frags: true,
            tcx: true,
            bpf_fs: true,
        }
    }

    fn interface() -> InterfaceCapabilities {
        InterfaceCapabilities {
            name: "eth0".to_owned(),
            ifindex: 2,
            up: true,
            driver: "ice".to_owned(),
            frames: ETHERNET,
            mtu: 1500,
            rx_queues: 4,
            tx_queues: 4,
            native_xdp: true,
            native_frags: Some(true),
            native_known: true,
            xdp_attached: None,
            rx_vlan_offload: Some(false),
            hardware_receive_offload: Some(false),
        }
    }

    #[test]
    fn a_good_machine_has_nothing_to_do() {
        let report = examine(kernel(), vec![interface()], Vec::new());
        assert!(report.can_run);
        let text = render(&report);
        assert!(!text.contains("fix:") && text.ends_with("sensor can run here\n"), "{text}");
    }

    #[test]
    fn an_old_kernel_runs_with_less() {
        let old = Capabilities { version: (5, 15), xdp_frags: false, tcx: false, btf: false, ..kernel() };
        let report = examine(old, vec![InterfaceCapabilities { native_xdp: false, ..interface() }], Vec::new());
        assert!(report.can_run);
        let text = render(&report);
        assert!(text.contains("clsact") && text.contains("TC ingress"), "{text}");
    }

    #[test]
    fn what_stops_sensor_is_missing() {
        let unprivileged =
            Capabilities { privileges: Privileges::default(), xdp: false, ring_buffer: false, ..kernel() };
        let report = examine(unprivileged, vec![], vec![]);
        assert!(!report.can_run);
        let xdp = report.findings.iter().find(|finding| finding.item == "xdp programs").expect("listed");
        assert_eq!(xdp.level, Level::Unknown, "an unprivileged question has no answer");

        assert!(!examine(Capabilities { version: (5, 10), ..kernel() }, vec![], vec![]).can_run);
        assert!(!examine(Capabilities { ring_buffer: false, ..kernel() }, vec![], vec![]).can_run);
        let taken = |name: &str| {
            let there = AttachedXdp { mode: "native", program_id: Some(7), program: Some(name.to_owned()) };
            let report =
                examine(kernel(), vec![InterfaceCapabilities { xdp_attached: Some(there), ..interface() }], vec![]);
            (report.can_run, render(&report))
        };
        let (can_run, text) = taken("xdp_dispatcher");
        assert!(!can_run && text.contains("program id 7"), "{text}");
        let (can_run, text) = taken("sensor_xdp_frag");
        assert!(can_run && text.contains("Sensor's own") && !text.contains("xdp off"), "{text}");
        assert!(!examine(kernel(), vec![], vec!["there is no interface x".to_owned()]).can_run);
    }

    #[test]
    fn an_interface_without_ethernet_frames_is_refused() {
        let of = |frames| {
            let report = examine(kernel(), vec![InterfaceCapabilities { frames, ..interface() }], vec![]);
            (report.can_run, render(&report))
        };
        let (can_run, text) = of(65534);
        assert!(!can_run && text.contains("no Ethernet header: tun, WireGuard"), "{text}");
        assert!(of(512).1.contains("PPP (type 512)") && !of(776).0);
        let (can_run, text) = of(LOOPBACK);
        assert!(can_run && text.contains("counts twice"), "{text}");
    }

    #[test]
    fn a_pair_that_the_same_packets_pass_is_noted() {
        let named = |name: &str| InterfaceCapabilities { name: name.to_owned(), ..interface() };
        let mut report = examine(kernel(), vec![named("br0"), named("port1")], vec![]);
        judge_pairs(&mut report, &[("br0".to_owned(), "port1".to_owned())]);
        let text = render(&report);
        assert!(report.can_run && text.contains("counted twice     port1 has the same packets"), "{text}");
        assert_eq!(text.matches("counted twice").count(), 1);
    }

    #[test]
    fn json_has_the_capabilities() {
        let json = serde_json::to_value(examine(kernel(), vec![interface()], vec![])).expect("JSON");
        assert_eq!((&json["can_run"], &json["kernel"]["tcx"]), (&true.into(), &true.into()));
        assert_eq!(json["interfaces"][0]["driver"], "ice");
    }
}
