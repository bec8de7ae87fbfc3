//! Processor time of this bench and all that it starts, and of the kernel's threads for interrupts put off: of a control
//! group, because what else runs on the machine is nobody's cost here, and because packets are handled in the time of
//! whoever sends them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Where version 2 of control groups is mounted, alone or beside version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// This process and its children in a group of their own, until it is dropped.
pub(super) struct Busy {
    group: PathBuf,
    /// The group before.
    home: PathBuf,
    /// Kernel threads for soft interrupts, one for each CPU.
    softirq: Vec<PathBuf>,
}

impl Busy {
    /// Makes the group and moves this process in. To be called before anything is started.
    pub(super) fn new() -> Result<Busy> {
        let mount = MOUNTS.iter().map(Path::new).find(|mount| mount.join("cgroup.procs").exists());
        let mount = mount.filter(|mount| mount.join("cgroup.controllers").exists());
        let mount = mount.context("there are no control groups of version 2, which processor time is read from")?;
        let own = fs::read_to_string("/proc/self/cgroup").context("read this process's control group")?;
        let home = own.lines().find_map(|line| line.strip_prefix("0::/")).context("no group of version 2")?;
        let group = mount.join(format!("sensor-bench-{}", std::process::id()));
        fs::create_dir(&group).with_context(|| format!("make the control group {}", group.display()))?;
        let busy = Busy { group, home: mount.join(home), softirq: softirq_threads()? };
        enter(&busy.group)?;
        Ok(busy)
    }

    /// Seconds so far.
    pub(super) fn seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(self.group.join("cpu.stat")).context("read the group's processor time")?;
        let used = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse::<f64>().ok());
        let mut seconds = used.context("no usage_usec in the group's cpu.stat")? / 1e6;
        for path in &self.softirq {
            let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            let ns = text.split_whitespace().next().and_then(|number| number.parse::<f64>().ok());
            seconds += ns.with_context(|| format!("no time in {}", path.display()))? / 1e9;
        }
        Ok(seconds)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Err(error) = enter(&self.home) {
            eprintln!("{error:#}");
        }
        for _ in 0..100 {
            if fs::remove_dir(&self.group).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        eprintln!("the control group {} is left behind", self.group.display());
    }
}

fn enter(group: &Path) -> Result<()> {
    let process = std::process::id().to_string();
    fs::write(group.join("cgroup.procs"), process).with_context(|| format!("enter the group {}", group.display()))
}

fn softirq_threads() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("list processes")? {
        let process = entry.context("list processes")?.path();
        // A process that ended meanwhile is none of these.
        if fs::read_to_string(process.join("comm")).is_ok_and(|name| name.starts_with("ksoftirqd/")) {
            found.push(process.join("schedstat"));
        }
    }
    ensure!(!found.is_empty(), "no threads of the kernel named ksoftirqd: is this a container that hides them?");
    Ok(found)
}
