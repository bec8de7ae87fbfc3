//! A client of the control socket that says exactly what a test wants said: HTTP/1.1 on one connection.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

pub(crate) struct Door {
    stream: BufReader<UnixStream>,
}

impl Door {
    pub(crate) fn open(socket: &Path) -> Result<Door> {
        let stream = UnixStream::connect(socket).context("connect to the control socket")?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.set_write_timeout(Some(Duration::from_secs(20)))?;
        Ok(Door { stream: BufReader::new(stream) })
    }

    /// A request and its answer: status code and body.
    pub(crate) fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<(u16, Value)> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: sensor\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.send(&[head.as_bytes(), body.as_bytes()].concat())?;
        let (code, text) = self.answer()?;
        Ok((code, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    /// These bytes.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.get_mut().write_all(bytes).context("write to the control socket")
    }

    /// Reads one answer.
    pub(crate) fn answer(&mut self) -> Result<(u16, String)> {
        let (mut code, mut length) = (None, 0);
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).context("read from the control socket")?;
            let line = line.trim_end();
            if code.is_none() {
                code = line.split(' ').nth(1).and_then(|word| word.parse().ok());
                code.with_context(|| format!("no status line: \"{line}\""))?;
            } else if line.is_empty() {
                break;
            } else if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().context("the length of the answer")?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).context("read an answer's body")?;
        Ok((code.unwrap_or_default(), String::from_utf8_lossy(&body).into_owned()))
    }
}
