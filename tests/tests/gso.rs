//! Segmentation offload: the edge hands super-packets of up to 64 KiB to its device, and the egress program sees those;
//! its record must count what the wire carries. The measure is a capture at the receiver, behind a device that had to cut
//! the super-packets into segments, and native code over it. Needs root, ethtool and tcpdump.

use std::fs::File;
use std::io::{BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use sensor::bpf::load::{Kernel, LoadOptions};
use sensor::bpf::probe;
use sensor::config::XdpMode;
use sensor::replay::{capture, link};
use sensor_common::control::{Control, NO_DSCP};
use sensor_common::flow::FlowRecord;
use sensor_common::table::WAYS;
use sensor_tests::capture::Capture;
use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::differences::{Difference, differences};
use sensor_tests::live::depends_on_time;
use sensor_tests::netns::{NetNs, Ns};
use sensor_tests::topology::{EDGE_V4, Host, HostSpec, Lab, LabSpec, UPLINK};

const PORT: u16 = 5201;
/// Chunks of sizes that no segment has, so that pushes and short segments fall anywhere.
const CHUNKS: [usize; 5] = [100_000, 7, 65_537, 1448, 333_333];

fn ethtool(netns: &Ns, words: &str) {
    netns.run("ethtool", &words.split(' ').collect::<Vec<_>>()).must("set offloads");
}

/// The edge sends [`CHUNKS`] to a client, which answers with a few bytes, and both close.
fn transfer(lab: &Lab) {
    let client = &lab.clients[0];
    let listener = lab.edge.netns.within(|| TcpListener::bind((EDGE_V4, PORT))).must("enter the edge");
    let listener = listener.map_err(Into::into).must("listen");
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        for size in CHUNKS {
            stream.write_all(&vec![0x5a; size])?;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).map(|_| answer.len())
    });
    let connect = |host: &Host| host.netns.within(|| TcpStream::connect((EDGE_V4, PORT))).must("enter the client");
    let mut stream = connect(client).map_err(Into::into).must("connect");
    let mut body = Vec::new();
    stream.read_to_end(&mut body).map_err(Into::into).must("read");
    assert_eq!(body.len(), CHUNKS.iter().sum::<usize>());
    stream.write_all(b"thanks").map_err(Into::into).must("answer");
    drop(stream);
    let answered = server.join().expect("the server does not panic").map_err(Into::into).must("serve");
    assert_eq!(answered, 6);
}

fn is_transfer(record: &FlowRecord) -> bool {
    record.key.low_port == PORT || record.key.high_port == PORT
}

/// The transfer's record in the kernel.
fn kept(kernel: &Kernel) -> Option<FlowRecord> {
    let table = &kernel.table;
    let slots = (0..table.buckets()).flat_map(|number| {
        let bucket = table.bucket(number);
        (0..WAYS).filter(move |way| bucket.tags[*way] != 0).map(move |way| number * WAYS + way)
    });
    slots.filter_map(|slot| table.copy(slot)).find(is_transfer)
}

/// The transfer's record as native code makes it of a capture.
fn captured(path: &Path) -> FlowRecord {
    let file = File::open(path).map_err(Into::into).must("open the capture");
    let mut capture = capture::Capture::open(BufReader::new(file)).must("read the capture");
    let mut parser = link::Parser::new(sensor_common::packet::Options::NONE);
    let mut record = FlowRecord::zeroed();
    while let Some(frame) = capture.read().must("read a packet") {
        let Ok(packet) = parser.parse(&frame).must("a link type that is known") else { continue };
        if packet.key.low_port == PORT || packet.key.high_port == PORT {
            if record.key != packet.key {
                record.start(&packet, frame.time_ns, 0, 1);
            }
            record.update(&packet, frame.time_ns);
        }
    }
    record
}

/// What a super-packet cannot tell of its segments: they arrive as one, behind one link header; and what depends on how
/// the two directions interleave, or on an order that the way between two places may change. (`until_stage` is at most what
/// is left of a stage, counted down from where it was last looked at.)
fn is_of_arrivals(field: &str) -> bool {
    let order = ["arrivals", ".gap_end", ".out_of_order", ".retransmitted", ".duplicate_acks"];
    field.starts_with("first")
        || order.iter().any(|end| field.ends_with(end))
        || matches!(field, "frame_bytes" | "bursts" | "ifindex" | "until_stage")
}

/// One transfer; the edge's record and the receiver's, which agree.
fn run(super_packets: bool) -> FlowRecord {
    let lab = Lab::build(&LabSpec { clients: vec![HostSpec::default()], ..LabSpec::default() }).must("build the hosts");
    // The bridge's port to the client cuts, and the client does not merge.
    ethtool(&lab.net, "-K client0 tso off gso off");
    ethtool(&lab.clients[0].netns, &format!("-K {UPLINK} gro off"));
    if !super_packets {
        lab.edge.netns.ip(&format!("link set {UPLINK} gso_max_segs 1")).must("switch super-packets off");
    }
    let support = probe::kernel();
    let options = LoadOptions { frags: support.xdp_frags, ..LoadOptions::default() };
    let mut kernel = Kernel::load(&options).must("load the programs");
    kernel.control.set(&Control { tag_dscp: NO_DSCP, ..bytemuck::Zeroable::zeroed() });
    let attach = lab.edge.netns.within(|| kernel.attach(UPLINK, XdpMode::Native, support.tcx)).must("enter the edge");
    let attached = attach.must("attach the programs");

    let folder = tempfile::tempdir().map_err(Into::into).must("make a folder");
    let (file, log) = (folder.path().join("client.pcap"), folder.path().join("tcpdump.log"));
    let capture = Capture::start(&lab.clients[0].netns, UPLINK, &file, &log).must("capture at the client");
    transfer(&lab);
    wait_for("both sides have closed", std::time::Duration::from_secs(5), || {
        kept(&kernel).is_some_and(|record| record.state & sensor_common::flow::state::CLOSED != 0)
    });
    // The last acknowledgement may be on its way, and tcpdump is handed packets once a second.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let done = capture.finish().must("end the capture");
    assert!(done.dropped == 0 && done.packets > 300, "{done:?}");
    let kernel_record = kept(&kernel).expect("just seen");
    kernel.detach(attached).must("detach");

    let wire = captured(&file);
    let wrong: Vec<Difference> = differences(&kernel_record, &wire)
        .into_iter()
        .filter(|difference| !depends_on_time(&difference.field) && !is_of_arrivals(&difference.field))
        .collect();
    assert!(wrong.is_empty(), "super-packets {super_packets}: edge (left) and wire (right) differ: {wrong:#?}");
    kernel_record
}

#[test]
fn super_packets_are_counted_as_the_wire_carries_them() {
    let (with, without) = (run(true), run(false));
    for (record, super_packets) in [(&with, true), (&without, false)] {
        let down = record.reverse().expect("the edge has sent");
        println!(
            "super-packets {super_packets}: {} segments in {} arrivals, {} retransmitted",
            down.packets,
            down.arrivals(),
            down.retransmitted
        );
        // A busy machine acknowledges late, and then the edge sends some again.
        let again = down.payload_bytes.checked_sub(CHUNKS.iter().sum::<usize>() as u64).expect("all was sent");
        assert!(again <= down.retransmitted as u64 * down.l3_max as u64, "{again} bytes were sent again");
    }
    let (with, without) = (with.reverse().expect("sent"), without.reverse().expect("sent"));
    assert!((with.arrivals()) < with.packets / 4, "there were super-packets");
    assert_eq!(without.arrivals(), without.packets, "there were none");
    // Where a short segment falls differs; its size and their number nearly do not.
    assert_eq!(with.l3_max, without.l3_max);
    let again = (with.retransmitted + without.retransmitted) as u64;
    assert!(with.packets.abs_diff(without.packets) <= 2 * CHUNKS.len() as u64 + 20 + again);
}

/// IPv6 with super-packets above 64 KiB (BIG TCP): Linux puts a hop-by-hop header into them that no packet on the wire
/// has.
#[test]
fn big_tcp_counts_without_the_header_that_only_the_host_has() {
    const TOTAL: usize = 20 << 20;
    let (edge, peer) = (NetNs::new("edge").must("make a namespace"), NetNs::new("peer").must("make a namespace"));
    edge.ip(&format!("link add eth0 type veth peer name eth0 netns {}", peer.name())).must("make a pair");
    for (netns, address) in [(&edge, "2001:db8::1"), (&peer, "2001:db8::2")] {
        netns.ip(&format!("addr add {address}/64 dev eth0 nodad")).must("an address");
        netns.ip("link set eth0 gso_max_size 180000 gro_max_size 180000").must("allow large super-packets");
        netns.ip("link set eth0 up").must("set it up");
    }
    let support = probe::kernel();
    let mut kernel = Kernel::load(&LoadOptions::default()).must("load the programs");
    kernel.control.set(&Control { tag_dscp: NO_DSCP, ..bytemuck::Zeroable::zeroed() });
    let attached =
        edge.within(|| kernel.attach("eth0", XdpMode::Tc, support.tcx)).must("enter the edge").must("attach");
    let server: SocketAddr = format!("[2001:db8::2]:{PORT}").parse().expect("an address");
    let listener = peer.within(|| TcpListener::bind(server)).must("enter the peer").map_err(Into::into).must("listen");
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let mut body = Vec::new();
        stream.read_to_end(&mut body)?;
        stream.write_all(&body)
    });
    let mut stream =
        edge.within(|| TcpStream::connect(server)).must("enter the edge").map_err(Into::into).must("connect");
    stream
        .write_all(&vec![0x5a; TOTAL])
        .and_then(|()| stream.shutdown(Shutdown::Write))
        .map_err(Into::into)
        .must("send");
    let mut body = Vec::new();
    stream.read_to_end(&mut body).map_err(Into::into).must("receive");
    assert_eq!(body.len(), TOTAL);
    echo.join().expect("the server does not panic").map_err(Into::into).must("serve");
    wait_for("both sides have closed", std::time::Duration::from_secs(5), || {
        kept(&kernel).is_some_and(|record| record.state & sensor_common::flow::state::CLOSED != 0)
    });
    let record = kept(&kernel).expect("just seen");
    kernel.detach(attached).must("detach");
    for (name, half) in [("sent", record.forward()), ("received", record.reverse().expect("answered"))] {
        println!("{name}: {} packets in {} frames", half.packets, half.arrivals());
        // IPv6, TCP and its timestamps; a SYN has 8 bytes of options more, and an acknowledgement may have some for
        // gaps.
        let more = half.l3_bytes - half.payload_bytes - (72 * half.packets + 8);
        assert!(more < half.packets, "{name}: {more} bytes of headers more in {} packets", half.packets);
        assert_eq!(half.l3_max, 1500, "{name}");
    }
    assert_eq!(record.openings.map(|opening| opening.extensions), [0, 0]);
    let sent = record.forward();
    assert!(sent.payload_bytes / sent.arrivals() > 33_000, "there were super-packets above 64 KiB");
}
