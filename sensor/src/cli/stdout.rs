//! Standard output of commands. `sensor flows | head -1` ends quietly and with the status that it would have otherwise;
//! what a full disk refuses is an error. `print!` would panic at both.

use std::io::{self, ErrorKind, Write};

use anyhow::{Context as _, Result};

/// Writes all of `text`.
///
/// # Errors
/// It cannot be written, for another reason than that nobody reads any more.
pub(super) fn say(text: &str) -> Result<()> {
    let mut output = io::stdout().lock();
    unless_closed(output.write_all(text.as_bytes()).and_then(|()| output.flush()))
}

/// That nobody reads any more is no error.
pub(super) fn unless_closed(written: io::Result<()>) -> Result<()> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// Standard output for rows: what [`is_closed`] knows from any other pipe that was closed, as that to an agent.
pub(super) struct Rows(pub(super) io::StdoutLock<'static>);

/// Nobody reads standard output any more.
#[derive(Debug)]
struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("nobody reads standard output any more")
    }
}

impl std::error::Error for Closed {}

impl Write for Rows {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(marked)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(marked)
    }
}

fn marked(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::BrokenPipe { io::Error::new(ErrorKind::BrokenPipe, Closed) } else { error }
}

/// Whether a command failed only because nobody reads [`Rows`] any more.
pub(super) fn is_closed(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let cause = cause.downcast_ref::<io::Error>().and_then(|error| error.get_ref());
        cause.is_some_and(|cause| cause.is::<Closed>())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_has_gone_is_no_failure_and_an_agent_that_has_is_one() {
        let rows = anyhow::Error::from(marked(ErrorKind::BrokenPipe.into())).context("rows");
        assert!(is_closed(&rows));
        assert!(!is_closed(&anyhow::Error::from(io::Error::from(ErrorKind::BrokenPipe)).context("the agent")));
        assert!(unless_closed(Err(ErrorKind::BrokenPipe.into())).is_ok());
        let error = unless_closed(Err(ErrorKind::StorageFull.into())).expect_err("a full disk");
        assert!(format!("{error:#}").contains("standard output"), "{error:#}");
    }
}
