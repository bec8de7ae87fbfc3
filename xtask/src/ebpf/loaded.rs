//! What the running kernel says of the programs: `sensor-programs`, of the tests' crate, loads them with the agent's own code.

use std::{collections::BTreeMap, env, fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::cmd;

/// All programs as one kernel has them.
pub(super) struct Loaded {
    /// Its version as far as its verifier may differ, and the machine.
    pub(super) kernel: String,
    /// By program.
    pub(super) programs: BTreeMap<String, Numbers>,
}

/// What the kernel says of a program.
pub(super) struct Numbers {
    /// Instructions that the verifier walked; kernels before 5.16 do not say.
    pub(super) verified: Option<u32>,
    /// Bytes of machine code, 0 without the JIT compiler.
    pub(super) jited: u32,
}

/// Loads the programs; `None`, with a line that says why, where this process may not.
///
/// # Errors
/// If the build fails, or the kernel refuses a program.
pub(super) fn loaded() -> Result<Option<Loaded>> {
    let program = cmd::host_binary("debug", "sensor-programs")?;
    let Some(mut command) = with_rights(&program) else {
        println!(
            "verified instructions and JITed bytes were not looked at: loading the programs needs root (CAP_BPF, CAP_PERFMON \
             and CAP_NET_ADMIN), or a sudo that asks for no password"
        );
        return Ok(None);
    };
    // Over the whole workspace, as the tests are built: dependencies get the same features.
    cmd::run(cmd::cargo().args(["build", "--workspace", "--bin", "sensor-programs"]))?;
    println!("$ {}", cmd::render(&command));
    let text = cmd::output(&mut command)?;
    let programs = parse(&text).context("what sensor-programs printed")?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("which kernel this is")?;
    Ok(Some(Loaded { kernel: kernel(&release), programs }))
}

/// The command that runs `program` with the rights to load, without asking anybody.
fn with_rights(program: &Path) -> Option<Command> {
    if cmd::may_load_programs() {
        return Some(Command::new(program));
    }
    let sudo = cmd::find_in_path("sudo")?;
    let may = cmd::succeeds(Command::new(&sudo).args(["--non-interactive", "true"]));
    let mut command = Command::new(sudo);
    command.arg("--non-interactive").arg(program);
    may.then_some(command)
}

/// `6.18.44-distribution` → `Linux 6.18, x86_64`.
fn kernel(release: &str) -> String {
    let version: Vec<_> = release.trim().split(['.', '-']).take(2).collect();
    format!("Linux {}, {}", version.join("."), env::consts::ARCH)
}

fn parse(text: &str) -> Result<BTreeMap<String, Numbers>> {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let name = words.next()?.to_owned();
        let verified = match words.next()? {
            "-" => None,
            number => Some(number.parse().ok()?),
        };
        Some((name, Numbers { verified, jited: words.next()?.parse().ok()? }))
    };
    text.lines().map(|text| line(text).with_context(|| format!("not understood: {text}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let programs = parse("sensor_egress 186772 52170\nsensor_tag - 0\n").unwrap();
        assert_eq!(programs["sensor_egress"].verified, Some(186_772));
        assert_eq!((programs["sensor_tag"].verified, programs["sensor_tag"].jited), (None, 0));
        assert!(parse("sensor_egress 186772\n").is_err());
    }

    #[test]
    fn a_kernel_is_its_version_and_not_its_build() {
        assert_eq!(kernel("6.1.0-56-cloud-amd64\n"), format!("Linux 6.1, {}", env::consts::ARCH));
        assert_eq!(kernel("7.2.13\n"), kernel("7.2-rc1\n"));
    }
}
