//! The chart as `helm template` renders it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

/// The chart's folder.
pub(crate) const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/wirepost");
/// The release's name and namespace in tests that need no cluster.
pub(crate) const RELEASE: &str = "wirepost";
const NAMESPACE: &str = "wirepost-system";

/// helm: the one that `WIREPOST_TEST_HELM` names, else the cached one, which is built where it is missing (minutes).
fn helm() -> Result<&'static Path> {
    static HELM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let find = || {
        if let Some(named) = std::env::var_os("WIREPOST_TEST_HELM") {
            return Ok(named.into());
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/services/kubernetes-build");
        let built = Command::new(script).arg("helm").output().map_err(|error| format!("{script}: {error}"))?;
        if built.status.success() {
            Ok(PathBuf::from(String::from_utf8_lossy(&built.stdout).trim()).join("helm"))
        } else {
            Err(format!("no helm: {}", String::from_utf8_lossy(&built.stderr)))
        }
    };
    HELM.get_or_init(find).as_deref().map_err(anyhow::Error::msg)
}

/// helm, yet to be run.
pub(crate) fn command(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(helm()?);
    command.args(arguments);
    Ok(command)
}

/// Runs helm with these values (YAML) as its last argument.
pub(crate) fn run(arguments: &[&str], values: &str) -> Result<Output> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(values.as_bytes())?;
    Ok(command(arguments)?.arg("--values").arg(file.path()).output()?)
}

/// The text of all manifests.
pub(crate) fn text(namespace: &str, values: &str) -> Result<String> {
    text_of(RELEASE, namespace, values)
}

fn text_of(release: &str, namespace: &str, values: &str) -> Result<String> {
    let output = run(&["template", release, CHART, "--namespace", namespace], values)?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// All manifests.
pub(crate) fn render(values: &str) -> Result<Rendered> {
    render_in(NAMESPACE, values)
}

/// The same for another namespace.
pub(crate) fn render_in(namespace: &str, values: &str) -> Result<Rendered> {
    render_as(RELEASE, namespace, values)
}

/// The same for another release.
pub(crate) fn render_as(release: &str, namespace: &str, values: &str) -> Result<Rendered> {
    let text = text_of(release, namespace, values)?;
    let documents = serde_yaml::Deserializer::from_str(&text).map(Value::deserialize);
    let objects: Vec<Value> = documents.collect::<Result<_, _>>().with_context(|| text.clone())?;
    Ok(Rendered(objects.into_iter().filter(|object| !object.is_null()).collect()))
}

/// Why helm refuses these values.
pub(crate) fn refusal(values: &str) -> Result<String> {
    match text(NAMESPACE, values) {
        Ok(_) => bail!("taken, and should be refused:\n{values}"),
        Err(error) => Ok(error.to_string()),
    }
}

/// What was rendered.
pub(crate) struct Rendered(pub(crate) Vec<Value>);

impl Rendered {
    /// `Kind/name`.
    pub(crate) fn find(&self, id: &str) -> Option<&Value> {
        self.0.iter().find(|object| self::id(object) == id)
    }

    /// The same, where it has to be.
    pub(crate) fn get(&self, id: &str) -> Result<&Value> {
        self.find(id).with_context(|| format!("no {id} among {:?}", self.ids()))
    }

    /// Of every object, in order.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.0.iter().map(id).collect()
    }

    /// A part of an object: `Kind/name` and a JSON pointer. In the place of its first word, `$pod` is the pod's spec, `$container` its
    /// container, and `$env` the container's environment by name.
    pub(crate) fn at(&self, id: &str, pointer: &str) -> Option<Value> {
        let object = self.find(id)?;
        let pod = "/spec/template/spec";
        if let Some(name) = pointer.strip_prefix("$env/") {
            let env = object.pointer(&format!("{pod}/containers/0/env"))?.as_array()?;
            let variable = env.iter().find(|variable| variable["name"] == name)?;
            return variable.get("value").or_else(|| variable.get("valueFrom")).cloned();
        }
        let pointer = pointer.replace("$pod", pod).replace("$container", &format!("{pod}/containers/0"));
        object.pointer(&pointer).cloned()
    }

    /// Names and templates of everything that makes pods.
    pub(crate) fn pods(&self) -> Vec<(String, Value)> {
        self.0.iter().filter_map(|object| Some((id(object), object.pointer("/spec/template")?.clone()))).collect()
    }
}

/// `Kind/name`.
pub(crate) fn id(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    format!("{}/{}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

/// `a.b.c` = this, as YAML.
pub(crate) fn nested(path: &str, value: &Value) -> Value {
    path.rsplit('.').fold(value.clone(), |inner, key| serde_json::json!({ key: inner }))
}

/// Puts `more` into `values`, key by key.
pub(crate) fn merge(values: &mut Value, more: Value) {
    match (values, more) {
        (Value::Object(values), Value::Object(more)) => {
            for (key, value) in more {
                merge(values.entry(key).or_insert(Value::Null), value);
            }
        }
        (values, more) => *values = more,
    }
}

/// The chart's file.
pub(crate) fn file(name: &str) -> Result<String> {
    let path = format!("{CHART}/{name}");
    std::fs::read_to_string(&path).context(path)
}

/// The chart's own values.
pub(crate) fn defaults() -> Result<Value> {
    Ok(serde_yaml::from_str(&file("values.yaml")?)?)
}

/// Names and contents of the example values.
pub(crate) fn examples() -> Result<Vec<(String, String)>> {
    let mut examples = Vec::new();
    for entry in std::fs::read_dir(format!("{CHART}/examples"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let name = path.file_name().context("no name")?.to_string_lossy().into_owned();
            examples.push((name, std::fs::read_to_string(&path)?));
        }
    }
    anyhow::ensure!(examples.len() > 5, "where are the examples? {examples:?}");
    examples.sort();
    Ok(examples)
}
