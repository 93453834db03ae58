//! The alerts: each can fire, and each has a section in the runbook.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::render::render;

const RUNBOOK: &str = include_str!("../../../docs/platform.md");
const METRICS: [&str; 2] = [include_str!("../../../docs/platform-guide.md"), include_str!("../../../docs/operator.md")];

fn alerts() -> Result<Vec<Value>> {
    let rendered = render("monitoring: {rules: {enabled: true}}")?;
    let rules = rendered.at("PrometheusRule/wirepost", "/spec/groups/0/rules").context("no rules")?;
    Ok(rules.as_array().context("no list")?.clone())
}

fn text<'a>(alert: &'a Value, pointer: &str) -> Result<&'a str> {
    alert.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no {pointer} in {alert}"))
}

#[test]
fn each_alert_has_its_runbook_section_and_each_section_its_alert() -> Result<()> {
    let mut names = BTreeSet::new();
    for alert in alerts()? {
        let name = text(&alert, "/alert")?;
        // As GitHub makes anchors of headings.
        let anchor = format!("docs/platform.md#{}", name.to_lowercase());
        ensure!(text(&alert, "/annotations/runbook_url")?.ends_with(&anchor), "{alert}");
        ensure!(["critical", "warning"].contains(&text(&alert, "/labels/severity")?), "{alert}");
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

/// An alert on a metric that is not there never fires.
#[test]
fn alerts_ask_for_documented_metrics_of_this_installation() -> Result<()> {
    for alert in alerts()? {
        let expr = text(&alert, "/expr")?;
        let words = expr.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let metrics: Vec<_> = words.filter(|word| word.starts_with("wirepost_")).collect();
        ensure!(!metrics.is_empty(), "{expr}");
        for metric in metrics {
            // The tables have the prefix in their heading, and labels behind the name.
            let short =
                ["wirepost_broker_", "wirepost_operator_"].iter().find_map(|prefix| metric.strip_prefix(prefix));
            let name = short.unwrap_or(metric);
            let documented = |doc: &&str| doc.contains(&format!("`{name}`")) || doc.contains(&format!("`{name}{{"));
            ensure!(METRICS.iter().any(documented), "{metric} is not documented");
            ensure!(
                expr.contains(&format!("{metric}{{namespace=\"wirepost-system\"")),
                "{metric} is everybody's: {expr}"
            );
        }
        ensure!(!expr.contains("MAX_CONNECTIONS") && !expr.contains("SELECTOR"), "{expr}");
    }
    Ok(())
}
