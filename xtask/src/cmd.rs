//! Running other programs: each is printed before it runs (`$ command`), and a failure names the command.
//!
//! Used by every other module; also the few facts about this machine that they share (root, paths, PATH look-up).

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{self, BufRead, IsTerminal, Write},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// Prints and runs `command` with this process's own stdin, stdout and stderr.
///
/// # Errors
/// When the program cannot be started or does not exit with 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = render(command);
    println!("$ {line}");
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{}` failed ({status}); its own message is above", words(command));
    }
    Ok(())
}

/// Runs `command` without printing it and returns what it wrote to stdout.
///
/// # Errors
/// When the program cannot be started or does not exit with 0; the message holds what it wrote to stderr.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = render(command);
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{line}`"))?;
    if !out.status.success() {
        bail!("`{line}` failed ({}): {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    String::from_utf8(out.stdout).with_context(|| format!("`{line}` wrote something that is not UTF-8"))
}

/// Whether `command` starts and exits with 0; says nothing.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

/// Says before minutes of building that the result could not be run.
///
/// # Errors
/// When neither root nor sudo is there.
pub(crate) fn require_way_to_root() -> Result<()> {
    if !is_root() && find_in_path("sudo").is_none() {
        bail!("attaching programs needs root, and there is no sudo here: run this as root, or install sudo");
    }
    Ok(())
}

/// Replaces this process with `program args`, through sudo when it does not run as root. Returns only on failure.
///
/// # Errors
/// When neither root nor sudo is there, or the program cannot be started.
pub(crate) fn exec_as_root<S: AsRef<OsStr>>(program: &Path, args: &[S]) -> Result<()> {
    let mut command = if is_root() {
        Command::new(program)
    } else {
        let mut direct = Command::new(program);
        let Some(sudo) = find_in_path("sudo") else {
            bail!(
                "attaching programs needs root and there is no sudo here; as root, run:\n  {}",
                render(direct.args(args))
            );
        };
        let mut command = Command::new(sudo);
        command.arg(program);
        command
    };
    command.args(args);
    let line = render(&command);
    println!("$ {line}");
    Err(command.exec()).with_context(|| format!("cannot start `{line}`"))
}

/// The host's cargo: the one that runs this program, so that all host builds use one toolchain.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace_root());
    command
}

/// The folder of the workspace's Cargo.toml.
pub(crate) fn workspace_root() -> PathBuf {
    // `cargo run` sets the variable; the constant serves when the binary is started by hand.
    let manifest_dir =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest_dir.parent().map_or(manifest_dir.clone(), Path::to_path_buf)
}

/// Where the host binary `name` is after a build in `profile_dir` ("debug", "release" or "quick").
///
/// # Errors
/// When the path of this program itself is unknown: the answer is found beside it, whatever target folder is configured.
pub(crate) fn host_binary(profile_dir: &str, name: &str) -> Result<PathBuf> {
    let exe = env::current_exe().context("cannot find the path of the running xtask")?;
    let target = exe.ancestors().nth(2).context("xtask does not run from cargo's target folder; use `cargo xtask`")?;
    Ok(target.join(profile_dir).join(name))
}

/// The project's own tools (bpf-linker, cargo-deny), apart from the user's ~/.cargo/bin.
pub(crate) fn tools_root() -> PathBuf {
    workspace_root().join("target/tools")
}

/// `$CARGO_HOME`, or its default.
pub(crate) fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| env::home_dir().map(|home| home.join(".cargo")))
}

/// Whether the effective user is root.
pub(crate) fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("Uid:")).and_then(|ids| ids.split_whitespace().nth(1)) == Some("0")
}

/// Whether this process has the rights that loading network programs takes.
pub(crate) fn may_load_programs() -> bool {
    // CAP_SYS_ADMIN, else CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF (capabilities(7)).
    const ALL: u64 = 1 << 21;
    const EACH: u64 = 1 << 12 | 1 << 38 | 1 << 39;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    effective & ALL != 0 || effective & EACH == EACH
}

/// Every executable `name` in PATH, then in the folders of system daemons that an ordinary user's PATH leaves out.
pub(crate) fn all_in_path(name: &str) -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut found = Vec::new();
    for dir in env::split_paths(&path).chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from)) {
        let file = dir.join(name);
        if is_executable(&file) && !found.contains(&file) {
            found.push(file);
        }
    }
    found
}

/// The first of [`all_in_path`].
pub(crate) fn find_in_path(name: &str) -> Option<PathBuf> {
    all_in_path(name).into_iter().next()
}

/// Whether `file` is a regular file that somebody may execute.
pub(crate) fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Asks a yes/no question; without a terminal on stdin the answer is yes.
///
/// # Errors
/// When the terminal cannot be read.
pub(crate) fn confirm(question: &str) -> Result<bool> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Ok(true);
    }
    print!("{question} [Y/n] ");
    io::stdout().flush().context("cannot write to the terminal")?;
    let mut answer = String::new();
    let read = stdin.lock().read_line(&mut answer).context("cannot read the answer from the terminal")?;
    // End of file is not consent.
    Ok(read > 0 && matches!(answer.trim().to_ascii_lowercase().as_str(), "" | "y" | "yes"))
}

/// The command as one would type it in a shell, with the variables it sets.
pub(crate) fn render(command: &Command) -> String {
    let set = command.get_envs().filter_map(|(key, value)| {
        let value = value?.to_string_lossy().replace('\u{1f}', " ");
        // The encoded form cannot be typed; this one means the same as long as no path holds a space.
        let key = if key == "CARGO_ENCODED_RUSTFLAGS" { "RUSTFLAGS".into() } else { key.to_string_lossy() };
        Some(format!("{key}={}", quote(&value)))
    });
    set.chain([words(command)]).collect::<Vec<_>>().join(" ")
}

/// The command without its variables: enough in an error, as the whole line was printed before.
fn words(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(|word| quote(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rendered_command_can_be_pasted_into_a_shell() {
        let mut command = Command::new("cargo");
        command.env("RUSTFLAGS", "-C a -C b").env_remove("CARGO").args(["build", "it's", ""]);
        assert_eq!(render(&command), r"RUSTFLAGS='-C a -C b' cargo build 'it'\''s' ''");
    }

    #[test]
    fn failures_name_the_command() {
        let error = output(&mut Command::new("false")).unwrap_err();
        assert!(error.to_string().contains("`false` failed"), "{error}");
        let error = run(&mut Command::new("/nonexistent/program")).unwrap_err();
        assert!(error.to_string().contains("cannot start `/nonexistent/program`"), "{error}");
    }

    #[test]
    fn path_look_up_finds_executables_only() {
        assert!(find_in_path("sh").is_some());
        assert!(find_in_path("no-such-program-here").is_none());
    }
}
