//! What those around the edge see: clients that connect for the first time, one that must never be dropped, one that is
//! blocked.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::sockopt::{self, set_socket_recv_buffer_size_force};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, bind, socket_with};
use sensor_tests::checks::Must as _;
use sensor_tests::netns::Ns;
use sensor_tests::topology::EDGE_V4;

/// A client that waits longer has not been served: two repeats of a SYN (RFC 6298) fit in.
const CLIENT_WAITS: Duration = Duration::from_secs(4);
/// The network of clients that come for the first time, a /16.
pub(super) const NEW: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 0);
/// Clients at the same time.
const CLIENTS: usize = 4;
const EVERY: Duration = Duration::from_millis(10);

/// How many were tried, and how many of them worked.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    pub(super) tried: u64,
    pub(super) worked: u64,
}

impl Count {
    pub(super) fn share(self) -> f64 {
        self.worked as f64 / self.tried.max(1) as f64
    }

    pub(super) fn lost(self) -> u64 {
        self.tried - self.worked
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.worked, self.tried)
    }
}

/// A TCP service that greets whoever connects.
pub(super) fn serve(netns: &Ns, port: u16) {
    let listener = netns.within(|| TcpListener::bind((EDGE_V4, port))).must("enter the edge");
    let listener = listener.map_err(Into::into).must("listen");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // It answers from its queue, however busy this machine is.
            let _ = stream.set_nodelay(true);
            let _ = (&stream).write_all(b"hello");
        }
    });
}

/// Clients that each connect from an address of its own, until they are stopped.
pub(super) struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Visit>>>,
}

/// When a client came, and whether it was served.
pub(super) type Visit = (Instant, bool);

impl FromIterator<bool> for Count {
    fn from_iter<T: IntoIterator<Item = bool>>(all: T) -> Self {
        all.into_iter().fold(Count::default(), |sum, worked| Count {
            tried: sum.tried + 1,
            worked: sum.worked + u64::from(worked),
        })
    }
}

impl Clients {
    /// `next`: the number of the next address.
    pub(super) fn start(netns: &Ns, port: u16, next: &Arc<AtomicU32>) -> Clients {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..CLIENTS).map(|_| {
            let (stop, netns, next) = (stop.clone(), netns.clone(), next.clone());
            std::thread::spawn(move || {
                let _inside = netns.enter().must("enter the client");
                let mut visits = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let from = Ipv4Addr::from_bits(NEW.to_bits() + next.fetch_add(1, Ordering::Relaxed) % 65_000 + 1);
                    visits.push((begun, is_served(from, SocketAddr::from((EDGE_V4, port)))));
                    std::thread::sleep(EVERY * 5);
                }
                visits
            })
        });
        Clients { threads: threads.collect(), stop }
    }

    pub(super) fn end(self) -> Vec<Visit> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().expect("a client ends")).collect()
    }
}

/// A connection from an address that was never there before.
fn connect(from: Ipv4Addr, to: SocketAddr) -> rustix::io::Result<TcpStream> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::NONBLOCK, None)?;
    bind(&socket, &SocketAddr::from((from, 0)))?;
    if net::connect(&socket, &to) != Err(Errno::INPROGRESS) {
        return Err(Errno::CONNREFUSED);
    }
    let wait = Timespec { tv_sec: CLIENT_WAITS.as_secs().cast_signed(), tv_nsec: 0 };
    if poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&wait))? == 0 {
        return Err(Errno::TIMEDOUT);
    }
    sockopt::socket_error(&socket)??;
    ioctl_fionbio(&socket, false)?;
    Ok(TcpStream::from(socket))
}

fn is_served(from: Ipv4Addr, to: SocketAddr) -> bool {
    let begun = Instant::now();
    let Ok(mut stream) = connect(from, to) else { return false };
    let left = CLIENT_WAITS.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
    let mut greeting = [0; 5];
    stream.set_read_timeout(Some(left)).is_ok() && stream.read_exact(&mut greeting).is_ok()
}

/// Datagrams of one host to the edge, all the time; what arrives, and when.
pub(super) struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    arrived: Arc<Mutex<Vec<Instant>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Stream {
    pub(super) fn start(from: (&Ns, Ipv4Addr), edge: &Ns, port: u16) -> Stream {
        let udp = |netns: &Ns, address: SocketAddr| {
            let socket = netns.within(|| UdpSocket::bind(address)).must("enter a namespace");
            socket.map_err(Into::into).must("bind")
        };
        let (sender, receiver) = (udp(from.0, (from.1, port).into()), udp(edge, (EDGE_V4, port).into()));
        set_socket_recv_buffer_size_force(&receiver, 8 << 20).map_err(Into::into).must("enlarge the buffer");
        receiver.set_read_timeout(Some(Duration::from_millis(100))).map_err(Into::into).must("set a timeout");
        let (stop, sent, arrived) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Vec::new())));
        let send = {
            let (stop, sent) = (stop.clone(), sent.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let taken = sender.send_to(b"probe", (EDGE_V4, port)).is_ok();
                    sent.fetch_add(u64::from(taken), Ordering::Relaxed);
                    std::thread::sleep(EVERY);
                }
            }
        };
        let receive = {
            let (stop, arrived) = (stop.clone(), arrived.clone());
            move || {
                let (mut buffer, mut quiet) = ([0; 16], 0);
                // After the end, what is still on its way.
                while quiet < 10 {
                    if receiver.recv(&mut buffer).is_ok() {
                        arrived.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
                        quiet = 0;
                    } else {
                        quiet += u32::from(stop.load(Ordering::Relaxed));
                    }
                }
            }
        };
        Stream { threads: vec![std::thread::spawn(send), std::thread::spawn(receive)], stop, sent, arrived }
    }

    /// What was sent and arrived, and when each arrived.
    pub(super) fn end(self) -> (Count, Vec<Instant>) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("a stream ends"));
        let arrived = std::mem::take(&mut *self.arrived.lock().unwrap_or_else(PoisonError::into_inner));
        (Count { tried: self.sent.load(Ordering::Relaxed), worked: arrived.len() as u64 }, arrived)
    }
}

/// Of a source that is blocked: datagrams sent, and those that arrived although an agent held the verdict, by the time
/// since the start.
#[derive(Debug)]
pub(super) struct Blocked {
    pub(super) count: Count,
    pub(super) wrong: Vec<Duration>,
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first: Vec<_> = self.wrong.iter().take(5).collect();
        write!(f, "{} arrived, {} of them wrongly {first:?}", self.count, self.wrong.len())
    }
}
