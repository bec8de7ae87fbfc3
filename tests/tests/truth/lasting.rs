//! Flows that last beside the flood, one of them under a verdict of drop: what was sent of each, and what is found of it.

use std::net::UdpSocket;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use sensor::bpf::balance::Balance;
use sensor_common::flow::FlowRecord;
use sensor_tests::netns::Ns;

use crate::scene::{EDGE, PEER, bind};

/// Where they go to, and from which ports they come.
pub(crate) const SINK: u16 = 5514;
/// See [`SINK`].
pub(crate) const LASTING: Range<u16> = 20_000..20_008;
/// The one under a verdict of drop.
const CONDEMNED: u16 = LASTING.end - 1;

/// The flow to be dropped, as commands name it.
pub(crate) fn condemned() -> String {
    format!("udp,{PEER}:{CONDEMNED},{EDGE}:{SINK}")
}

/// A socket of each, and what the kernel took from it.
pub(crate) struct Lasting {
    sockets: Vec<UdpSocket>,
    sent: Vec<AtomicU64>,
}

impl Lasting {
    pub(crate) fn bind(peer: &Ns) -> Lasting {
        let sockets: Vec<_> = LASTING.map(|port| bind(peer, PEER, port)).collect();
        let sent = sockets.iter().map(|_| AtomicU64::new(0)).collect();
        Lasting { sockets, sent }
    }

    /// One packet of each.
    pub(crate) fn send(&self) {
        for (socket, sent) in self.sockets.iter().zip(&self.sent) {
            let taken = socket.send_to(&[0; 100], (EDGE, SINK)).is_ok();
            sent.fetch_add(taken as u64, Ordering::Relaxed);
        }
    }

    /// Packets of all up to now.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.iter().map(|sent| sent.load(Ordering::Relaxed)).sum()
    }

    /// Packets of each, found (recorded, dropped or busy) and sent.
    pub(crate) fn found(&self, balance: &Balance) -> Vec<[u64; 2]> {
        let records = balance.records();
        let look = |(port, sent): (u16, &AtomicU64)| {
            let own = |record: &&FlowRecord| [record.key.low_port, record.key.high_port].contains(&port);
            let record = records.iter().find(own).unwrap_or_else(|| panic!("no flow of port {port}"));
            let [frames, dropped, busy] = [record.frames(), record.dropped, record.lost.into()];
            let (found, sent) = (frames + dropped + busy, sent.load(Ordering::Relaxed));
            assert!(found <= sent, "port {port}: {sent} sent, {frames} recorded, {dropped} dropped, {busy} busy");
            assert!(port != CONDEMNED || dropped > 0, "a verdict drops this flow: {frames} recorded");
            [found, sent]
        };
        LASTING.zip(&self.sent).map(look).collect()
    }
}
