//! Which test runs when, and what came of it.

use std::collections::{HashMap, VecDeque};
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::load::Load;
use crate::programs::Test;
use crate::record::Record;
use crate::slots::Slots;
use crate::test::{Event, Running};

/// A test that runs longer hangs: it is killed.
const LONGEST: Duration = Duration::from_mins(10);
/// `.ci/run` repeats these lines at its end.
const LEFT_OUT: &str = "LEFT OUT: ";
/// How often that is checked, and whether one more test may start.
const CHECK: Duration = Duration::from_secs(1);

/// What came of all tests.
#[derive(Debug)]
pub(crate) struct Report {
    took: Duration,
    busy: u64,
    outcomes: Vec<Outcome>,
}

#[derive(Debug)]
struct Outcome {
    test: Test,
    took: Duration,
    passed: bool,
    /// It failed in company and passed alone.
    alone: bool,
}

/// Runs them in this order, at most this many at the same time.
pub(crate) fn run(tests: Vec<Test>, slots: &mut Slots, record: &mut Record) -> Result<Report> {
    let (begin, load) = (Instant::now(), Load::now());
    let mut report = Report { took: Duration::ZERO, busy: 0, outcomes: Vec::new() };
    let (sender, events) = channel();
    let mut queue: VecDeque<(usize, Test)> = tests.into_iter().enumerate().collect();
    let mut running: HashMap<usize, Running> = HashMap::new();
    loop {
        while running.values().filter(|test| !test.waiting).count() < slots.now()
            && let Some((number, test)) = queue.pop_front()
        {
            running.insert(number, Running::start(test, number, sender.clone())?);
        }
        if running.is_empty() {
            report.took = begin.elapsed();
            report.busy = Load::now().busy_since(load);
            return Ok(report);
        }
        match events.recv_timeout(CHECK) {
            Ok((number, Event::Ended { passed, output })) => {
                let Some(test) = running.remove(&number) else { continue };
                report.note(&test, passed, &output);
                if passed {
                    record.note(&test.test, test.run_time());
                }
            }
            Ok((number, event)) => {
                if let Some(test) = running.get_mut(&number) {
                    test.set_waiting(matches!(event, Event::Waiting));
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("the channel of events has closed, though a sender is here"),
        }
        for test in running.values().filter(|test| test.run_time() > LONGEST) {
            println!("{} hangs: killed after {LONGEST:?}", test.test);
            Command::new("kill").args(["-KILL", &test.pid.to_string()]).status()?;
        }
    }
}

impl Report {
    fn note(&mut self, test: &Running, passed: bool, output: &str) {
        let took = test.run_time();
        println!("{} {:7.1} s  {}", if passed { "ok    " } else { "FAILED" }, took.as_secs_f64(), test.test);
        if passed {
            // A test that leaves itself out says so.
            for line in output.lines().filter(|line| line.contains(LEFT_OUT)) {
                println!("{line}");
            }
        } else {
            println!("---- output of {}\n{output}----", test.test);
        }
        self.outcomes.push(Outcome { test: test.test.clone(), took, passed, alone: false });
    }

    /// The tests that failed.
    pub(crate) fn failed(&self) -> Vec<Test> {
        self.outcomes.iter().filter(|outcome| !outcome.passed).map(|outcome| outcome.test.clone()).collect()
    }

    /// Takes over what came of the tests that were run again.
    pub(crate) fn repeated(&mut self, again: Self) {
        self.took += again.took;
        for again in again.outcomes {
            if let Some(outcome) = self.outcomes.iter_mut().find(|outcome| outcome.test == again.test) {
                outcome.alone = again.passed;
                outcome.passed = again.passed;
            }
        }
    }

    pub(crate) fn passed(&self) -> bool {
        self.outcomes.iter().all(|outcome| outcome.passed)
    }

    /// For people: what took longest, what failed, how many there were.
    pub(crate) fn print(&self, longest: usize) {
        let mut all: Vec<_> = self.outcomes.iter().collect();
        all.sort_by_key(|outcome| std::cmp::Reverse(outcome.took));
        let sum: Duration = all.iter().map(|outcome| outcome.took).sum();
        println!("\nthe {longest} that took longest:");
        for Outcome { test, took, .. } in all.iter().take(longest) {
            println!("{:7.1} s  {test}", took.as_secs_f64());
        }
        for Outcome { test, .. } in all.iter().filter(|outcome| outcome.alone) {
            println!("FLAKY: {test} failed among others and passed alone");
        }
        let failed: Vec<_> = all.iter().filter(|outcome| !outcome.passed).collect();
        for Outcome { test, .. } in &failed {
            println!("FAILED: {test}");
        }
        println!(
            "{} passed, {} failed, in {:.0} s (one after another: {:.0} s); the processors were {} % busy",
            all.len() - failed.len(),
            failed.len(),
            self.took.as_secs_f64(),
            sum.as_secs_f64(),
            self.busy
        );
    }
}
