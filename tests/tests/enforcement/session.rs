//! An operator's SSH session: lines go to `cat` on the edge and come back.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context as _, Result, ensure};
use sensor_tests::netns::Ns;
use sensor_tests::process::ChildGuard;
use sensor_tests::servers::USER;

use super::scene::PATIENCE;

pub(crate) struct Session {
    input: ChildStdin,
    lines: Receiver<String>,
    said: u64,
    _guard: ChildGuard,
}

impl Session {
    /// Opens one to `host`, and waits until it answers.
    pub(crate) fn open(netns: &Ns, key: &Path, host: &str) -> Result<Session> {
        let mut command = netns.command("ssh");
        command.args(["-F", "none", "-q", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        command.args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-i"]).arg(key);
        command.arg(format!("{USER}@{host}")).arg("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut guard = ChildGuard::spawn_with_stdio("ssh", &mut command, None)?;
        let (input, output) = guard.take_stdin().zip(guard.take_stdout()).context("ssh has no pipes")?;
        let (line, lines) = channel();
        std::thread::spawn(move || {
            for text in BufReader::new(output).lines().map_while(Result::ok) {
                if line.send(text).is_err() {
                    break;
                }
            }
        });
        let mut session = Session { input, lines, said: 0, _guard: guard };
        session.say()?;
        Ok(session)
    }

    /// Says a line and waits for it to come back.
    pub(crate) fn say(&mut self) -> Result<()> {
        let text = format!("line {} of this session", self.said);
        writeln!(self.input, "{text}").and_then(|()| self.input.flush()).context("write to the session")?;
        let back = self.lines.recv_timeout(PATIENCE).context("the session does not answer")?;
        ensure!(back == text, "the session answers \"{back}\" to \"{text}\"");
        self.said += 1;
        Ok(())
    }

    /// Lines that came back.
    pub(crate) fn said(&self) -> u64 {
        self.said
    }
}
