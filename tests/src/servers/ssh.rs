//! OpenSSH's server with host keys of its own. It offers passwords (and refuses every one: no user of the system is
//! touched) and admits one key that was made for the run.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::wait_for_port;
use crate::netns::Ns;
use crate::process::{ChildGuard, output};

/// The user that the key admits.
pub const USER: &str = "root";

/// A running sshd.
#[derive(Debug)]
pub struct Ssh {
    _guard: ChildGuard,
    directory: TempDir,
}

impl Ssh {
    /// Starts sshd in `netns` on port 22 of both families.
    ///
    /// # Errors
    /// If sshd is not installed or does not come up.
    pub fn start(netns: &Ns) -> Result<Self> {
        let directory = TempDir::with_prefix("sensor-ssh-").context("make sshd's directory")?;
        let root = directory.path();
        for key in ["host", "client"] {
            output(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(root.join(key)))?;
        }
        // sshd refuses to start without it; the package's service makes it at boot.
        let privileges = Path::new("/run/sshd");
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(privileges).context("make /run/sshd")?;
        let shown = root.display();
        let path = root.join("sshd_config");
        let text = format!(
            "ListenAddress 0.0.0.0\nListenAddress ::\nHostKey {shown}/host\nPidFile none\nUsePAM no\nUseDNS no\n\
             StrictModes no\nPermitRootLogin prohibit-password\nAuthorizedKeysFile {shown}/client.pub\n\
             PasswordAuthentication yes\nMaxStartups 200\nMaxAuthTries 3\nPrintMotd no\nPrintLastLog no\n\
             SetEnv HOME={shown}/home ENV=/dev/null\n"
        );
        // An empty one: a session must not wait for what the user's own shell reads at its start.
        std::fs::create_dir(root.join("home")).context("make the home of sessions")?;
        std::fs::write(&path, text).context("write sshd_config")?;
        let mut command = netns.command("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(&path);
        let guard = ChildGuard::spawn("sshd", &mut command, Some(&root.join("sshd.log")))?;
        wait_for_port(netns, 22, &guard, "sshd")?;
        Ok(Self { _guard: guard, directory })
    }

    /// The private key that [`USER`] may log in with.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.directory.path().join("client")
    }
}
