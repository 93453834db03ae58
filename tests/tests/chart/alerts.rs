//! The alerts: each can fire, and each has a section in the runbook.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use wirepost_broker::rabbit::{Config, RabbitBroker};
use wirepost_core::contract::condition::ConditionType;
use wirepost_edge::{config::settings::Settings, metrics::Metrics, push::context::HubContext};
use wirepost_runtime::tasks::Supervisor;

use crate::render::{file, render};

const RUNBOOK: &str = include_str!("../../../docs/platform.md");
const METRICS: [&str; 2] = [include_str!("../../../docs/edge.md"), include_str!("../../../docs/operator.md")];
const OPERATOR: &str = include_str!("../../../operator/src/metrics.rs");

fn alerts() -> Result<Vec<Value>> {
    let rendered = render("monitoring: {rules: {enabled: true}}")?;
    let rules = rendered.at("PrometheusRule/wirepost", "/spec/groups/0/rules").context("no rules")?;
    Ok(rules.as_array().context("no list")?.clone())
}

fn text<'a>(alert: &'a Value, pointer: &str) -> Result<&'a str> {
    alert.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no {pointer} in {alert}"))
}

/// Of all alerts: metrics, each with the label that it is asked for (`kind="too_slow"`), if any.
fn asked() -> Result<BTreeSet<(String, Option<String>)>> {
    let mut asked = BTreeSet::new();
    for alert in alerts()? {
        let expr = text(&alert, "/expr")?;
        for rest in expr.split("wirepost_").skip(1) {
            let (name, labels) = rest.split_once('{').with_context(|| format!("a metric without namespace: {expr}"))?;
            let labels = labels.split('}').next().unwrap_or_default();
            let (namespace, label) = labels.split_once(", ").map_or((labels, None), |(n, l)| (n, Some(l.to_owned())));
            ensure!(namespace == "namespace=\"wirepost-system\"", "wirepost_{name} is everybody's: {expr}");
            asked.insert((format!("wirepost_{name}"), label));
        }
    }
    ensure!(asked.len() > 15, "where are the metrics? {asked:?}");
    Ok(asked)
}

#[test]
fn each_alert_has_its_runbook_section_and_each_section_its_alert() -> Result<()> {
    let mut names = BTreeSet::new();
    for alert in alerts()? {
        let name = text(&alert, "/alert")?;
        // As GitHub makes anchors of headings.
        let anchor = format!("docs/platform.md#{}", name.to_lowercase());
        ensure!(text(&alert, "/annotations/runbook_url")?.ends_with(&anchor), "{alert}");
        ensure!(["critical", "warning", "info"].contains(&text(&alert, "/labels/severity")?), "{alert}");
        ensure!(!text(&alert, "/annotations/summary")?.is_empty() && !text(&alert, "/for")?.is_empty(), "{alert}");
        ensure!(names.insert(name.to_owned()), "{name} is there twice");
    }
    let sections: BTreeSet<String> = RUNBOOK
        .lines()
        .filter_map(|line| line.strip_prefix("### Wirepost"))
        .map(|rest| format!("Wirepost{rest}"))
        .collect();
    ensure!(names == sections, "alerts {names:?}\nsections {sections:?}");
    Ok(())
}

/// What woke somebody up is explained with something to look at and something to do.
#[test]
fn each_runbook_section_says_what_it_means_what_to_look_at_and_what_to_do() -> Result<()> {
    for section in RUNBOOK.split("\n### Wirepost").skip(1) {
        let section = section.split("\n## ").next().unwrap_or_default();
        let name = section.lines().next().unwrap_or_default();
        for part in ["**Means.**", "**Look.**", "**Do.**"] {
            ensure!(section.contains(part), "Wirepost{name} has no {part}");
        }
    }
    Ok(())
}

#[test]
fn alerts_ask_for_documented_metrics() -> Result<()> {
    for (metric, _) in asked()? {
        // The tables have the prefix in their heading, and labels behind the name.
        let short = ["wirepost_broker_", "wirepost_operator_"].iter().find_map(|prefix| metric.strip_prefix(prefix));
        let name = short.unwrap_or(&metric);
        let documented = |doc: &&str| doc.contains(&format!("`{name}`")) || doc.contains(&format!("`{name}{{"));
        ensure!(METRICS.iter().any(documented), "{metric} is not documented");
    }
    Ok(())
}

/// Those of an edge, its broker's included; nothing listens where it looks for one.
fn edges_metrics() -> Result<String> {
    let config =
        Config { stream: Some(vec![("127.0.0.1".to_owned(), 1)]), ..Config::new("edge", "amqp://127.0.0.1:1") };
    let supervisor = Supervisor::default();
    let broker = RabbitBroker::start(config, &supervisor)?;
    let mut metrics = Metrics::with_broker(&broker);
    metrics.include(&supervisor);
    // The series of a task exists from its first start.
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let _entered = runtime.enter();
    supervisor.tasks().contained("connection", async {});
    drop(supervisor.attempt("push reader", async {}));
    let metrics = Arc::new(metrics);
    // As `App::start` does: it adds a series for each kind of rejection. And it keeps the broker, whose metrics go with it.
    let _context = HubContext::new(Arc::new(broker), Arc::clone(&metrics), Settings::default());
    Ok(metrics.encode())
}

/// The names under which the operator registers its metrics, as they are exported.
fn operators_metrics() -> Result<BTreeSet<String>> {
    // From the end, so that the first to name a field counts: the struct.
    let lines = OPERATOR.lines().rev().map(|line| line.trim().trim_start_matches("pub "));
    let types: BTreeMap<&str, &str> = lines.filter_map(|line| line.split_once(": ")).collect();
    let mut metrics = BTreeSet::new();
    for call in OPERATOR.split("r.register(").skip(1) {
        let call = call.split(");").next().unwrap_or_default();
        let name = call.split('"').nth(1).context("no name")?;
        let field = call.split(',').rfind(|argument| argument.contains(".clone()")).context("no metric")?;
        let field = field.trim().split('.').next().unwrap_or_default();
        let total = if types.get(field).context(name)?.contains("Counter") { "_total" } else { "" };
        metrics.insert(format!("wirepost_operator_{name}{total}"));
    }
    Ok(metrics)
}

fn is_a_label_of_the_operator(label: &str) -> bool {
    let condition = label.split(", ").next().unwrap_or_default();
    let conditions = ConditionType::ALL.map(|kind| format!("condition=\"{kind}\""));
    (label == "outcome=\"Error\"" && OPERATOR.contains("\n    Error,\n"))
        || conditions.iter().any(|known| condition == known)
}

/// An alert on a metric that is not there never fires.
#[test]
fn the_programs_export_what_alerts_ask_for() -> Result<()> {
    let exported = edges_metrics()?;
    let operators = operators_metrics()?;
    ensure!(operators.contains("wirepost_operator_leader"), "{operators:?}");
    for (metric, label) in asked()? {
        let there = if metric.starts_with("wirepost_broker_") {
            exported.contains(&format!("# TYPE {metric} unknown\n"))
        } else if let Some(tasks) = metric.strip_prefix("wirepost_operator_task_") {
            // Both programs let the supervisor of their tasks register these.
            let name = format!("# TYPE wirepost_edge_task_{} counter\n", tasks.trim_end_matches("_total"));
            exported.contains(&name) && OPERATOR.contains("tasks.register(")
        } else if metric.starts_with("wirepost_operator_") {
            operators.contains(&metric) && label.as_deref().is_none_or(is_a_label_of_the_operator)
        } else if let Some(label) = &label {
            // Also before the first event: the growth from nothing to something is not seen.
            exported.contains(&format!("\n{metric}{{{label}}} 0\n"))
        } else {
            let name = metric.strip_suffix("_total").unwrap_or(&metric);
            let kind = if name == metric { "gauge" } else { "counter" };
            exported.contains(&format!("# TYPE {name} {kind}\n"))
        };
        ensure!(there, "no program exports {metric} {label:?}");
    }
    Ok(())
}

/// What one client can raise by what it sends, and one business by what it pushes: nobody is woken by it. A refusal for want of room counts
/// where there is none, which takes many clients.
#[test]
fn no_critical_alert_asks_for_what_one_client_or_one_business_can_raise() -> Result<()> {
    let theirs =
        ["_gaps_", "_nacks_", "_closes_", "_frames_", "_tokens_", "_rejected_", "_deliveries_", "_refused", "_unknown"];
    let mut critical = 0;
    for alert in alerts()? {
        if text(&alert, "/labels/severity")? != "critical" {
            continue;
        }
        critical += 1;
        let expr = text(&alert, "/expr")?;
        let full =
            expr.contains("kind=\"connection_limit\"") && expr.contains(">= 0.9 * max by (pod) (wirepost_edge_max_");
        ensure!(full || theirs.iter().all(|metric| !expr.contains(metric)), "{expr}");
    }
    ensure!(critical > 4, "where are they?");
    Ok(())
}

/// The rule for prometheus-adapter serves what the autoscaler asks for, from what edges export.
#[test]
fn the_example_of_an_adapter_serves_the_metric_that_the_autoscaler_asks_for() -> Result<()> {
    let adapter: Value = serde_yaml::from_str(&file("examples/manifests/prometheus-adapter.yaml")?)?;
    let series = text(&adapter, "/rules/custom/0/seriesQuery")?.split('{').next().unwrap_or_default();
    let rendered = render(&file("examples/autoscaling-connections.yaml")?)?;
    let asked = rendered.at("HorizontalPodAutoscaler/wirepost-edge", "/spec/metrics/1/pods/metric/name");
    ensure!(asked.as_ref().and_then(Value::as_str) == Some(series), "{asked:?}, and the adapter has {series}");
    ensure!(edges_metrics()?.contains(&format!("# TYPE {series} gauge\n")), "no edge exports {series}");
    Ok(())
}

/// A sum with a metric that is absent (those of streams where they are off) is nothing, and then an alert never fires: `or` is for that.
#[test]
fn no_alert_adds_metrics_up() -> Result<()> {
    for alert in alerts()? {
        let expr = text(&alert, "/expr")?;
        ensure!(!expr.contains(") + "), "{expr}");
        ensure!(!expr.contains("MAX_CONNECTIONS") && !expr.contains("SELECTOR"), "{expr}");
    }
    Ok(())
}
