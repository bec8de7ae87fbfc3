//! The `sensor` command. Everything is in the library; see `sensor::cli`.

use std::process::ExitCode;

/// The allocator of static builds: musl's own takes twice the processor time in `sensor extract`
/// (docs/decisions/0024-static-binary.md).
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    sensor::cli::main()
}
