//! The socket itself: how it comes to its place, who may connect, who asks.

use std::fs::{self, DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use anyhow::{Context, Result, bail};
use axum::Extension;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::routes;
use crate::config::PolicyConfig;
use crate::http::connections::{self, Class, Guest};
use crate::view::{Peer, Request};

/// Who may do what.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Members of this group may read (`agent.socket_group`).
    pub group: Option<String>,
    /// Whose sessions are looked for when an operator acts.
    pub policy: SharedPolicy,
}

/// The policy in force, which a reload changes.
pub type SharedPolicy = Arc<RwLock<PolicyConfig>>;

/// The bound socket. Dropping it removes the file, if it still is this one.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: another agent may have taken the name since.
    identity: (u64, u64),
    access: Access,
}

impl ControlSocket {
    /// Binds the socket: creates its directory, removes what a dead agent left. Needs a tokio runtime.
    ///
    /// # Errors
    /// Another agent answers there, the path is something else than a socket, or it cannot be created.
    pub async fn bind(path: &Path, access: Access) -> Result<ControlSocket> {
        if let Some(directory) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .with_context(|| format!("cannot create {}, the directory of agent.socket", directory.display()))?;
        }
        remove_stale(path).await?;
        let listener = bind_in_place(path, access.group.as_deref())?;
        let metadata = fs::symlink_metadata(path).with_context(|| format!("the control socket {}", path.display()))?;
        Ok(ControlSocket { listener, path: path.to_owned(), identity: (metadata.dev(), metadata.ino()), access })
    }

    /// Serves until the task is dropped; the file goes with it.
    pub async fn serve(self, requests: mpsc::Sender<Request>) {
        let router = routes::router(requests, self.access.policy.clone());
        let of = |stream: &UnixStream| {
            // A peer whose credentials the kernel does not tell is nobody.
            let peer = stream
                .peer_cred()
                .map_or(Peer { uid: u32::MAX, pid: None }, |peer| Peer { uid: peer.uid(), pid: peer.pid() });
            let class = if routes::is_administrator(peer) { Class::Administrator } else { Class::Other };
            Guest { router: router.clone().layer(Extension(peer)), class }
        };
        connections::serve(&self.listener, of).await;
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let ours = |metadata: fs::Metadata| (metadata.dev(), metadata.ino()) == self.identity;
        if fs::symlink_metadata(&self.path).is_ok_and(ours) {
            // Left behind, it is only stale: the next start removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

async fn remove_stale(path: &Path) -> Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot look at {} (agent.socket)", path.display())),
    };
    if !metadata.file_type().is_socket() {
        bail!("{} (agent.socket) exists and is not a socket; remove it or choose another path", path.display());
    }
    match UnixStream::connect(path).await {
        Ok(stream) => {
            let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
            let pid = pid.map_or_else(|| "unknown pid".to_owned(), |pid| format!("pid {pid}"));
            bail!("another sensor agent is running with this socket ({pid}): {}", path.display())
        }
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    Err(error).with_context(|| format!("cannot remove the stale socket {}", path.display()))
                }
                _ => Ok(()),
            }
        }
        Err(error) => Err(error).with_context(|| format!("cannot tell whether an agent uses {}", path.display())),
    }
}

/// Binds under a name that nobody else can reach, sets owner and permissions, and only then moves the socket to its
/// place: at no time can somebody connect who may not. A name that was taken meanwhile is left alone.
fn bind_in_place(path: &Path, group: Option<&str>) -> Result<UnixListener> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let cannot = || format!("cannot create the control socket {}", path.display());
    // Only its owner can look into it. A short name: that of a socket ends at 107 bytes.
    let private = tempfile::Builder::new().prefix(".s").rand_bytes(4).tempdir_in(parent).with_context(cannot)?;
    fs::set_permissions(private.path(), Permissions::from_mode(0o700)).with_context(cannot)?;
    let hidden = private.path().join("s");
    let listener = match UnixListener::bind(&hidden) {
        Ok(listener) => listener,
        // Also if the name is too long by the few bytes of the private directory.
        Err(error) => return Err(error).with_context(cannot),
    };
    let mode = match group {
        None => 0o600,
        Some(name) => {
            let gid = group_id(name)?;
            std::os::unix::fs::chown(&hidden, None, Some(gid)).with_context(|| {
                format!("cannot give the control socket to the group {name} (agent.socket_group); is the agent in it?")
            })?;
            0o660
        }
    };
    fs::set_permissions(&hidden, Permissions::from_mode(mode)).with_context(cannot)?;
    renameat_with(CWD, &hidden, CWD, path, RenameFlags::NOREPLACE).with_context(cannot)?;
    Ok(listener)
}

/// The number of a group, or of a number itself.
fn group_id(name: &str) -> Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let groups = fs::read_to_string("/etc/group").context("cannot read /etc/group (agent.socket_group)")?;
    let id = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    });
    id.with_context(|| format!("there is no group {name} (agent.socket_group)"))
}
