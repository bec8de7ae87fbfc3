//! How much more memory this process can take: what its memory control groups and the host have left.
//!
//! A model is checked in a process of its own, which the kernel kills first; but the agent then builds it itself. It
//! does not begin to, where it would be killed for it. Called by [`super::accept`].

use std::fs;
use std::path::Path;

/// Where control groups are mounted by convention. `ip netns exec` mounts a /sys without them: nothing is known then.
const ROOT: &str = "/sys/fs/cgroup";

/// Bytes that can be taken, and what allows no more, as in "the control group /system.slice/sensor.service"; `None`
/// where nothing says.
pub(super) fn left() -> Option<(u64, String)> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let host = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    let host = host.map(|bytes| (bytes, "the host".to_owned()));
    groups_left(&groups, Path::new(ROOT)).into_iter().chain(host).min()
}

/// What is left in the groups of this process and those around them, of either version of the interface.
fn groups_left(groups: &str, root: &Path) -> Option<(u64, String)> {
    groups.lines().filter_map(|line| group_left(line, root)).min()
}

/// Of one line of /proc/self/cgroup (cgroups(7)): number, controllers, path.
fn group_left(line: &str, root: &Path) -> Option<(u64, String)> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let (root, files) = match controllers {
        "" => (root.to_owned(), ["memory.max", "memory.current", "inactive_file "]),
        controllers if controllers.split(',').any(|name| name == "memory") => {
            (root.join("memory"), ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "])
        }
        _ => return None,
    };
    let path = Path::new(path.trim_start_matches('/'));
    // Inside a container the path can be one of the host's, which is not there; its own group is then at the root.
    let groups = path.ancestors().map(|group| (root.join(group), format!("the control group /{}", group.display())));
    groups.filter_map(|(directory, name)| Some((one_left(&directory, &files)?, name))).min()
}

/// What is left in a group: its limit less what is used, but for file pages that the kernel would give back at once.
fn one_left(directory: &Path, [limit, usage, reclaimable]: &[&str; 3]) -> Option<u64> {
    let read = |file: &str| fs::read_to_string(directory.join(file)).ok();
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    // "max" is no number, and no limit.
    let (limit, usage) = (number(limit)?, number(usage)?);
    let statistics = read("memory.stat").unwrap_or_default();
    let value = statistics.lines().find_map(|line| line.strip_prefix(reclaimable)?.trim().parse::<u64>().ok());
    Some(limit.saturating_sub(usage.saturating_sub(value.unwrap_or_default())))
}

/// MemAvailable of /proc/meminfo, bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_tightest_group_counts_in_both_versions() {
        let folder = tempfile::tempdir().expect("a folder");
        let put = |directory: &str, files: &[(&str, String)]| {
            let directory = folder.path().join(directory);
            fs::create_dir_all(&directory).expect("a folder");
            files.iter().for_each(|(name, text)| fs::write(directory.join(name), text).expect("a file"));
        };
        let two = |limit: String, used: u64, files: u64| {
            [
                ("memory.max", limit),
                ("memory.current", format!("{}\n", used * MIB)),
                ("memory.stat", format!("anon 5\nfile 9\ninactive_file {}\n", files * MIB)),
            ]
        };
        put("a/b", &two("max\n".to_owned(), 100, 0));
        put("a", &two(format!("{}\n", 300 * MIB), 260, 60));
        let (left, name) = groups_left("0::/a/b\n", folder.path()).expect("limited");
        assert_eq!((left / MIB, name.as_str()), (100, "the control group /a"));
        put(
            "memory/c",
            &[("memory.limit_in_bytes", (200 * MIB).to_string()), ("memory.usage_in_bytes", (150 * MIB).to_string())],
        );
        let both = "4:memory:/c\n1:cpu:/x\n0::/a/b\n";
        assert_eq!(groups_left(both, folder.path()).expect("limited").0 / MIB, 50);
        assert_eq!(groups_left("1:cpu:/c\nnonsense\n0::/gone\n", folder.path()), None);
    }

    #[test]
    fn this_host_has_some_left() {
        let (left, name) = left().expect("/proc is there");
        assert!(left > MIB && !name.is_empty(), "{left} of {name}");
        assert_eq!(available("MemTotal: 5 kB\nMemAvailable:    1024 kB\n"), Some(MIB));
        assert_eq!(available("MemAvailable: lots\n"), None);
    }
}
