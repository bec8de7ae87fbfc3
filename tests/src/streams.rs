//! UDP streams between hosts, as calls, games and telemetry make them: paced, small or large, one way or both.

use std::net::{SocketAddr, UdpSocket};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::netns::Ns;
use crate::stop::Stop;
use crate::topology::EDGE_V4;

/// The port where [`Media`] answers each packet with one of the same size (a call, a game).
pub const ECHO_PORT: u16 = 5004;
/// The port where [`Media`] only takes (telemetry, a video feed from a camera).
pub const SINK_PORT: u16 = 5514;

/// The edge's UDP services, each a thread; they end with this value.
#[derive(Debug)]
pub struct Media {
    stop: Stop,
    threads: Vec<JoinHandle<()>>,
}

impl Media {
    /// Binds the two ports in `netns` and serves them.
    ///
    /// # Errors
    /// If a port is taken.
    pub fn start(netns: &Ns) -> Result<Self> {
        let stop = Stop::new();
        let mut threads = Vec::new();
        for (port, answers) in [(ECHO_PORT, true), (SINK_PORT, false)] {
            let socket =
                netns.within(|| UdpSocket::bind((EDGE_V4, port)))?.with_context(|| format!("bind UDP port {port}"))?;
            // The thread looks at the flag this often.
            socket.set_read_timeout(Some(Duration::from_millis(100))).context("set a read timeout")?;
            let stop = stop.clone();
            threads.push(std::thread::spawn(move || {
                let mut buffer = vec![0; 2048];
                while !stop.is_raised() {
                    if let Ok((length, sender)) = socket.recv_from(&mut buffer)
                        && answers
                    {
                        // A caller that went away is no concern of the server.
                        let _gone = socket.send_to(&buffer[..length], sender);
                    }
                }
            }));
        }
        Ok(Self { stop, threads })
    }
}

impl Drop for Media {
    fn drop(&mut self) {
        self.stop.raise();
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

/// A stream that a client sends to the edge.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// [`ECHO_PORT`] or [`SINK_PORT`].
    pub port: u16,
    /// UDP payload of each packet, in bytes, at most 1400.
    pub payload_bytes: usize,
    /// Time from packet to packet.
    pub interval: Duration,
    /// How long to send.
    pub length: Duration,
}

impl Stream {
    /// Sends the stream from `netns`, at most until `stop`. Returns packets sent and packets answered.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn send(&self, netns: &Ns, stop: &Stop) -> Result<(u64, u64)> {
        let socket = netns.within(|| UdpSocket::bind("0.0.0.0:0"))?.context("bind a UDP socket")?;
        socket.connect(SocketAddr::from((EDGE_V4, self.port))).context("connect a UDP socket")?;
        socket.set_nonblocking(true).context("make a socket non-blocking")?;
        let payload = vec![0x5a; self.payload_bytes.min(1400)];
        let mut buffer = vec![0; 2048];
        let (mut sent, mut answered) = (0, 0);
        let end = Instant::now() + self.length;
        let mut next = Instant::now();
        while Instant::now() < end && !stop.is_raised() {
            sent += u64::from(socket.send(&payload).is_ok());
            while socket.recv(&mut buffer).is_ok() {
                answered += 1;
            }
            next += self.interval;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        Ok((sent, answered))
    }
}
