//! The `sensor` command. Everything is in the library; see `sensor::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    sensor::cli::main()
}
