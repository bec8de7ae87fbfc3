//! `models/contract.schema.json` says what the code accepts: the shipped model follows it, and its keys are the code's.

use serde_json::Value;

use super::contract::KEYS;
use super::document::Document;
use super::network;

const SCHEMA: &str = include_str!("../../../models/contract.schema.json");
const SHIPPED: &[u8] = include_bytes!("../../../models/sensor.onnx");

/// The part of JSON Schema 2020-12 that the schema uses; `at` names the value in errors.
fn validate(schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let Some(rules) = schema.as_object() else { return Err(format!("{at}: the schema is no object")) };
    for (rule, wanted) in rules {
        let number = || value.as_f64().zip(wanted.as_f64());
        let length = || value.as_array().map(Vec::len).zip(wanted.as_u64());
        let holds = match rule.as_str() {
            "$schema" | "title" | "description" => true,
            "type" => match wanted {
                Value::Array(types) => types.iter().any(|one| is_type(value, one)),
                one => is_type(value, one),
            },
            "enum" => wanted.as_array().is_some_and(|all| all.contains(value)),
            "minimum" => number().is_none_or(|(value, least)| value >= least),
            "maximum" => number().is_none_or(|(value, most)| value <= most),
            "exclusiveMinimum" => number().is_none_or(|(value, least)| value > least),
            "minItems" => length().is_none_or(|(length, least)| length as u64 >= least),
            "maxItems" => length().is_none_or(|(length, most)| length as u64 <= most),
            "uniqueItems" => value
                .as_array()
                .is_none_or(|items| items.iter().enumerate().all(|(number, item)| !items[..number].contains(item))),
            // Three patterns of single characters, checked by hand: a set and a length.
            "pattern" => value.as_str().is_none_or(|text| matches_pattern(wanted.as_str().unwrap_or_default(), text)),
            "required" => value.as_object().is_none_or(|object| {
                wanted
                    .as_array()
                    .is_some_and(|keys| keys.iter().filter_map(Value::as_str).all(|k| object.contains_key(k)))
            }),
            "additionalProperties" => {
                value.as_object().is_none_or(|object| object.keys().all(|key| schema["properties"].get(key).is_some()))
            }
            "properties" => {
                for (key, schema) in wanted.as_object().into_iter().flatten() {
                    if let Some(value) = value.get(key) {
                        validate(schema, value, &format!("{at}.{key}"))?;
                    }
                }
                true
            }
            "items" => {
                for (number, item) in value.as_array().into_iter().flatten().enumerate() {
                    validate(wanted, item, &format!("{at}[{number}]"))?;
                }
                true
            }
            other => return Err(format!("{at}: this test does not know the rule {other:?}")),
        };
        if !holds {
            return Err(format!("{at}: {rule} {wanted} does not hold"));
        }
    }
    Ok(())
}

fn is_type(value: &Value, kind: &Value) -> bool {
    match kind.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("number") => value.is_number(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("null") => value.is_null(),
        _ => false,
    }
}

fn matches_pattern(pattern: &str, text: &str) -> bool {
    let all = |set: fn(u8) -> bool| text.bytes().all(set);
    match pattern {
        "^[A-Za-z0-9._-]{1,64}$" => {
            (1..=64).contains(&text.len()) && all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c))
        }
        "^[0-9a-f]{16}$" => text.len() == 16 && all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')),
        "^[a-z0-9_]+$" => !text.is_empty() && all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'z' | b'_')),
        _ => false,
    }
}

fn shipped() -> Value {
    let proto = network::decode(SHIPPED).expect("the shipped model");
    let properties = proto.metadata_props.iter().map(|entry| (entry.key.as_str(), entry.value.as_str()));
    Document::from_properties(properties).expect("small").into_json()
}

#[test]
fn the_shipped_model_follows_the_schema() {
    let schema: Value = serde_json::from_str(SCHEMA).expect("JSON");
    let good = shipped();
    validate(&schema, &good, "contract").expect("valid");
    for (key, value, expected) in [
        ("kind", "oracle".into(), "contract.kind: enum"),
        ("threshold", 1.5.into(), "contract.threshold: maximum"),
        ("threshold", 0.into(), "contract.threshold: exclusiveMinimum"),
        ("min_packets", 1.5.into(), "contract.min_packets: type"),
        ("name", "a b".into(), "contract.name: pattern"),
        ("labels", Value::Array(vec!["one".into()]), "contract.labels: minItems"),
        ("treshold", 1.into(), "contract: additionalProperties"),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        let error = validate(&schema, &bad, "contract").expect_err(key);
        assert!(error.starts_with(expected), "{error}");
    }
    let mut bad = good;
    bad.as_object_mut().expect("an object").remove("features");
    assert!(validate(&schema, &bad, "contract").expect_err("incomplete").contains("required"));
}

#[test]
fn the_schema_has_the_keys_of_the_code() {
    let schema: Value = serde_json::from_str(SCHEMA).expect("JSON");
    let mut keys: Vec<_> = schema["properties"].as_object().expect("an object").keys().map(String::as_str).collect();
    let mut own = KEYS;
    keys.sort_unstable();
    own.sort_unstable();
    assert_eq!(keys, own);
}
