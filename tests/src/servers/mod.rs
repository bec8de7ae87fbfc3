//! The services of the protected host: the real programs, each with a configuration and files of its own in a
//! temporary directory that goes with the guard. Nothing of the system's configuration is read or changed.

mod dns;
mod nginx;
mod ssh;

pub use dns::{Dns, ZONE};
pub use nginx::{Nginx, Upkeep};
pub use ssh::{Ssh, USER};

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::netns::Ns;
use crate::process::ChildGuard;
use crate::topology::EDGE_V4;

/// All services of the edge.
#[derive(Debug)]
pub struct Servers {
    /// Web, ports 80 and 443.
    pub nginx: Nginx,
    /// SSH, port 22.
    pub ssh: Ssh,
    /// Name service, port 53.
    pub dns: Dns,
}

impl Servers {
    /// Starts every service in `netns` and waits for it to accept.
    ///
    /// # Errors
    /// If a program is missing or does not come up; the text holds its log.
    pub fn start(netns: &Ns) -> Result<Self> {
        Ok(Self { nginx: Nginx::start(netns)?, ssh: Ssh::start(netns)?, dns: Dns::start(netns)? })
    }
}

/// Waits until `port` of the edge accepts a connection from the edge itself.
fn wait_for_port(netns: &Ns, port: u16, guard: &ChildGuard, name: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let address = SocketAddr::from((EDGE_V4, port));
    while Instant::now() < deadline && guard.is_running() {
        match netns.within(|| TcpStream::connect_timeout(&address, Duration::from_millis(500)))? {
            Ok(_accepted) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => bail!("connect to {name} at {address}: {error}"),
        }
    }
    bail!("{name} does not accept connections at {address}; its log:\n{}", guard.log())
}
