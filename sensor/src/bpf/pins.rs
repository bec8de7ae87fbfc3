//! Pins: the maps and links of an agent under a directory of a BPF file system, where they outlive it until another agent
//! adopts or removes them.
//!
//! Who owns the pins holds a lock (`flock`) on the directory: the kernel gives it back when that process is gone, however
//! it went. [`Pins`] that own their directory empty it on drop, unless they are left on purpose. Called by `agent::start`,
//! the loader and [`super::attach`].

use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use aya::maps::{Array, Map, MapData, MapInfo};
use aya::programs::links::{FdLink, PinnedLink};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use sensor_common::schema::{self, Meta};

use super::run::Hook;
use super::sys::{ControlPage, Plain};

/// Pin of the map that says what the others are. The last that is made, the first that goes.
const META: &str = "META";
/// Pins of links begin with it.
const LINK: &str = "link-";
/// Maps that earlier versions pinned and this one does not know, so that it can remove them.
const FORMER: &[&str] = &[];

/// How many entries a map must have to be adopted, and the setting that says so.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// The map.
    pub map: &'static str,
    /// Its entries.
    pub entries: u32,
    /// The setting, and how many of it an entry stands for.
    pub setting: (&'static str, u32),
    /// Entries beyond those that the setting asks for.
    pub spare: u32,
}

/// The directory.
#[derive(Debug)]
pub struct Pins {
    path: PathBuf,
    directory: OwnedFd,
    owned: bool,
    leave: bool,
}

/// Pins that an agent left; still locked, so that the next one waits until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Left(#[expect(dead_code, reason = "held for its lock")] pub(super) Pins);

impl Pins {
    /// Opens the directory, or makes it. Owns nothing yet.
    ///
    /// # Errors
    /// It is not in a BPF file system, others could write it, it holds what Sensor did not pin, or it cannot be made.
    pub fn open(path: &Path) -> anyhow::Result<Pins> {
        let parent = path.parent().unwrap_or(path);
        let there = if path.exists() { path } else { parent };
        ensure!(
            super::probe::is_bpf_fs(there),
            "{} is in no BPF file system: mount one (mount -t bpf bpf {}), or set agent.pins = \"\"",
            path.display(),
            parent.display()
        );
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(error)
                    .with_context(|| format!("cannot make {}, the directory of agent.pins", path.display()));
            }
            _ => {}
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty())
            .with_context(|| format!("cannot open {} (agent.pins)", path.display()))?;
        let status = rustix::fs::fstat(&directory).context("directory of agent.pins")?;
        let own = rustix::process::geteuid().as_raw();
        ensure!(
            (status.st_uid == own || status.st_uid == 0) && status.st_mode & 0o022 == 0,
            "{} (agent.pins) belongs to user {} or can be written by others: who can write it owns the agent's maps; \
             stop that user's agent (systemctl stop sensor), or name another directory",
            path.display(),
            status.st_uid
        );
        let pins = Pins { path: path.to_owned(), directory, owned: false, leave: false };
        if let Some(name) = pins.entries().into_iter().find(|name| !is_ours(name)) {
            bail!(
                "{} (agent.pins) holds {name:?}, which Sensor did not pin: give the agent a directory of its own",
                path.display()
            );
        }
        Ok(pins)
    }

    /// Becomes the owner, if nobody else is.
    ///
    /// # Errors
    /// If the kernel cannot lock the directory, or it was removed meanwhile: open it again.
    pub fn own(&mut self) -> anyhow::Result<bool> {
        if self.owned {
            return Ok(true);
        }
        match flock(&self.directory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(false),
            result => result.with_context(|| format!("cannot lock {} (agent.pins)", self.path.display()))?,
        }
        // An agent that stopped in an orderly way has removed it.
        let inode = rustix::fs::fstat(&self.directory).map(|status| status.st_ino).ok();
        let same = fs::metadata(&self.path).is_ok_and(|there| Some(there.ino()) == inode);
        ensure!(same, "{} was removed by the agent that had it: start again", self.path.display());
        self.owned = true;
        Ok(true)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode: which directory it is, whatever it is called in a mount namespace.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn identity(&self) -> anyhow::Result<[u64; 2]> {
        let status = rustix::fs::fstat(&self.directory).context("directory of agent.pins")?;
        Ok([status.st_dev, status.st_ino])
    }

    /// Whether there are pins.
    pub fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    fn entries(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// What the agent that made the pins says of them; `None`: there are none, or not all.
    ///
    /// # Errors
    /// They are of a version of Sensor that cannot be understood at all.
    pub fn meta(&self) -> anyhow::Result<Option<Meta>> {
        let path = self.path.join(META);
        if !path.exists() {
            return Ok(None);
        }
        let other = || "the pinned maps are of another version of Sensor";
        let map = MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let map = Array::<_, Plain<Meta>>::try_from(Map::Array(map)).with_context(other)?;
        Ok(Some(map.get(&0, 0).with_context(other)?.0))
    }

    /// Whether the pinned maps can go on under programs of this version with these sizes.
    ///
    /// # Errors
    /// They cannot: why, and what to do.
    pub fn check(&self, meta: &Meta, sizes: &[Size]) -> anyhow::Result<()> {
        ensure!(
            meta.version == schema::VERSION,
            "the pinned maps have schema {:016x}, this version of Sensor has {:016x}",
            meta.version,
            schema::VERSION
        );
        ensure!(meta.netns == netns()?, "the pinned maps belong to an agent in another network namespace");
        for map in schema::MAPS {
            let info = self.info(map.name)?;
            let found = (info.key_size(), info.value_size());
            ensure!(
                found == (map.key_size, map.value_size),
                "the pinned map {} has keys and values of {found:?} bytes, this version of Sensor {:?}",
                map.name,
                (map.key_size, map.value_size)
            );
        }
        for Size { map, entries, setting: (setting, unit), spare } in sizes {
            let found = self.info(map)?.max_entries();
            ensure!(
                found == *entries,
                "{setting} = {}, but the pinned map {map} was made with {}: set {setting} to that",
                (entries - spare) * unit,
                found.saturating_sub(*spare) * unit
            );
        }
        Ok(())
    }

    fn info(&self, map: &str) -> anyhow::Result<MapInfo> {
        let path = self.path.join(map);
        MapInfo::from_pin(&path).with_context(|| format!("cannot look at the pinned map {}", path.display()))
    }

    /// Where a map is pinned.
    pub(super) fn map_path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Says what the maps are, now that they all are there; or that this agent has them.
    ///
    /// # Errors
    /// If the kernel refuses to make, pin or write the map.
    pub fn set_meta(&self, meta: &Meta) -> anyhow::Result<()> {
        let path = self.path.join(META);
        let there = path.exists();
        let mut map = if there {
            let data = MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
            Array::try_from(Map::Array(data)).context("map META")?
        } else {
            Array::create(1, 0).context("cannot make map META")?
        };
        map.set(0, Plain(*meta), 0).context("writing map META")?;
        if there {
            return Ok(());
        }
        map.pin(&path).with_context(|| format!("cannot pin map META to {}", path.display()))
    }

    /// Keeps a link under a name of its own.
    pub(super) fn pin_link(&self, link: FdLink, hook: Hook, ifindex: u32) -> anyhow::Result<PinnedLink> {
        let path = self.link_path(hook, ifindex);
        link.pin(&path).with_context(|| format!("cannot pin a link to {}", path.display()))
    }

    /// A link that was left here.
    pub(super) fn link(&self, hook: Hook, ifindex: u32) -> anyhow::Result<Option<PinnedLink>> {
        let path = self.link_path(hook, ifindex);
        if !path.exists() {
            return Ok(None);
        }
        PinnedLink::from_pin(&path).map(Some).with_context(|| format!("cannot open the link {}", path.display()))
    }

    fn link_path(&self, hook: Hook, ifindex: u32) -> PathBuf {
        let hook = match hook {
            Hook::Egress => "egress",
            Hook::StackIngress => "ingress",
            Hook::Tag => "tag",
            Hook::Ingress => "xdp",
            #[cfg(feature = "bench")]
            Hook::Floor(_) | Hook::Bench(_) => "xdp",
        };
        // The file system does not take dots.
        self.path.join(format!("{LINK}{ifindex}-{hook}"))
    }

    /// From now on the pins stay when this is dropped, for the next agent.
    pub fn leave(&mut self, leave: bool) {
        self.leave = leave;
    }

    /// The pinned control page.
    ///
    /// # Errors
    /// If it is not pinned, or cannot be opened.
    pub fn control(&self) -> anyhow::Result<ControlPage> {
        let map = MapData::from_pin(self.path.join("CONTROL")).context("the pinned map CONTROL")?;
        ControlPage::new(map.fd())
    }

    /// Ends the lease of the agent that made the pins: no verdict in these maps holds any more.
    ///
    /// # Errors
    /// If the control page is not pinned, or cannot be opened.
    pub(super) fn end_lease(&self) -> anyhow::Result<()> {
        // The lease is the first field in every version.
        self.control()?.set_lease(0);
        Ok(())
    }

    /// Removes every pin of Sensor, and with the links the programs from their interfaces.
    ///
    /// # Errors
    /// The first pin that could not be removed, after all were tried.
    pub fn clear(&self) -> anyhow::Result<()> {
        let mut entries = self.entries();
        entries.retain(|name| is_ours(name));
        // What is left of a removal that was interrupted must not look complete.
        entries.sort_by_key(|name| name != META);
        let mut failure = None;
        for name in entries {
            let path = self.path.join(name);
            if let Err(error) = fs::remove_file(&path) {
                failure.get_or_insert((path, error));
            }
        }
        match failure {
            None => Ok(()),
            Some((path, error)) => Err(error).with_context(|| format!("cannot remove the pin {}", path.display())),
        }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if !self.owned || self.leave {
            return;
        }
        if let Err(error) = self.clear() {
            tracing::error!("{error:#}");
        }
        // Where somebody else made it for the agent, it may not be the agent's to remove.
        let _ = fs::remove_dir(&self.path);
    }
}

/// Whether an agent, of this version or an earlier one, pins something by this name.
fn is_ours(name: &str) -> bool {
    let is_map = schema::MAPS.iter().any(|map| map.name == name) || FORMER.contains(&name);
    name == META || is_map || name.starts_with(LINK)
}

/// Device and inode of this thread's network namespace.
///
/// # Errors
/// If /proc is not there.
pub(super) fn netns() -> anyhow::Result<[u64; 2]> {
    let namespace = fs::metadata("/proc/thread-self/ns/net").context("the thread's network namespace")?;
    Ok([namespace.dev(), namespace.ino()])
}

/// The data of a map of any type that is shared; `None` of other types.
pub(super) fn map_data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}

/// The lock of a directory is somebody else's.
///
/// # Errors
/// Always.
pub fn refuse_owned(pins: &Pins) -> anyhow::Result<()> {
    let owner = match pins.meta() {
        Ok(Some(meta)) => format!("pid {}", meta.pid),
        _ => "unknown pid".to_owned(),
    };
    bail!(
        "another sensor agent ({owner}) has the pins at {}: stop it, replace it with `sensor run --takeover`, or give this \
         one --pins of its own",
        pins.path().display()
    )
}
