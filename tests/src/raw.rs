//! Frames on a wire as they are, one at a time: a raw socket, in a child process because nothing in the standard library
//! can bind one. Each frame has been handed to the device when [`RawSender::send`] returns.

use std::io::{Read as _, Write as _};
use std::process::{ChildStdin, ChildStdout, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::netns::Ns;
use crate::process::ChildGuard;

/// Reads frames with their lengths in front, sends each, and says with a byte whether the device took it.
const SENDER: &str = "import socket, struct, sys
out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
out.bind((sys.argv[1], 0))
read, write = sys.stdin.buffer, sys.stdout.buffer
while head := read.read(4):
    frame = read.read(struct.unpack('<I', head)[0])
    try:
        out.send(frame)
        write.write(b'y')
    except OSError:
        write.write(b'n')
    write.flush()";

/// Sends frames by one device.
#[derive(Debug)]
pub struct RawSender {
    input: ChildStdin,
    output: ChildStdout,
    /// Ends after its pipes.
    _guard: ChildGuard,
}

impl RawSender {
    /// A sender on `device` in `netns`.
    ///
    /// # Errors
    /// Without Python.
    pub fn start(netns: &Ns, device: &str) -> Result<RawSender> {
        let mut command = netns.command("python3");
        command.args(["-c", SENDER, device]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut guard = ChildGuard::spawn_with_stdio("raw sender", &mut command, None)?;
        let pipes = guard.take_stdin().zip(guard.take_stdout());
        let (input, output) = pipes.context("the raw sender has no pipes")?;
        Ok(RawSender { input, output, _guard: guard })
    }

    /// Sends a frame; false if the device does not take it (shorter than a link header, longer than its MTU).
    ///
    /// # Errors
    /// If the child ended: there is no such device, or it is down.
    pub fn send(&mut self, frame: &[u8]) -> Result<bool> {
        let length = u32::try_from(frame.len()).context("a frame of 4 GiB")?;
        let message = [&length.to_le_bytes(), frame].concat();
        let mut answer = [0];
        self.input
            .write_all(&message)
            .and_then(|()| self.input.flush())
            .and_then(|()| self.output.read_exact(&mut answer))
            .context("the raw sender ended; its own message is above")?;
        match &answer {
            b"y" => Ok(true),
            b"n" => Ok(false),
            other => bail!("the raw sender says {other:?}"),
        }
    }
}
