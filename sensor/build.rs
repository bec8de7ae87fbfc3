//! Finds the compiled kernel programs that the agent embeds: `SENSOR_EBPF_OBJECT`, else what `cargo xtask ebpf` built. With the
//! feature `bench`, those of benches as well, in a file beside it.

use std::path::{Path, PathBuf};

/// Name of the object for benches.
const BENCH: &str = "sensor-ebpf-bench.o";

fn main() {
    println!("cargo::rerun-if-env-changed=SENSOR_EBPF_OBJECT");
    let object = match std::env::var_os("SENSOR_EBPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default())
            .join("../target/bpf/sensor-ebpf.o"),
    };
    embed(&object, "SENSOR_EBPF_OBJECT_PATH", "eBPF object", "or name one in SENSOR_EBPF_OBJECT");
    if std::env::var_os("CARGO_FEATURE_BENCH").is_some() {
        let object = object.with_file_name(BENCH);
        let otherwise = "or put it beside the one that SENSOR_EBPF_OBJECT names";
        embed(&object, "SENSOR_EBPF_BENCH_OBJECT_PATH", "eBPF object for benches (feature `bench`)", otherwise);
    }
}

/// Says where an object is, in a variable of the compilation.
fn embed(object: &Path, variable: &str, what: &str, otherwise: &str) {
    println!("cargo::rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(object) => println!("cargo::rustc-env={variable}={}", object.display()),
        Err(error) => println!(
            "cargo::error=no {what} at {} ({error}): run `cargo xtask ebpf` first, {otherwise}",
            object.display()
        ),
    }
}
