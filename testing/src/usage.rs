//! Memory and CPU of a process, from `/proc` (proc(5)), and percentiles: for benchmarks.

use std::time::Duration;

use anyhow::{Context, Result};

/// Clock ticks a second as `/proc` counts them; 100 on every Linux that RabbitMQ and we run on.
const TICKS: u64 = 100;

/// A reading.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Resident memory in bytes, without what is shared with files.
    pub memory: u64,
    /// User and system time so far.
    pub cpu: Duration,
}

/// Resident memory in bytes, files that are mapped included.
#[derive(Clone, Copy, Debug)]
pub struct Resident {
    /// At this moment.
    pub now: u64,
    /// The most since the start, or since [`forget_peak`].
    pub most: u64,
}

/// Reads a process's resident memory.
pub fn resident(pid: u32) -> Result<Resident> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(Resident { now: kib(&status, "VmRSS:")? * 1024, most: kib(&status, "VmHWM:")? * 1024 })
}

/// Resets [`Resident::most`] (proc(5), `clear_refs`).
pub fn forget_peak(pid: u32) -> Result<()> {
    Ok(std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

fn kib(status: &str, field: &str) -> Result<u64> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("no {field} in /proc/PID/status"))
}

/// Reads a process.
pub fn of(pid: u32) -> Result<Usage> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = kib(&status, "RssAnon:")?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses and may hold spaces; utime and stime are the 14th and 15th.
    let fields: Vec<&str> = stat.rsplit_once(')').context("no name in /proc/PID/stat")?.1.split_whitespace().collect();
    let ticks: u64 =
        fields.get(11..13).context("a short /proc/PID/stat")?.iter().filter_map(|f| f.parse::<u64>().ok()).sum();
    Ok(Usage { memory: kib * 1024, cpu: Duration::from_millis(ticks * 1000 / TICKS) })
}

/// Microseconds of CPU for each of `count` things.
pub fn each(from: Usage, to: Usage, count: usize) -> f64 {
    (to.cpu.saturating_sub(from.cpu)).as_secs_f64() * 1e6 / count as f64
}

/// The value below which this part of the samples lies.
pub fn percentile(sorted: &[Duration], part: f64) -> Duration {
    let index = ((sorted.len() as f64 - 1.0) * part).round() as usize;
    sorted.get(index).copied().unwrap_or_default()
}
