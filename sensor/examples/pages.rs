//! Writes the man pages and the shell completions of `sensor` into a folder: `pages FOLDER`, as `cargo xtask dist`
//! does.
//!
//! They come from the command line's own declaration. An example, so that the agent itself depends on no generator.

use std::{env, fs, path::PathBuf};

use anyhow::{Context, Result};
use clap_complete::Shell;

fn main() -> Result<()> {
    let folder = env::args_os().nth(1).map(PathBuf::from).context("usage: pages FOLDER")?;
    let (man, completions) = (folder.join("man"), folder.join("completions"));
    for part in [&man, &completions] {
        fs::create_dir_all(part).with_context(|| format!("cannot create {}", part.display()))?;
    }
    let mut command = sensor::cli::command();
    clap_mangen::generate_to(command.clone(), &man).with_context(|| format!("cannot write into {}", man.display()))?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "sensor", &completions)
            .with_context(|| format!("cannot write into {}", completions.display()))?;
    }
    Ok(())
}
