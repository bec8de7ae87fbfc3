//! A stream of numbered datagrams, one a millisecond, so that a test can say from which one on they pass, or do not.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::netns::Ns;
use sensor_tests::stop::Stop;

use super::scene::{PATIENCE, udp};

/// Number of a datagram, and when it arrived.
type Arrivals = Arc<Mutex<BTreeMap<u64, Instant>>>;

/// Both ends; they end with this value.
pub(crate) struct Stream {
    stop: Stop,
    next: Arc<AtomicU64>,
    arrived: Arrivals,
    threads: Vec<JoinHandle<()>>,
}

impl Stream {
    /// From `source` in `from` to `to` in the namespace `edge`.
    pub(crate) fn start(from: &Ns, source: IpAddr, edge: &Ns, to: SocketAddr) -> Stream {
        let (sender, receiver) = (udp(from, (source, 0)), udp(edge, to));
        let stop = Stop::new();
        let (next, arrived): (Arc<AtomicU64>, Arrivals) = Default::default();
        receiver.set_read_timeout(Some(Duration::from_millis(50))).map_err(Into::into).must("set a timeout");
        let receiving = (stop.clone(), arrived.clone());
        let sending = (stop.clone(), next.clone());
        let threads = vec![
            std::thread::spawn(move || receive(&receiver, &receiving.0, &receiving.1)),
            std::thread::spawn(move || send(&sender, to, &sending.0, &sending.1)),
        ];
        Stream { stop, next, arrived, threads }
    }

    /// The number of the next datagram.
    pub(crate) fn next(&self) -> u64 {
        self.next.load(Ordering::SeqCst)
    }

    /// Waits until so many more were sent.
    pub(crate) fn go_on(&self, count: u64) {
        let until = self.next() + count;
        wait_for("the stream goes on", PATIENCE, || self.next() >= until);
        // The last of them is on its way.
        std::thread::sleep(Duration::from_millis(50));
    }

    /// How many with these numbers arrived.
    pub(crate) fn arrived(&self, numbers: std::ops::Range<u64>) -> u64 {
        self.lock().range(numbers).count() as u64
    }

    /// The first that arrived of those from `number` on, and when.
    pub(crate) fn first_from(&self, number: u64) -> Option<(u64, Instant)> {
        self.lock().range(number..).next().map(|(number, at)| (*number, *at))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Instant>> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.raise();
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

fn send(socket: &UdpSocket, to: SocketAddr, stop: &Stop, next: &AtomicU64) {
    while !stop.is_raised() {
        let number = next.load(Ordering::SeqCst);
        // What the network refuses counts as sent: it is the receiver that tells.
        let _refused = socket.send_to(&number.to_le_bytes(), to);
        next.store(number + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn receive(socket: &UdpSocket, stop: &Stop, arrived: &Arrivals) {
    let mut room = [0; 2048];
    while !stop.is_raised() {
        let Ok(length) = socket.recv(&mut room) else { continue };
        let Ok(number) = <[u8; 8]>::try_from(&room[..length]) else { continue };
        arrived.lock().unwrap_or_else(PoisonError::into_inner).insert(u64::from_le_bytes(number), Instant::now());
    }
}
