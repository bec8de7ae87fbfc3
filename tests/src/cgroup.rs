//! A memory control group of a test's own, of either version of the interface.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// A group; removed on drop, when its processes are gone.
#[derive(Debug)]
pub struct MemoryGroup {
    path: PathBuf,
    unified: bool,
}

impl MemoryGroup {
    /// Makes it, without a limit. Needs root.
    ///
    /// # Errors
    /// If this machine has no memory controller to make groups in.
    pub fn new() -> Result<Self> {
        let name = format!("sensor-test-{}", std::process::id());
        let (old, new) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
        let controllers = std::fs::read_to_string(new.join("cgroup.subtree_control")).unwrap_or_default();
        let (parent, unified) = match controllers.split_whitespace().any(|name| name == "memory") {
            true => (new, true),
            false if old.join("memory.limit_in_bytes").exists() => (old, false),
            false => bail!("there is no memory controller at {} or {}", new.display(), old.display()),
        };
        let path = parent.join(name);
        std::fs::create_dir(&path).with_context(|| format!("make the group {}", path.display()))?;
        Ok(Self { path, unified })
    }

    /// Moves a process in. What it has stays charged where it was.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn add(&self, pid: u32) -> Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// From now on the group's processes may take this many bytes in all.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn limit(&self, bytes: u64) -> Result<()> {
        self.write(if self.unified { "memory.max" } else { "memory.limit_in_bytes" }, &bytes.to_string())
    }

    /// Processes of the group that were killed for want of memory.
    ///
    /// # Errors
    /// If the group is gone.
    pub fn killed(&self) -> Result<u64> {
        let path = self.path.join(if self.unified { "memory.events" } else { "memory.oom_control" });
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let number = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
        number.with_context(|| format!("{} does not count kills", path.display()))
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.path.join(file);
        std::fs::write(&path, text).with_context(|| format!("write {text} to {}", path.display()))
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        for _ in 0..100 {
            if std::fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        eprintln!("the group {} is left behind", self.path.display());
    }
}
