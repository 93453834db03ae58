//! How busy the machine is, from `/proc/stat` (proc(5)): whether more tests at the same time would make a run shorter.

/// Processor time so far, in ticks of all cores.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    idle: u64,
    all: u64,
}

impl Load {
    /// Now; nothing, where there is no such file.
    pub(crate) fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = stat.lines().next().unwrap_or_default();
        // user, nice, system, idle, iowait, irq, softirq, steal; what follows is part of user and nice.
        let ticks: Vec<u64> = line.split_whitespace().skip(1).take(8).filter_map(|field| field.parse().ok()).collect();
        let idle = ticks.iter().skip(3).take(2).sum();
        Self { idle, all: ticks.iter().sum() }
    }

    /// The busy part since then, in percent.
    pub(crate) fn busy_since(self, then: Self) -> u64 {
        let all = self.all.saturating_sub(then.all).max(1);
        100 - (self.idle.saturating_sub(then.idle) * 100 / all).min(100)
    }
}
