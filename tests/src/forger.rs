//! Forged segments in a real TCP connection: a process that listens to a device, knows from it where both ends of the
//! connection are, and puts segments on the wire that neither end sent.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::netns::Ns;
use crate::process::ChildGuard;

/// The TTL of forged packets, by which forgers do not listen to each other.
pub const TTL: u8 = 77;

/// A segment from the client (side 0) or the server: flags, distance of its sequence and acknowledgement number from
/// the side's next ones, payload bytes.
#[derive(Clone, Copy, Debug)]
pub struct Forged {
    /// 0: as the client; 1: as the server.
    pub side: u8,
    /// TCP flags.
    pub flags: u8,
    /// Sequence number, from the next one of the side.
    pub seq: i64,
    /// Acknowledgement number, from the next one of the other side.
    pub ack: i64,
    /// Payload, bytes.
    pub payload: u16,
}

/// IPv4 without options; checksums are right.
const FORGER: &str = "import socket, struct, sys
device, port, ttl = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
tap.bind((device, 0))
tap.setblocking(False)
heads, following, latest = {}, {}, {}
print('ready', flush=True)
def listen():
    while True:
        try:
            frame = tap.recv(65535)
        except BlockingIOError:
            return
        if len(frame) < 54 or frame[12:14] != b'\\x08\\x00' or frame[23] != 6 or frame[22] == ttl:
            continue
        ip = 14 + (frame[14] & 15) * 4
        total = struct.unpack('!H', frame[16:18])[0]
        sport, dport, seq, ack, offset, flags, window = struct.unpack('!HHIIBBH', frame[ip:ip + 16])
        if port not in (sport, dport):
            continue
        side = int(sport == port)
        length = total - (ip - 14) - (offset >> 4) * 4 + (flags & 1) + (flags >> 1 & 1)
        heads[side] = frame[:14], frame[26:34], frame[ip:ip + 4]
        end = (seq + length) % 2**32
        if side not in following or (end - following[side]) % 2**32 < 2**31:
            following[side] = end
            latest[side] = window
def summed(data):
    total = sum(struct.unpack('!%dH' % (len(data) // 2), data + b'\\0' * (len(data) % 2))) if len(data) % 2 == 0 else 0
    if len(data) % 2:
        return summed(data + b'\\0')
    while total > 0xffff:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
for line in sys.stdin:
    side, flags, seq, ack, payload = map(int, line.split())
    listen()
    link, addresses, ports = heads[side]
    number = (following[side] + seq) % 2**32
    answer = (following[1 - side] + ack) % 2**32 if flags & 16 else 0
    body = b'x' * payload
    segment = ports + struct.pack('!IIBBHHH', number, answer, 80, flags, latest[side], 0, 0) + body
    check = summed(addresses + struct.pack('!BBH', 0, 6, len(segment)) + segment)
    segment = segment[:16] + struct.pack('!H', check) + segment[18:]
    header = struct.pack('!BBHHHBBH', 69, 0, 20 + len(segment), 0, 0x4000, ttl, 6, 0) + addresses
    header = header[:10] + struct.pack('!H', summed(header)) + header[12:]
    tap.send(link + header + segment)
    print('sent', number, answer, flush=True)
";

/// Forges segments at one device.
#[derive(Debug)]
pub struct Forger {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Ends after its pipes.
    _guard: ChildGuard,
}

impl Forger {
    /// A forger on `device` in `netns`, for connections to this port. Start it before the connection.
    ///
    /// # Errors
    /// Without Python.
    pub fn start(netns: &Ns, device: &str, port: u16) -> Result<Forger> {
        let mut command = netns.command("python3");
        command.args(["-c", FORGER, device, &port.to_string(), &TTL.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut guard = ChildGuard::spawn_with_stdio("forger", &mut command, None)?;
        let (input, output) = guard.take_stdin().zip(guard.take_stdout()).context("the forger has no pipes")?;
        let mut forger = Forger { input, output: BufReader::new(output), _guard: guard };
        forger.hear("ready")?;
        Ok(forger)
    }

    /// Puts a segment on the wire.
    ///
    /// # Errors
    /// If the forger ended: nothing was heard of the connection yet.
    pub fn send(&mut self, forged: Forged) -> Result<()> {
        let Forged { side, flags, seq, ack, payload } = forged;
        writeln!(self.input, "{side} {flags} {seq} {ack} {payload}").context("the forger ended")?;
        self.hear("sent")
    }

    fn hear(&mut self, wanted: &str) -> Result<()> {
        let mut answer = String::new();
        self.output.read_line(&mut answer).context("the forger ended; its own message is above")?;
        ensure!(answer.starts_with(wanted), "the forger says {answer:?}");
        Ok(())
    }
}
