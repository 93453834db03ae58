//! The table: medians with the smallest and the largest value, and ratios within a repetition.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

use anyhow::{Context, Result};

use crate::{
    peer::Kind,
    scenario::{Figure, Figures, Scenario},
};

/// Figures by scenario and server, one set a repetition.
pub(crate) type Results = BTreeMap<(Scenario, Kind), Vec<Option<Figures>>>;

const MARKERS: (&str, &str) = ("<!-- bench-peers: written by `make bench-peers` -->", "<!-- bench-peers: end -->");
/// Each scenario's line: what is measured.
fn title(scenario: Scenario) -> &'static str {
    match scenario {
        Scenario::Connect => "15,000 idle connections",
        Scenario::FanoutPaced => "fanout, 1,000 clients, 20 pushes a second",
        Scenario::FanoutFull => "fanout, 1,000 clients, full rate",
        Scenario::Unicast => "unicast, 5,000 clients",
        Scenario::UnicastHttp => "unicast by HTTP, batches of 10",
        Scenario::Up { window: 1 } => "client to server, 1,000 × window 1",
        Scenario::Up { .. } => "client to server, 1,000 × window 16",
    }
}

fn name(scenario: Scenario, figure: Figure) -> &'static str {
    match (scenario, figure) {
        (_, Figure::Memory) => "KiB a connection",
        (Scenario::Connect, Figure::Rate) => "connects/s",
        (Scenario::Connect, _) => "CPU us a connect",
        (Scenario::Up { .. }, Figure::Rate) => "acks/s",
        (Scenario::Up { .. }, Figure::Cpu) => "CPU us an ack",
        (_, Figure::Rate) => "deliveries/s",
        (_, Figure::P50) => "p50 ms",
        (_, Figure::P99) => "p99 ms",
        (_, Figure::Nacks) => "nacks",
        (_, Figure::Cpu | Figure::CpuBehind) => "CPU us a delivery",
    }
}

/// Smallest, median and largest.
fn spread(mut values: Vec<f64>) -> Option<(f64, f64, f64)> {
    values.sort_unstable_by(f64::total_cmp);
    Some((*values.first()?, *values.get(values.len() / 2)?, *values.last()?))
}

fn number(value: f64) -> String {
    let thousands = |value: f64| format!("{:.1}k", value / 1e3);
    match value {
        v if v >= 100_000.0 => format!("{:.0}k", v / 1e3),
        v if v >= 1_000.0 => thousands(v),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 || v == 0.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// `median (smallest-largest)`.
fn cell(values: Vec<f64>, show: fn(f64) -> String) -> String {
    match spread(values) {
        None => String::new(),
        Some((least, median, most)) if show(least) == show(most) => show(median),
        Some((least, median, most)) => format!("{} ({}-{})", show(median), show(least), show(most)),
    }
}

fn ratio(value: f64) -> String {
    format!("{value:.2}")
}

/// The figure of each repetition; with what is behind the server where `behind`.
fn values(results: &Results, scenario: Scenario, kind: Kind, figure: Figure, behind: bool) -> Vec<Option<f64>> {
    let runs = results.get(&(scenario, kind)).map_or(&[][..], Vec::as_slice);
    let value = |figures: &Figures| {
        let more = if behind { figures.get(&Figure::CpuBehind).copied().unwrap_or_default() } else { 0.0 };
        Some(figures.get(&figure)? + more)
    };
    runs.iter().map(|run| run.as_ref().and_then(value)).collect()
}

fn ratios(over: Vec<Option<f64>>, under: Vec<Option<f64>>) -> Vec<f64> {
    over.into_iter().zip(under).filter_map(|(over, under)| Some(over? / under.filter(|under| *under > 0.0)?)).collect()
}

/// The table as Markdown.
pub(crate) fn table(results: &Results) -> String {
    let mut text = String::from(
        "| | | Centrifugo, memory | Centrifugo (+ Redis) | wirepost (+ RabbitMQ) | ratio to memory | ratio of sums to Redis |\n|---|---|---|---|---|---|---|\n",
    );
    let scenarios: std::collections::BTreeSet<_> = results.keys().map(|(scenario, _)| *scenario).collect();
    for scenario in scenarios {
        let mut heading = title(scenario);
        for figure in [Figure::Memory, Figure::Rate, Figure::Cpu, Figure::P50, Figure::P99, Figure::Nacks] {
            let flat = |kind, figure| -> Vec<f64> {
                values(results, scenario, kind, figure, false).into_iter().flatten().collect()
            };
            let is_cpu = figure == Figure::Cpu;
            let of = |kind| {
                let own = cell(flat(kind, figure), number);
                let behind = if is_cpu { cell(flat(kind, Figure::CpuBehind), number) } else { String::new() };
                if behind.is_empty() { own } else { format!("{own} + {behind}") }
            };
            if flat(Kind::Wirepost, figure).iter().all(|value| *value == 0.0) {
                continue;
            }
            let all = |kind, behind| values(results, scenario, kind, figure, behind);
            let to_memory = ratios(all(Kind::Wirepost, false), all(Kind::Centrifugo, false));
            let to_redis = ratios(all(Kind::Wirepost, is_cpu), all(Kind::CentrifugoRedis, is_cpu));
            let _ = writeln!(
                text,
                "| {heading} | {} | {} | {} | {} | {} | {} |",
                name(scenario, figure),
                of(Kind::Centrifugo),
                of(Kind::CentrifugoRedis),
                of(Kind::Wirepost),
                cell(to_memory, ratio),
                cell(to_redis, ratio),
            );
            heading = "";
        }
    }
    text
}

/// Writes the section between the markers of a document.
pub(crate) fn write(document: &Path, section: &str) -> Result<()> {
    let text = fs::read_to_string(document).with_context(|| document.display().to_string())?;
    let (before, rest) = text.split_once(MARKERS.0).with_context(|| format!("no {}", MARKERS.0))?;
    let (_, after) = rest.split_once(MARKERS.1).with_context(|| format!("no {}", MARKERS.1))?;
    fs::write(document, format!("{before}{}\n\n{section}\n{}{after}", MARKERS.0, MARKERS.1))?;
    Ok(())
}
