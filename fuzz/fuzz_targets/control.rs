//! The control socket: any bytes, over a real Unix socket, to the agent's own server. Nobody answers for the poll
//! thread: what is fuzzed is how requests are read (HTTP, routes, queries, JSON). The server must answer or hang up,
//! and go on.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use sensor::control::{Access, ControlSocket};

/// Longer than any answer takes: who waits for so long is not answered.
const PATIENCE: Duration = Duration::from_secs(8);

/// The server's socket; it runs until the process ends.
fn socket() -> &'static PathBuf {
    static SOCKET: OnceLock<PathBuf> = OnceLock::new();
    SOCKET.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("sensor-fuzz-{}.sock", std::process::id()));
        let (place, bound) = (path.clone(), std::sync::mpsc::channel());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let (requests, mut inbox) = tokio::sync::mpsc::channel(16);
                let socket = ControlSocket::bind(&place, Access::default()).await.expect("bind the socket");
                bound.0.send(()).expect("somebody waits");
                // Dropped requests: the agent is stopping, as far as clients are told.
                tokio::join!(socket.serve(requests), async { while inbox.recv().await.is_some() {} });
            });
        });
        bound.1.recv().expect("the server starts");
        path
    })
}

/// Sends `bytes` and gives the answer. `last` says on the wire that nothing follows, which ends an unfinished request;
/// the server gives up a request whose client has hung up so, hence a whole one goes without.
fn exchange(bytes: &[u8], last: bool) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket()).expect("the server takes connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    // It may hang up before it has read all.
    let _ = stream.write_all(bytes);
    if last {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        // Reset: it hung up. Anything else is a server that neither answers nor ends.
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
    answer
}

fuzz_target!(|bytes: &[u8]| {
    let answer = exchange(bytes, true);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{}", String::from_utf8_lossy(&answer));
    // The next one is answered.
    let status = exchange(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", false);
    assert!(status.starts_with(b"HTTP/1.1 503"), "{}", String::from_utf8_lossy(&status));
});
