//! `sensor model check`: loads a model as the agent would and says what it found.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use sensor_common::features::{CONTRACT_VERSION, contract_hash};

use super::network::BATCHES;
use super::{GOLDEN_TOLERANCE, Model};

/// How long each batch size is timed.
const TIMED: Duration = Duration::from_millis(200);

/// Loads the model at `path` and writes a report.
///
/// # Errors
/// Those of [`Model::load`], or of writing.
pub fn check(path: &Path, out: &mut dyn Write) -> Result<()> {
    let mut model = Model::load(path)?;
    writeln!(out, "model        {}", model.name)?;
    writeln!(out, "file         {}", path.display())?;
    writeln!(out, "sha256       {}", model.hash)?;
    if !model.trained_on.is_empty() {
        writeln!(out, "trained on   {}", model.trained_on)?;
    }
    writeln!(out, "contract     version {CONTRACT_VERSION}, hash {}: as this agent's", contract_hash())?;
    writeln!(out, "input        {:?}: [batch, {}] f32", model.network.input, model.features.len())?;
    writeln!(out, "output       {:?}: [batch, {}] f32", model.network.output, model.labels.len())?;
    writeln!(out, "labels       {}", model.labels.join(", "))?;
    writeln!(out, "threshold    {} (score = 1 - P({}))", model.threshold, model.labels[0])?;
    writeln!(out, "min packets  {}", model.min_packets)?;
    writeln!(
        out,
        "golden rows  {} rows at batch sizes {BATCHES:?}: largest difference {:.1e} (allowed {GOLDEN_TOLERANCE:.0e})",
        model.golden.len(),
        model.golden_delta
    )?;
    for batch in BATCHES {
        let (rows, time) = speed(&mut model, batch)?;
        let per_second = rows as f64 / time.as_secs_f64();
        writeln!(
            out,
            "speed        batch {batch:>3}: {per_second:>9.0} rows/s, {:>8.1} µs a batch",
            batch as f64 / per_second * 1e6
        )?;
    }
    writeln!(out, "features     {}", model.features.len())?;
    for feature in &model.features {
        writeln!(out, "  {:<24} {}", feature.name, feature.unit)?;
    }
    writeln!(out, "ok")?;
    Ok(())
}

/// Rows that were run in batches of `batch`, and how long that took.
fn speed(model: &mut Model, batch: usize) -> Result<(usize, Duration)> {
    let (start, mut rows) = (Instant::now(), 0);
    while start.elapsed() < TIMED {
        let golden = &model.golden;
        model.network.run(
            batch,
            |row, values| values.copy_from_slice(&golden[row % golden.len()].input),
            |_, output| rows += !output.is_empty() as usize,
        )?;
    }
    Ok((rows, start.elapsed()))
}
