//! `sensor detach`: takes off what an agent left that is gone.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::start::open;
use crate::bpf::{attach, pins};

/// Removes pins, programs and maps that an agent left in this directory, and the directory. Whether there were any.
///
/// # Errors
/// An agent has them; the directory is not one of Sensor's pins; something cannot be removed.
pub fn detach(path: &Path) -> Result<bool> {
    // Not to be allowed to look is no answer.
    if !path.try_exists().with_context(|| format!("cannot look at {}: run this as root", path.display()))? {
        return Ok(false);
    }
    let (pins, owned) = open(path)?;
    if !owned {
        pins::refuse_owned(&pins)?;
    }
    let left = !pins.is_empty();
    if left {
        attach::clear(&pins)?;
    }
    // The directory goes with `pins`.
    Ok(left)
}
