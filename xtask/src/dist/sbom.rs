//! The bill of materials (CycloneDX 1.5, JSON): what is linked into the binaries, from where, under which licence.
//!
//! Written here because cargo-cyclonedx cannot write the same twice (its issue 514): it puts the time of the clock and
//! a random number into what it writes. `cargo` itself knows all that is in here.

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    crates::{Crates, Key, Linked},
    release::Release,
};

/// The document.
///
/// # Errors
/// When the release's time cannot be written.
pub(super) fn document(crates: &Crates, release: &Release) -> Result<String> {
    let agent = ("sensor".to_owned(), release.version.to_owned());
    let components: Vec<Value> =
        crates.iter().filter(|(key, _)| **key != agent).map(|(key, linked)| component(key, linked)).collect();
    let edges: Vec<Value> = crates
        .iter()
        .map(|(key, linked)| {
            let on: Vec<String> = linked.dependencies.iter().map(purl).collect();
            json!({"ref": purl(key), "dependsOn": on})
        })
        .collect();
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": release.date("%Y-%m-%dT%H:%M:%SZ")?,
            "component": {
                "type": "application",
                "bom-ref": purl(&agent),
                "name": agent.0,
                "version": agent.1,
                "licenses": [{"expression": "MIT OR Apache-2.0"}],
                "purl": purl(&agent),
            },
        },
        "components": components,
        "dependencies": edges,
    });
    Ok(format!("{document:#}\n"))
}

fn component(key: &Key, linked: &Linked) -> Value {
    let mut component = json!({
        "type": "library",
        "bom-ref": purl(key),
        "name": key.0,
        "version": key.1,
        "licenses": [{"expression": linked.license}],
        "purl": purl(key),
    });
    if let Some(checksum) = &linked.checksum {
        component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    if let Some(repository) = &linked.repository {
        component["externalReferences"] = json!([{"type": "vcs", "url": repository}]);
    }
    component
}

/// The crate's package URL. A version may have a `+`, which a URL must not have as it is.
fn purl((name, version): &Key) -> String {
    format!("pkg:cargo/{name}@{}", version.replace('+', "%2B"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_crate_is_listed_once_with_its_edges() {
        let key = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        let linked = |checksum: Option<&str>, on: Vec<Key>| Linked {
            license: "MIT".to_owned(),
            repository: None,
            folder: "/".into(),
            checksum: checksum.map(str::to_owned),
            dependencies: BTreeSet::from_iter(on),
        };
        let (agent, zstd) = (key("sensor", "1.0.0"), key("zstd-sys", "2.0.0+1.5"));
        let crates =
            Crates::from([(agent.clone(), linked(None, vec![zstd.clone()])), (zstd, linked(Some("ab"), vec![]))]);
        let document = document(&crates, &Release { version: "1.0.0", epoch: 0 }).unwrap();
        let document: Value = serde_json::from_str(&document).unwrap();
        assert_eq!(document["components"].as_array().unwrap().len(), 1);
        assert_eq!(document["components"][0]["hashes"][0]["content"], "ab");
        assert_eq!(document["dependencies"][0]["dependsOn"][0], "pkg:cargo/zstd-sys@2.0.0%2B1.5");
        assert_eq!(document["metadata"]["timestamp"], "1970-01-01T00:00:00Z");
    }
}
