//! Finds the compiled kernel programs that the agent embeds: the object that `SENSOR_EBPF_OBJECT` names, else the one
//! committed in sensor-ebpf/object, if its sources are still those it was compiled from. With the feature `bench`, also
//! the object of benches, which `cargo xtask bench` compiles.

use std::path::{Path, PathBuf};

#[path = "../sensor-ebpf/object/manifest.rs"]
mod manifest;

use manifest::{FOLDER, LOCK, MANIFEST, Manifest, OBJECT, WORKSPACE};

/// Name of the object for benches: beside the one that `SENSOR_EBPF_OBJECT` names, else in target/bpf.
const BENCH: &str = "sensor-ebpf-bench.o";
/// Changed files that an error names.
const NAMED: usize = 5;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SENSOR_EBPF_OBJECT");
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("..");
    let named = std::env::var_os("SENSOR_EBPF_OBJECT").map(PathBuf::from);
    if named.is_none() {
        check(&root);
    }
    let object = named.clone().unwrap_or_else(|| root.join(FOLDER).join(OBJECT));
    embed(&object, "SENSOR_EBPF_OBJECT_PATH", "eBPF object", "restore the file, or run `cargo xtask ebpf`");
    if std::env::var_os("CARGO_FEATURE_BENCH").is_some() {
        let object = named.map_or_else(|| root.join("target/bpf").join(BENCH), |object| object.with_file_name(BENCH));
        let what = "eBPF object for benches (feature `bench`)";
        embed(&object, "SENSOR_EBPF_BENCH_OBJECT_PATH", what, "`cargo xtask bench` compiles it");
    }
}

/// Stops the build if the committed object is not what the sources give: the agent would not do what they say.
fn check(root: &Path) {
    let manifest = match Manifest::read(root) {
        Ok(manifest) => manifest,
        Err(error) => return println!("cargo::error={error}: run `cargo xtask ebpf`, which writes it"),
    };
    let own = [WORKSPACE, LOCK].map(|name| root.join(name));
    let folder = [MANIFEST, OBJECT].map(|name| root.join(FOLDER).join(name));
    let sources = manifest.sources.iter().map(|(path, _)| root.join(path));
    for file in own.into_iter().chain(folder).chain(sources) {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    let changes = manifest.changes(root);
    if changes.is_empty() {
        println!("eBPF object: the committed one, whose sources match ({}, {})", manifest.compiler, manifest.linker);
        return;
    }
    let more = changes.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    println!(
        "cargo::error=the committed eBPF object was compiled from other sources (changed: {}{more}): \
         run `cargo xtask ebpf`, which compiles it anew",
        changes[..changes.len().min(NAMED)].join(", ")
    );
}

/// Says where an object is, in a variable of the compilation.
fn embed(object: &Path, variable: &str, what: &str, remedy: &str) {
    println!("cargo::rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(object) => println!("cargo::rustc-env={variable}={}", object.display()),
        Err(error) => println!("cargo::error=no {what} at {} ({error}): {remedy}", object.display()),
    }
}
