//! Any bytes as a model file, and as the side-car of a good graph: the loader says what is wrong or gives a model that
//! scores finite numbers, and never panics.
//!
//! What the runtime does with a hostile graph beyond panics (stack, memory, time) is the isolated check's to bound:
//! this target builds only graphs of a few nodes, in a process whose memory is limited.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sensor::model::Model;
use sensor::model::contract;
use sensor::model::document::Document;
use sensor::model::file::File;
use sensor::model::problem::Problems;

/// Larger graphs cost seconds to build for every batch size.
const MAX_NODES: usize = 12;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(file) = File::decode(bytes) {
        let mut again = Vec::new();
        file.encode(&mut again).expect("memory takes it");
        assert_eq!(File::decode(&again[..]).expect("what was encoded"), file);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        read(Document::from_toml(text));
        // The same text as the value of every key.
        for key in contract::KEYS {
            let key = format!("sensor.{key}");
            read(Document::from_properties([(key.as_str(), text)].into_iter()));
        }
    }
    let Ok(proto) = sensor::model::network::decode(bytes) else { return };
    let properties = proto.metadata_props.iter().map(|entry| (entry.key.as_str(), entry.value.as_str()));
    read(Document::from_properties(properties));
    let graph = proto.graph.as_ref().map_or(0, |graph| graph.node.len() + 100 * usize::from(has_graphs(graph)));
    if graph > MAX_NODES {
        return;
    }
    if let Ok(mut model) = Model::from_bytes(bytes, "fuzz".to_owned()) {
        let mut scores = Vec::new();
        model.score_rows(3, |row, values| values.fill(row as f32), &mut scores).expect("it ran at load");
        assert!(scores.iter().all(|score| (0.0..=1.0).contains(&score.score)), "{scores:?}");
    }
});

fn read(document: Result<Document, sensor::model::problem::Problem>) {
    let mut problems = Problems::default();
    let Some(document) = problems.take(document) else { return };
    let (_, contract) = contract::read(&document, &mut problems);
    assert!(contract.is_some() || !problems.is_empty(), "refused without a reason");
    assert!(problems.list().len() <= 32);
}

fn has_graphs(graph: &tract_onnx::pb::GraphProto) -> bool {
    graph
        .node
        .iter()
        .flat_map(|node| &node.attribute)
        .any(|attribute| attribute.g.is_some() || !attribute.graphs.is_empty())
}
