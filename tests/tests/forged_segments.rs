//! A connection between two real stacks of Linux goes on while a third party forges segments that neither stack
//! accepts. It must stay one flow, whose record differs from that of an undisturbed one by counts of packets and bytes
//! alone. Needs root and Python.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use sensor::bpf::load::{Kernel, LoadOptions};
use sensor::bpf::probe;
use sensor::config::XdpMode;
use sensor_common::control::{Control, NO_DSCP};
use sensor_common::flow::{FlowRecord, state};
use sensor_common::table::{WAYS, phase};
use sensor_common::tcp::{ACK, FIN, PSH, RST, SYN};
use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::forger::{Forged, Forger};
use sensor_tests::netns::Ns;
use sensor_tests::topology::{EDGE_V4, HostSpec, Lab, LabSpec, UPLINK};

const PORT: u16 = 5_202;
const REQUESTS: usize = 20;
const REQUEST: usize = 64;
const ANSWER: usize = 200;
const PATIENCE: Duration = Duration::from_secs(20);

/// What is forged behind each exchange, as either side: nothing that RFC 9293 and RFC 5961 let a receiver accept.
fn forged() -> Vec<Forged> {
    const FAR: i64 = 1_500_000_000;
    let segment = |flags, seq, ack, payload| (flags, seq, ack, payload);
    let kinds = [
        // Resets: far above, far below, one below, in the window.
        segment(RST, FAR, 0, 0),
        segment(RST, -FAR, 0, 0),
        segment(RST, -1, 0, 0),
        segment(RST, 1, 0, 0),
        segment(RST | ACK, 5_000, 0, 0),
        // Other connections.
        segment(SYN, FAR, 0, 0),
        segment(SYN, 5_000, 0, 0),
        segment(SYN | ACK, FAR, 0, 0),
        segment(SYN | ACK, -1_000_000, 0, 0),
        // Behind and before the window.
        segment(FIN | ACK, FAR, 0, 0),
        segment(FIN | ACK, -FAR, 0, 0),
        segment(ACK | PSH, FAR, 0, 300),
        segment(ACK | PSH, -FAR, 0, 300),
        segment(ACK, FAR, 0, 0),
        // What was never sent, or long ago.
        segment(ACK, 0, 1, 0),
        segment(ACK, 0, FAR, 0),
        segment(ACK, 0, -FAR, 0),
        segment(ACK | PSH, 0, 1_000, 300),
        segment(ACK | PSH, 0, -FAR, 300),
        segment(FIN | ACK, 0, FAR, 0),
    ];
    let sides = |(flags, seq, ack, payload)| [0, 1].map(|side| Forged { side, flags, seq, ack, payload });
    kinds.into_iter().flat_map(sides).collect()
}

/// All records of the connection's port.
fn records(kernel: &Kernel) -> Vec<FlowRecord> {
    let table = &kernel.table;
    let slots = (0..table.buckets()).flat_map(|number| {
        let bucket = table.bucket(number);
        (0..WAYS).filter(move |way| bucket.tags[*way] != 0).map(move |way| number * WAYS + way)
    });
    let kept = slots.filter_map(|slot| table.copy(slot));
    kept.filter(|record| record.key.low_port == PORT || record.key.high_port == PORT).collect()
}

/// Segments that a host sent again.
fn sent_again(netns: &Ns) -> u64 {
    let text = netns.run("cat", &["/proc/net/snmp"]).must("read the counters of TCP");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let names = lines.next().expect("names").split(' ');
    let (_, value) =
        names.zip(lines.next().expect("values").split(' ')).find(|(name, _)| *name == "RetransSegs").expect("is there");
    value.parse().expect("a number")
}

/// The record of [`REQUESTS`] exchanges before the close and after it, and what was sent again.
fn run(forge: &[Forged]) -> (FlowRecord, FlowRecord, u64) {
    let lab = Lab::build(&LabSpec { clients: vec![HostSpec::default()], ..LabSpec::default() }).must("build the hosts");
    let support = probe::kernel();
    let options = LoadOptions { frags: support.xdp_frags, ..LoadOptions::default() };
    let mut kernel = Kernel::load(&options).must("load the programs");
    kernel.control.set(&Control { tag_dscp: NO_DSCP, ..bytemuck::Zeroable::zeroed() });
    let attach = lab.edge.netns.within(|| kernel.attach(UPLINK, XdpMode::Native, support.tcx)).must("enter the edge");
    let attached = attach.must("attach the programs");
    let client = &lab.clients[0].netns;
    let mut forgers = [client, &lab.edge.netns].map(|netns| Forger::start(netns, UPLINK, PORT).must("start a forger"));

    let listener = lab.edge.netns.within(|| TcpListener::bind((EDGE_V4, PORT))).must("enter the edge").expect("listen");
    let server = std::thread::spawn(move || -> std::io::Result<usize> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let (mut request, mut served) = ([0; REQUEST], 0);
        while stream.read_exact(&mut request).is_ok() {
            stream.write_all(&[served as u8; ANSWER])?;
            served += 1;
        }
        Ok(served)
    });
    let mut stream = client.within(|| TcpStream::connect((EDGE_V4, PORT))).must("enter the client").expect("connect");
    stream.set_nodelay(true).expect("set");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let (mut answer, mut packets) = ([0; ANSWER], 0);
    for number in 0..REQUESTS {
        stream.write_all(&[number as u8; REQUEST]).expect("the connection stands");
        stream.read_exact(&mut answer).expect("the connection stands");
        assert_eq!(answer, [number as u8; ANSWER], "in order");
        // Until the last acknowledgement is there, nobody knows what the next one is.
        wait_for("all is acknowledged", PATIENCE, || {
            let record = records(&kernel)[0];
            let [forward, reverse] = &record.directions;
            packets = record.packets();
            forward.ack == reverse.next && reverse.ack == forward.next
        });
        for forged in forge {
            forgers[forged.side as usize].send(*forged).must("forge");
        }
        wait_for("the forged ones were seen", PATIENCE, || {
            records(&kernel)[0].packets() >= packets + forge.len() as u64
        });
    }
    let open = records(&kernel);
    assert_eq!(open.len(), 1, "one flow");
    assert!(kernel.next_evicted().is_none(), "and no other before it");
    drop(stream);
    let served = server.join().expect("the server does not panic").expect("serve");
    assert_eq!(served, REQUESTS);
    wait_for("both sides have closed", PATIENCE, || records(&kernel)[0].phase() == phase::CLOSED);
    let closed = records(&kernel)[0];
    kernel.detach(attached).must("detach");
    (open[0], closed, sent_again(client) + sent_again(&lab.edge.netns))
}

#[test]
fn forged_segments_change_no_state_and_no_count_but_of_packets() {
    let forge = forged();
    let ((plain, plain_end, plain_again), (open, end, again)) = (run(&[]), run(&forge));
    let closing =
        state::CLOSED | state::RST | state::FIN | state::FIN << 1 | state::ESTABLISHED | state::INITIATOR_BY_SYN;
    assert_eq!(open.state & closing, plain.state & closing, "the connection goes on");
    assert_eq!((open.phase(), plain.phase()), (phase::ESTABLISHED, phase::ESTABLISHED));
    for record in [&end, &plain_end] {
        let gone = state::CLOSED | state::GRACEFUL | state::RST;
        assert_eq!(record.state & gone, state::CLOSED | state::GRACEFUL, "closed by its own FINs");
    }
    let counts = |record: &FlowRecord| {
        record
            .directions
            .map(|half| (half.retransmitted, half.out_of_order, half.duplicate_acks, half.keep_alives, half.missing))
    };
    println!(
        "undisturbed: {:?}, {plain_again} sent again; forged: {:?}, {again} sent again",
        counts(&plain_end),
        counts(&end)
    );
    let repeated = end.directions.iter().map(|half| half.retransmitted as u64).sum::<u64>();
    assert!(repeated <= again, "{repeated} retransmissions, of which the stacks know {again}");
    if again + plain_again == 0 {
        assert_eq!(counts(&end), counts(&plain_end));
    }
    for (side, bytes) in [(0, REQUEST), (1, ANSWER)] {
        let of_side = forge.iter().filter(|forged| forged.side as usize == side);
        let (many, forged_bytes) =
            of_side.fold((0, 0), |(many, bytes), forged| (many + 1, bytes + forged.payload as u64));
        let rounds = REQUESTS as u64;
        let half = &open.directions[side];
        assert!(
            half.packets >= plain.directions[side].packets.min(rounds) + many * rounds,
            "forged packets are packets"
        );
        if again == 0 {
            assert_eq!(half.payload_bytes, rounds * (bytes as u64 + forged_bytes));
        }
    }
}
