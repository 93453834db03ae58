//! The CustomResourceDefinitions, generated from [`crate::business`] and [`crate::class`].

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::CustomResourceExt;
use serde_json::{Value, json};

use crate::{business::WsBusiness, class::WsBusinessClass};

/// The CRD of `WsBusiness` as JSON, simplified for people and for the API server: no `nullable` (an absent field is the only way to say
/// "default"; the API server drops a null), no unsigned formats, and a bound on `metadata.name`, which the rules read.
///
/// A resource of which no operator has reported anything yet has a status that is about no generation: kstatus would take one without any
/// status for done.
pub fn crd() -> Value {
    let mut crd = simplified(&WsBusiness::crd());
    let status = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"];
    status["default"] = json!({"observedGeneration": -1});
    crd
}

/// The CRD of `WsBusinessClass`, in the same way.
pub fn class_crd() -> Value {
    simplified(&WsBusinessClass::crd())
}

#[expect(clippy::expect_used, reason = "the derived types always serialize; a test runs this")]
fn simplified(derived: &CustomResourceDefinition) -> Value {
    let mut crd = serde_json::to_value(derived).expect("a derived CRD serializes to JSON");
    let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    plain(schema);
    schema["properties"]["metadata"] = json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 63}},
    });
    crd
}

/// The schema of the one version of `WsBusiness`.
pub fn schema() -> Value {
    schema_of(crd())
}

/// The schema of the one version of `WsBusinessClass`.
pub fn class_schema() -> Value {
    schema_of(class_crd())
}

fn schema_of(mut crd: Value) -> Value {
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take()
}

/// The files of `crds/`: name and YAML.
pub fn files() -> [(&'static str, String); 2] {
    [
        ("wsbusinesses.wirepost.dev.yaml", yaml(&crd(), "core/src/business.rs")),
        ("wsbusinessclasses.wirepost.dev.yaml", yaml(&class_crd(), "core/src/class.rs")),
    ]
}

fn yaml(crd: &Value, source: &str) -> String {
    let yaml = serde_yaml::to_string(crd).unwrap_or_default();
    format!("# Generated from {source} by `make crds`. Do not edit.\n{yaml}")
}

/// The CRD of `WsBusiness` as a typed object, to apply or to compare with an installed one.
#[expect(clippy::expect_used, reason = "made from this very type and only narrowed; a test runs this")]
pub fn definition() -> CustomResourceDefinition {
    serde_json::from_value(crd()).expect("a CRD made from the type is one")
}

fn plain(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.get("nullable") == Some(&Value::Bool(true)) {
                map.remove("nullable");
            }
            if let Some(Value::String(format)) = map.get("format")
                && format.starts_with("uint")
            {
                map.remove("format");
            }
            map.values_mut().for_each(plain);
        }
        // Bounds come as floats (`1.0`).
        Value::Number(number) => {
            if let Some(float) = number.as_f64()
                && float.fract() == 0.0
                && float.abs() < 1e15
            {
                *schema = Value::from(float as i64);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(plain),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_in_crds_are_what_the_types_say() {
        for (name, yaml) in files() {
            let file = format!("{}/../crds/{name}", env!("CARGO_MANIFEST_DIR"));
            let stored = std::fs::read_to_string(&file).unwrap_or_default();
            assert!(stored == yaml, "{file} is stale: run `make crds`");
        }
    }

    #[test]
    fn the_definition_is_a_definition() {
        assert_eq!(definition().metadata.name.as_deref(), Some("wsbusinesses.wirepost.dev"));
        let class: CustomResourceDefinition = serde_json::from_value(class_crd()).unwrap();
        assert_eq!((class.spec.scope.as_str(), class.spec.names.plural.as_str()), ("Cluster", "wsbusinessclasses"));
    }
}
