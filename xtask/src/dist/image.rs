//! The container image, without a container engine: one archive that is an OCI layout with an index for all
//! architectures, and at the same time what `docker load` and `podman load` read (manifest.json).
//!
//! Invariant: blobs are named by their digest, and the archive's bytes depend on what is in the stage alone.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{empty, packages::STABLE_TAR, release::Release, stage, target::Arch};
use crate::cmd;

/// Folders that are there to be mounted over, or written to where the root is not read-only.
const FOLDERS: [&str; 6] = ["run/sensor", "var/lib/sensor", "sys/fs/bpf", "proc", "dev", "tmp"];
/// What of the stage is in the image.
const FILES: [&str; 3] = ["usr/bin/sensor", "usr/share/sensor/sensor.onnx", "etc/sensor/sensor.toml"];
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Makes `sensor-VERSION-image.tar` in `folder` from the stage of each architecture; returns where it is.
///
/// # Errors
/// When tar or gzip fails.
pub(super) fn image(release: &Release, stages: &[(Arch, PathBuf)], work: &Path, folder: &Path) -> Result<PathBuf> {
    let layout = Layout::new(work.join("image"))?;
    let (mut manifests, mut loadable) = (Vec::new(), Vec::new());
    for (arch, stage) in stages {
        let (layer, layer_id) = layer(release, *arch, stage, work)?;
        let layer = layout.add(&fs::read(&layer).context("cannot read the layer")?, LAYER)?;
        let config = layout.add(config(release, *arch, &layer_id)?.to_string().as_bytes(), CONFIG)?;
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
        let mut manifest = layout.add(manifest.to_string().as_bytes(), MANIFEST)?;
        manifest["platform"] = json!({"os": "linux", "architecture": arch.go()});
        manifests.push(manifest);
        // `docker load` takes every image of an archive and cannot choose, so each has a tag of its own; the first,
        // which most machines want, has the plain one, too.
        let mut tags = vec![format!("sensor:{}-{}", release.version, arch.go())];
        if loadable.is_empty() {
            tags.push(format!("sensor:{}", release.version));
        }
        loadable.push(json!({"Config": blob(&config)?, "RepoTags": tags, "Layers": [blob(&layer)?]}));
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let mut index = layout.add(index.to_string().as_bytes(), INDEX)?;
    index["annotations"] = json!({"org.opencontainers.image.ref.name": release.version});
    let top = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [index]});
    layout.write("index.json", &top)?;
    layout.write("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))?;
    layout.write("manifest.json", &Value::from(loadable))?;

    let archive = folder.join(format!("sensor-{}-image.tar", release.version));
    tar(release, &layout.folder, &archive)?;
    Ok(archive)
}

/// The one layer, compressed, and the digest of it before that, by which the configuration names it.
fn layer(release: &Release, arch: Arch, stage: &Path, work: &Path) -> Result<(PathBuf, String)> {
    let root = work.join(format!("layer-{}", arch.go()));
    empty(&root)?;
    for folder in FOLDERS {
        let folder = root.join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    for file in FILES {
        let to = root.join(file);
        fs::create_dir_all(to.parent().context("a file has a folder")?).context("cannot create the layer")?;
        fs::copy(stage.join("common").join(file), &to).with_context(|| format!("cannot write {}", to.display()))?;
    }
    // Whatever the caller's umask is; files have the modes that they have in the stage.
    cmd::output(Command::new("find").arg(&root).args(["-type", "d", "-exec", "chmod", "0755", "{}", "+"]))?;
    cmd::output(Command::new("chmod").arg("1777").arg(root.join("tmp")))?;
    stage::set_times(&root, release.epoch)?;
    let layer = work.join(format!("layer-{}.tar", arch.go()));
    tar(release, &root, &layer)?;
    let id = sha256(&layer)?;
    cmd::output(Command::new("gzip").arg("-9nf").arg(&layer))?;
    Ok((layer.with_extension("tar.gz"), id))
}

fn config(release: &Release, arch: Arch, layer_id: &str) -> Result<Value> {
    let created = release.date("%Y-%m-%dT%H:%M:%SZ")?;
    Ok(json!({
        "created": created,
        "architecture": arch.go(),
        "os": "linux",
        "config": {
            "Entrypoint": ["/usr/bin/sensor"],
            "Cmd": ["run", "--config", "/etc/sensor/sensor.toml"],
            "Env": ["PATH=/usr/bin"],
            "WorkingDir": "/",
            "StopSignal": "SIGTERM",
            "Labels": {
                "org.opencontainers.image.title": "sensor",
                "org.opencontainers.image.version": release.version,
                "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_id}")]},
        "history": [{"created": created, "created_by": "cargo xtask dist"}],
    }))
}

/// A folder in the form of the OCI image layout.
struct Layout {
    folder: PathBuf,
}

impl Layout {
    fn new(folder: PathBuf) -> Result<Self> {
        empty(&folder)?;
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("cannot create {}", blobs.display()))?;
        Ok(Self { folder })
    }

    /// Adds a blob; returns its descriptor.
    fn add(&self, bytes: &[u8], media_type: &str) -> Result<Value> {
        let new = self.folder.join("new");
        fs::write(&new, bytes).with_context(|| format!("cannot write {}", new.display()))?;
        let digest = sha256(&new)?;
        fs::rename(&new, self.folder.join("blobs/sha256").join(&digest)).context("cannot name a blob")?;
        Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()}))
    }

    fn write(&self, name: &str, value: &Value) -> Result<()> {
        fs::write(self.folder.join(name), value.to_string()).with_context(|| format!("cannot write {name}"))
    }
}

/// The path in the archive of what a descriptor names.
fn blob(descriptor: &Value) -> Result<String> {
    let digest = descriptor["digest"].as_str().context("a descriptor has a digest")?;
    Ok(format!("blobs/{}", digest.replace(':', "/")))
}

fn tar(release: &Release, folder: &Path, archive: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--file"]).arg(archive).args(STABLE_TAR).arg(format!("--mtime=@{}", release.epoch));
    // By name, as some readers do not take a "./" off. Blobs are written under the caller's umask.
    tar.arg("--mode=u+rw,go-w").arg("-C").arg(folder).args(stage::names(folder)?);
    cmd::output(&mut tar).map(drop)
}

/// SHA-256 of a file, hexadecimal.
pub(super) fn sha256(file: &Path) -> Result<String> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{env, process};

    /// An image of both architectures, made in a folder of this name; its archive.
    fn made(name: &str) -> PathBuf {
        let work = env::temp_dir().join(format!("sensor-xtask-image-{}-{name}", process::id()));
        empty(&work).unwrap();
        let stages = Arch::ALL.map(|arch| {
            let stage = work.join(arch.kernel());
            for file in FILES {
                let file = stage.join("common").join(file);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(&file, format!("{arch:?}")).unwrap();
            }
            (arch, stage)
        });
        let release = Release { version: "1.2.3", epoch: 1_000_000_000 };
        image(&release, &stages, &work.join("work"), &work).unwrap()
    }

    #[test]
    fn two_folders_give_the_same_image_and_each_digest_in_it_is_right() {
        let (one, two) = (made("one"), made("a-longer-name"));
        assert_eq!(sha256(&one).unwrap(), sha256(&two).unwrap());

        let unpacked = one.with_extension("unpacked");
        empty(&unpacked).unwrap();
        cmd::output(Command::new("tar").arg("-xf").arg(&one).arg("-C").arg(&unpacked)).unwrap();
        let read = |path: &str| -> Value { serde_json::from_slice(&fs::read(unpacked.join(path)).unwrap()).unwrap() };
        let follow = |descriptor: &Value| -> Value {
            let path = blob(descriptor).unwrap();
            let bytes = fs::read(unpacked.join(&path)).unwrap();
            assert_eq!(descriptor["size"], bytes.len());
            assert!(path.ends_with(&sha256(&unpacked.join(&path)).unwrap()), "{path}");
            serde_json::from_slice(&bytes).unwrap_or_default()
        };
        let index = follow(&read("index.json")["manifests"][0]);
        for (arch, manifest) in Arch::ALL.into_iter().zip(index["manifests"].as_array().unwrap()) {
            assert_eq!(manifest["platform"]["architecture"], arch.go());
            let manifest = follow(manifest);
            assert_eq!(follow(&manifest["config"])["architecture"], arch.go());
            assert_eq!(follow(&manifest["layers"][0]), Value::Null);
        }
        // What `docker load` reads names the same blobs.
        assert_eq!(read("manifest.json")[1]["RepoTags"][0], "sensor:1.2.3-arm64");
        for work in [one, two] {
            fs::remove_dir_all(work.parent().unwrap()).unwrap();
        }
    }
}
