//! What is attacked in each capture, and the mixture of good traffic that runs beside it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use sensor_tests::attacks::{Attack, Label};
use sensor_tests::clients::{self, Input};
use sensor_tests::content::{self, SIZES};
use sensor_tests::crowd::Crowd;
use sensor_tests::netns::Ns;
use sensor_tests::rng::Rng;
use sensor_tests::stop::Stop;
use sensor_tests::streams::{ECHO_PORT, SINK_PORT, Stream};
use sensor_tests::topology::{EDGE_V4, Lab};

/// One capture: good traffic, and attacks of one kind.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// The capture's share of the whole time.
    pub(crate) weight: u32,
    /// All of one label; none in the captures of good traffic.
    pub(crate) attacks: Vec<Attack>,
    /// All attacks at once for the whole time, instead of one after the other.
    pub(crate) together: bool,
    /// Source addresses are made up: who is not a client is an attacker.
    pub(crate) spoofed: bool,
}

impl Scenario {
    /// The attacks share the time.
    fn in_turn(name: &'static str, weight: u32, attacks: Vec<Attack>) -> Self {
        Self { name, weight, attacks, together: false, spoofed: false }
    }

    /// Each attack has the whole time: for those whose flows live long.
    fn together(name: &'static str, weight: u32, attacks: Vec<Attack>) -> Self {
        Self { together: true, ..Self::in_turn(name, weight, attacks) }
    }

    /// The label of its attackers' flows.
    pub(crate) fn label(&self) -> Option<Label> {
        self.attacks.first().map(|attack| attack.label)
    }
}

/// Every scenario, parameters drawn from `rng`.
pub(crate) fn all(rng: &mut Rng) -> Vec<Scenario> {
    let mut plan = vec![Scenario::in_turn("benign-a", 3, vec![])];
    plan.extend(scans(rng));
    plan.extend(floods(rng));
    plan.extend(slow_and_guessing(rng));
    plan.push(Scenario::in_turn("benign-b", 3, vec![]));
    plan
}

fn scans(rng: &mut Rng) -> [Scenario; 5] {
    let rate = rng.range(150..900);
    let syn = vec![
        Attack::scan("-sS -T4 --top-ports 1000"),
        Attack::scan(&format!("-sS -p 1-4000 --max-rate {rate}")),
        Attack::scan("-sS -p 20-450 -T3 --scan-delay 20ms -g 53"),
        Attack::scan("-sS -T4 --top-ports 400").over_v6(),
    ];
    let connect = vec![
        Attack::scan("-sT -T4 --top-ports 600"),
        Attack::scan("-sT -p 1-300 --max-rate 80"),
        Attack::scan("-sT -T4 --top-ports 300").over_v6(),
    ];
    // One port each, because a run sends its probes one after the other and takes many seconds.
    let version = vec![
        Attack::scan("-sV -p 22"),
        Attack::scan("-sV -p 53"),
        Attack::scan("-sV -p 80"),
        Attack::scan("-sV -p 443"),
        Attack::scan("-sV --version-all -p 22,80"),
        Attack::scan("-sV -sC -p 80,443"),
        Attack::scan("-sV -sC -p 22,80").over_v6(),
        Attack::scan("--script http-enum,http-methods -p 80"),
    ];
    let udp = format!("-sU --top-ports 200 --max-retries 1 --min-rate {}", rng.range(20..90));
    let odd = vec![
        Attack::scan("-sX -p 1-500 -T4"),
        Attack::scan("-sA -p 1-300 -T4"),
        Attack::scan("-sN -p 1-300 -T4").over_v6(),
        Attack::scan("-O -p 22,80,81 --max-os-tries 1"),
    ];
    [
        Scenario::in_turn("scan-syn", 2, syn),
        Scenario::in_turn("scan-connect", 1, connect),
        Scenario::together("scan-version", 4, version),
        Scenario::in_turn("scan-udp", 1, vec![Attack::scan(&udp), Attack::scan(&udp).over_v6()]),
        Scenario::in_turn("scan-odd", 1, odd),
    ]
}

fn floods(rng: &mut Rng) -> [Scenario; 8] {
    let packet = |rng: &mut Rng, kind: String| {
        let (interval_us, ttl) = (rng.range(100..1_500), 64 - rng.range(1..24));
        Attack::packet_flood(u32::try_from(interval_us).unwrap_or(1_000), &format!("-t {ttl} {kind}"))
    };
    let syn = vec![packet(rng, "-S -p 80".to_owned()), packet(rng, "-S -p 443 -w 1024 -d 120".to_owned())];
    let spoofed = vec![packet(rng, "-S -p 80 --rand-source".to_owned())];
    let ports = vec![packet(rng, "-2 -p 53 -d 48".to_owned()), packet(rng, "-2 -p ++1 -s 5353 -d 300".to_owned())];
    // One flow a run, so many short runs: each with a source port, size, pace and target of its own.
    let mut one_flow = |kinds: &[&str], services: &[u64], sizes: std::ops::Range<u64>, runs: u64| -> Vec<Attack> {
        let each = |_| {
            let (kind, from, to) = (rng.pick(kinds), rng.range(1_024..60_000), rng.pick(services));
            let size = rng.range(sizes.clone());
            packet(rng, format!("{kind} -k -s {from} -p {to} -d {size}"))
        };
        (0..runs).map(each).collect()
    };
    let tcp = one_flow(&["-A", "-S", "-P -A", "-F -A", "-R"], &[22, 53, 80, 443], 0..900, 32);
    let udp = one_flow(&["-2"], &[53, 5004, 5514, 9999, 443, 123], 0..1_300, 52);
    let icmp = (0..12).map(|_| {
        let size = rng.range(8..1_300);
        packet(rng, format!("-1 -d {size}"))
    });
    let icmp = icmp.collect();
    let mut connections = |range: std::ops::Range<u64>| u32::try_from(rng.range(range)).unwrap_or(30);
    let http = vec![
        Attack::http_flood(connections(30..80), "/file-137.bin", false),
        Attack::http_flood(connections(80..160), "/file-9000.bin", false),
        Attack::http_flood(connections(30..80), "/file-1460.bin", false).over_v6(),
        Attack::http_flood(connections(20..60), "/file-137.bin", false).over_tls(),
    ];
    let short = vec![
        Attack::http_flood(connections(8..24), "/file-137.bin", true),
        Attack::http_flood(connections(4..12), "/file-9000.bin", true).over_v6(),
    ];
    [
        Scenario::in_turn("flood-syn", 1, syn),
        Scenario { spoofed: true, ..Scenario::in_turn("flood-syn-spoofed", 1, spoofed) },
        Scenario::in_turn("flood-tcp-one-flow", 4, tcp),
        Scenario::in_turn("flood-udp-one-flow", 6, udp),
        Scenario::in_turn("flood-udp-ports", 1, ports),
        Scenario::in_turn("flood-icmp", 2, icmp),
        Scenario::in_turn("flood-http", 2, http),
        Scenario::in_turn("flood-http-short", 1, short),
    ]
}

fn slow_and_guessing(rng: &mut Rng) -> [Scenario; 5] {
    let mut slow = |mode: &str, more: &str| {
        let (connections, per_second) = (rng.range(60..250), rng.range(20..80));
        let number = |value: u64| u32::try_from(value).unwrap_or(60);
        Attack::slow_http(mode, number(connections), number(per_second), more)
    };
    let headers =
        vec![slow("-H", "-i 3 -x 24"), slow("-H", "-i 1 -x 10").over_v6(), slow("-H", "-i 2 -x 16").over_tls()];
    let body = vec![slow("-B", "-i 3 -s 8192 -x 12"), slow("-B", "-i 1 -s 65536 -x 40").over_v6()];
    let read = vec![slow("-X", "-w 1 -y 512 -n 2 -z 5 -k 1"), slow("-X", "-w 256 -y 1024 -n 1 -z 32 -k 3").over_v6()];
    // hydra opens its connections at once and takes its time to open the next ones: short runs give more flows.
    let tasks = [16, 4, 12, 16, 8, 16, 2, 16];
    let ssh = tasks.map(Attack::ssh_guessing).into_iter().enumerate();
    let ssh = ssh.map(|(index, attack)| if index % 3 == 0 { attack.over_v6() } else { attack }).collect();
    [
        Scenario::together("slow-headers", 4, headers),
        Scenario::together("slow-body", 4, body),
        Scenario::together("slow-read", 4, read),
        Scenario::in_turn("guess-ssh", 5, ssh),
        Scenario::in_turn("guess-http", 2, vec![Attack::http_guessing(4), Attack::http_guessing(32)]),
    ]
}

/// Joins the good traffic to `crowd`: every client host does some of everything, other things in each scenario.
///
/// # Errors
/// If the file to upload cannot be written.
pub(crate) fn good_traffic(crowd: &mut Crowd, lab: &Lab, key: PathBuf, upload: PathBuf, rng: &mut Rng) -> Result<()> {
    std::fs::write(&upload, content::bytes(rng.range(20_000..1_500_000))).context("write the file to upload")?;
    let (key, upload) = (Arc::new(key), Arc::new(upload));
    let bases = Arc::new(clients::web_bases());
    for (index, host) in lab.clients.iter().enumerate() {
        host.use_source(usize::try_from(rng.range(0..3)).unwrap_or(0))?;
        let ns: &Ns = &host.netns;
        let (net, base) = (ns.clone(), Arc::clone(&bases));
        crowd.join(rng.fork(), 30..900, move |rng, stop| {
            let size = rng.pick(&SIZES[..7]);
            clients::download(&net, &base[rng.pick(&[0, 1, 2, 3])], size, &[], stop)
        });
        let (net, base) = (ns.clone(), Arc::clone(&bases));
        crowd.join(rng.fork(), 100..1500, move |rng, stop| browse(&net, &base[rng.pick(&[0, 1, 2, 3])], rng, stop));
        let (net, base, key, upload) = (ns.clone(), Arc::clone(&bases), Arc::clone(&key), Arc::clone(&upload));
        // Which rare things this client does, so that a scenario has all of them.
        let turn = index as u64;
        crowd.join(rng.fork(), 50..800, move |rng, stop| {
            let base = &base[rng.pick(&[0, 1, 2, 3])];
            match (rng.range(0..8) + turn) % 8 {
                0 => clients::download(&net, base, rng.pick(&SIZES[7..]), &[], stop),
                1 => slow_but_honest(&net, base, rng, stop),
                2 => {
                    let limit = format!("{}k", rng.pick(&[30, 120, 600, 4_000, 50_000]));
                    clients::upload(&net, base, &upload, &["--limit-rate", &limit, "-m", "12"], stop).or(Ok(None))
                }
                3 if rng.one_in(5) => {
                    // Someone with the wrong key; it must not look like guessing.
                    let wrong = key.with_file_name("host");
                    clients::ssh(&net, &wrong, "true", Input::Bulk(Vec::new()), stop).or(Ok(None))
                }
                3 => {
                    let typed = "ls -l /\ndate\nuname -a\nls /usr/bin | head -100\nexit\n";
                    clients::ssh(&net, &key, "sh", Input::Typed(typed.to_owned(), rng.fork()), stop)
                }
                4 => clients::ssh(
                    &net,
                    &key,
                    "cat >/dev/null",
                    Input::Bulk(content::bytes(rng.range(50_000..6_000_000))),
                    stop,
                ),
                5 => {
                    let remote = format!("head -c {} /dev/urandom", rng.range(10_000..6_000_000));
                    clients::ssh(&net, &key, &remote, Input::Bulk(Vec::new()), stop)
                }
                6 => {
                    let (port, interval_us) = (rng.pick(&[ECHO_PORT, SINK_PORT]), rng.range(2_500..60_000));
                    let payload_bytes = usize::try_from(rng.range(40..1_300)).unwrap_or(160);
                    let (interval, length) = (Duration::from_micros(interval_us), rng.millis(2_000..9_000));
                    let (sent, _) = Stream { port, payload_bytes, interval, length }.send(&net, stop)?;
                    Ok(Some(sent * payload_bytes as u64))
                }
                _ => clients::steady_requests(&net, 3, 5, rng.range(20..200), stop),
            }
        });
        let net = ns.clone();
        crowd.join(rng.fork(), 60..700, move |rng, stop| {
            let name = format!(
                "{}{}",
                rng.pick(&["www", "mail", "api", "a.very.long.name.of.a.service", "long"]),
                rng.range(0..2)
            );
            let kinds: [&[&str]; 6] = [&[], &["AAAA"], &[], &["+tcp"], &["+noedns"], &["+dnssec"]];
            match rng.range(0..9) {
                0 => {
                    let (size, pause) = (rng.range(16..1200).to_string(), format!("0.{}", rng.range(2..9)));
                    clients::ping(&net, &["-c", "8", "-s", &size, "-i", &pause, &EDGE_V4.to_string()], stop)
                        .or(Ok(None))
                }
                1 => clients::look_up(&net, "long", &["TXT"], stop),
                _ => clients::look_up(&net, &name, rng.pick(&kinds), stop),
            }
        });
    }
    Ok(())
}

/// One connection, several requests, at the pace of a person or of a program.
fn browse(net: &Ns, base: &str, rng: &mut Rng, stop: &Stop) -> Result<Option<u64>> {
    if rng.one_in(12) {
        // A service that is gone: a reset that is nobody's scan.
        return clients::download(net, &format!("http://{EDGE_V4}:8080"), 137, &[], stop).or(Ok(None));
    }
    let count = rng.range(2..14);
    let sizes: Vec<u64> = (0..count).map(|_| rng.pick(&SIZES[1..6])).collect();
    clients::browse(net, base, &sizes, rng.pick(&["60/m", "2/s", "5/s", "20/s"]), stop)
}

/// A client behind a thin line, or one that holds its connection with few requests: what slow attacks look like at
/// first sight.
fn slow_but_honest(net: &Ns, base: &str, rng: &mut Rng, stop: &Stop) -> Result<Option<u64>> {
    if rng.one_in(2) {
        return clients::browse(net, base, &[137, 1_460, 137, 137], rng.pick(&["20/m", "40/m"]), stop);
    }
    let (rate, size) = rng.pick(&[("12k", 48_000), ("40k", 130_000), ("150k", 700_000), ("1500k", 8_000_000)]);
    clients::download(net, base, size, &["--limit-rate", rate], stop)
}
