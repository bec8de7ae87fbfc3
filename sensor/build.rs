//! Finds the compiled kernel programs that the agent embeds: `SENSOR_EBPF_OBJECT`, else what `cargo xtask ebpf` built.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=SENSOR_EBPF_OBJECT");
    let object = match std::env::var_os("SENSOR_EBPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default())
            .join("../target/bpf/sensor-ebpf.o"),
    };
    println!("cargo::rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(object) => println!("cargo::rustc-env=SENSOR_EBPF_OBJECT_PATH={}", object.display()),
        Err(error) => println!(
            "cargo::error=no eBPF object at {} ({error}): run `cargo xtask ebpf` first, or name one in SENSOR_EBPF_OBJECT",
            object.display()
        ),
    }
}
