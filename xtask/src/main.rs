//! The project's own commands, `cargo xtask <command>`.
//!
//! Invariant: every command works from a fresh clone, says each command it runs (`$ ...`) and, before it installs
//! anything, what and why. Depends on no other crate of the workspace, so that it builds before they do.

mod apt;
mod cmd;
mod dist;
mod docs;
mod ebpf;
mod fuzz;
mod lint;
mod packages;
mod python;
mod run;
mod setup;
mod test;
mod toolchain;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, runs and checks Sensor. Start with `cargo xtask run`: it builds the agent, which holds the committed kernel
/// programs, and attaches it to the interface of the default route.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what compiles the kernel programs (only changes of them need that), or what tests and lints use.
    ///
    /// That is rustc 1.96.0 with rust-src and bpf-linker: Debian's packages as root on Debian 12, else rustup's, below
    /// target/tools, apart from your own toolchains. Sources that fail are passed by. Nothing is done when all is there.
    Setup(setup::Options),
    /// Compile the kernel programs into sensor-ebpf/object, where they are committed and the agent's build takes them from.
    ///
    /// To be run, and its result committed, after a change of sensor-ebpf or of what it uses. $SENSOR_BPF_RUSTC names
    /// another compiler than the pinned one; $SENSOR_EBPF_OBJECT an object that builds use as it is (benches: the one
    /// beside it, sensor-ebpf-bench.o). Objects have the same bytes from any folder.
    /// Then says what each program costs, beside its budget (sensor-ebpf/budget.toml), and fails if one is over a limit.
    Ebpf(ebpf::EbpfArgs),
    /// Build the agent and run it, by default with its live summary.
    ///
    /// Example: `cargo xtask run -i eth0 --mode observe`. Arguments that are not listed here go to `sensor run`.
    /// Attaching needs root: as another user, the built binary (not cargo) is started through sudo.
    Run(run::RunArgs),
    /// Run every test of the workspace, with cargo-nextest where it is installed.
    ///
    /// Tests attach programs inside network namespaces of their own and so need root: as another user, cargo builds
    /// as you and only the test binaries run through sudo.
    Test(test::TestArgs),
    /// Do everything to a running agent at once, at random: kill, hang, replace, fill its disk, block its log, detach
    /// it, flood.
    ///
    /// Fails if anybody is worse off than without an agent, or a blocked source passes while an agent lives.
    Chaos(test::ChaosArgs),
    /// Fuzz the parser, the flow record and the capture reader, with any Rust toolchain.
    ///
    /// Example: `cargo xtask fuzz --seconds 600 parse`. What is found stays in target/fuzz.
    Fuzz(fuzz::FuzzArgs),
    /// Run the benches. Example: `cargo xtask bench datapath`.
    Bench(run::BenchArgs),
    /// Compare the kernel programs with native code on captures, integer by integer. Exit code 1 for a difference.
    ///
    /// Every frame is run by the loaded program (BPF_PROG_TEST_RUN) and by `sensor extract`'s code. Needs root, as `run`
    /// does. Example: `cargo xtask parity captures/ one.pcap`.
    Parity(run::ParityArgs),
    /// Write docs/metrics.md and docs/features.md from what the agent itself declares.
    Docs(docs::DocsArgs),
    /// Make what people install: static binaries, .deb, .rpm, .apk, the container image, checksums, bill of materials.
    ///
    /// Example: `cargo xtask dist --arch x86_64 --only deb,rpm`. What is made is in target/dist, with the same bytes in each
    /// run on the same source.
    Dist(dist::DistArgs),
    /// Test the Debian package: lintian, then install, upgrade under traffic, crash, hang and purge under a real systemd.
    ///
    /// Boots a Debian 12 of its own in a container, which needs root, and downloads it the first time.
    Packages(packages::PackagesArgs),
    /// Boot other kernels under qemu and try the agent in them: attach, count, drop, kill, take over, leave nothing
    /// behind.
    ///
    /// Example: `cargo xtask vm 6.1 6.12 7.2 --arch x86_64,arm64`. One to two minutes a kernel, after the binaries are
    /// built.
    Vm(vm::VmArgs),
    /// Check format, lints (host and BPF), dependencies, generated documents and what the kernel programs cost. Changes no
    /// file of the project.
    Lint,
}

fn main() -> ExitCode {
    match perform(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line with its causes and no backtrace: what failed is a command, not this program.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    match task {
        Task::Setup(options) => setup::setup(options),
        Task::Ebpf(args) => ebpf::ebpf(args),
        Task::Run(args) => run::run(args),
        Task::Test(args) => test::test(args),
        Task::Chaos(args) => test::chaos(&args),
        Task::Fuzz(args) => fuzz::fuzz(args),
        Task::Bench(args) => run::bench(args),
        Task::Parity(args) => run::parity(args),
        Task::Docs(args) => docs::docs(args),
        Task::Dist(args) => dist::dist(args),
        Task::Packages(args) => packages::packages(args),
        Task::Vm(args) => vm::vm(&args),
        Task::Lint => lint::lint(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_keeps_its_own_flags_and_passes_the_rest_on() {
        let cli = Cli::parse_from(["cargo xtask", "run", "--debug", "-i", "eth0", "--mode", "tag"]);
        let Task::Run(args) = cli.command else { panic!("not the run command") };
        assert!(args.debug && !args.demo);
        assert_eq!(args.args, ["-i", "eth0", "--mode", "tag"]);
    }
}
