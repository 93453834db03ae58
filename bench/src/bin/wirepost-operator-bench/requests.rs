//! Requests that the API server answered, by its own count, and what the operator counts itself.

use std::{collections::BTreeMap, fmt};

use anyhow::Result;
use tokio_tungstenite::tungstenite::http::Request;
use wirepost_testing::{cluster::Cluster, operator::Operator};

/// Numbers by what they count.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts(BTreeMap<String, f64>);

impl Counts {
    /// `apiserver_request_total`, by verb and resource. Only of what a client asked for: the API server talks to itself as well.
    pub(crate) async fn of_api_server(cluster: &Cluster) -> Result<Self> {
        let text = cluster.client.request_text(Request::get("/metrics").body(Vec::new())?).await?;
        let mut counts = Self::default();
        for (labels, value) in series(&text, "apiserver_request_total") {
            let verb = labels.get("verb").copied().unwrap_or_default();
            let resource = match (labels.get("resource").copied(), labels.get("subresource").copied()) {
                (Some(resource), Some("")) => resource.to_owned(),
                (Some(resource), Some(subresource)) => format!("{resource}/{subresource}"),
                _ => continue,
            };
            let ours =
                ["wsbusinesses", "configmaps", "secrets", "events", "endpointslices", "leases", "customresource"];
            if !ours.iter().any(|ours| resource.starts_with(ours)) {
                continue;
            }
            let dry = if labels.get("dry_run").is_some_and(|dry| !dry.is_empty()) { " (dry run)" } else { "" };
            *counts.0.entry(format!("{verb} {resource}{dry}")).or_default() += value;
        }
        Ok(counts)
    }

    /// Its counters.
    pub(crate) async fn of_operator(operator: &Operator) -> Result<Self> {
        let (_, text) = operator.admin("/metrics").await?;
        let mut counts = Self::default();
        for name in [
            "api_writes_total",
            "broker_changes_total",
            "broker_look_seconds_count",
            "broker_calls_total",
            "reconciles_total",
        ] {
            for (labels, value) in series(&text, &format!("wirepost_operator_{name}")) {
                let labels: Vec<&str> = labels.into_values().collect();
                *counts.0.entry(format!("{name} {}", labels.join(" ")).trim_end().to_owned()).or_default() += value;
            }
        }
        Ok(counts)
    }

    /// What has been added since.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let added =
            self.0.iter().map(|(what, now)| (what.clone(), now - before.0.get(what).copied().unwrap_or_default()));
        Self(added.filter(|(_, added)| *added > 0.0).collect())
    }

    /// For each of this many.
    pub(crate) fn each(&self, of: f64) -> Self {
        Self(self.0.iter().map(|(what, n)| (what.clone(), n / of)).collect())
    }

    /// All that begin so.
    pub(crate) fn sum(&self, of: &str) -> f64 {
        self.0.iter().filter(|(what, _)| what.starts_with(of)).map(|(_, n)| n).sum()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> =
            self.0.iter().map(|(what, n)| format!("{what} {}", (n * 100.0).round() / 100.0)).collect();
        f.write_str(if texts.is_empty() { "nothing".to_owned() } else { texts.join(", ") }.as_str())
    }
}

/// Labels and value of each series of this name.
fn series<'t>(text: &'t str, name: &str) -> Vec<(BTreeMap<&'t str, &'t str>, f64)> {
    text.lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.split_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            let labels = labels.split(',').filter_map(|label| {
                let (key, value) = label.split_once('=')?;
                Some((key, value.trim_matches('"')))
            });
            Some((labels.collect(), value.trim().parse().ok()?))
        })
        .collect()
}
