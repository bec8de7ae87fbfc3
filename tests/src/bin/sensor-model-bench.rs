//! Rows a second of a model, as the agent runs it: `sensor-model-bench MODEL.onnx ROWS.f32 FEATURES LABELS [THREADS]`.
//!
//! Prints the load time and, for each batch size, rows a second of this thread's processor time (of the clock, with more than one
//! thread), as JSON. `models/conformance/bench.sh` calls it beside onnxruntime.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, clock_gettime};
use sensor::model::network::{self, Network};

/// Rows in one call.
const BATCHES: [usize; 3] = [1, 64, 1024];
/// How long each is timed, three times; the best counts.
const TIMED: Duration = Duration::from_millis(300);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, rows, features, labels, rest @ ..] = &arguments[..] else {
        anyhow::bail!("usage: sensor-model-bench MODEL.onnx ROWS.f32 FEATURES LABELS [THREADS]");
    };
    let (features, labels): (usize, usize) = (features.parse()?, labels.parse()?);
    let threads: usize = rest.first().map_or(Ok(1), |text| text.parse())?;
    let bytes = std::fs::read(model).with_context(|| format!("read {model}"))?;
    let rows = std::fs::read(rows).with_context(|| format!("read {rows}"))?;
    let rows: Vec<f32> = rows.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
    let count = (rows.len() / features).saturating_sub(BATCHES[2]);
    ensure!(count > 0, "there must be more than {} rows", BATCHES[2]);
    let begun = Instant::now();
    let mut network = Network::build(&network::decode(&bytes)?, features, labels)?;
    let load_ms = begun.elapsed().as_secs_f64() * 1e3;
    network.set_threads(threads)?;
    let mut speeds = serde_json::Map::new();
    for batch in BATCHES {
        let mut best: f64 = 0.0;
        for _ in 0..3 {
            best = best.max(speed(&mut network, batch, &rows, features, count, threads)?);
        }
        speeds.insert(batch.to_string(), best.round().into());
    }
    println!("{}", serde_json::json!({ "load_ms": load_ms, "rows_per_second": speeds }));
    Ok(())
}

fn speed(
    network: &mut Network,
    batch: usize,
    rows: &[f32],
    features: usize,
    count: usize,
    threads: usize,
) -> Result<f64> {
    let clock = if threads > 1 { ClockId::Monotonic } else { ClockId::ThreadCPUTime };
    let now = || {
        let time = clock_gettime(clock);
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    };
    let (begun, start, mut done, mut sum) = (Instant::now(), now(), 0, 0.0);
    while begun.elapsed() < TIMED {
        let first = done % count;
        network.run(
            batch,
            |row, values| values.copy_from_slice(&rows[(first + row) * features..][..features]),
            |_, output| sum += output[0],
        )?;
        done += batch;
    }
    ensure!(sum.is_finite(), "the model gave a value that is no number");
    Ok(done as f64 / (now() - start))
}
