//! Runs the tests of all test programs at the same time, each in a process of its own, and reports how long they took.
//!
//! Most of these tests wait: for a broker, for a timeout, for Kubernetes. `cargo test` runs one program after another, and each of
//! them waits for its last test; it does not say how long a test took either. Here one pool of slots serves all programs, the test
//! that took longest the last time starts first, and a test that waits for a permit ([`wirepost_testing::permits`]) gives its slot
//! away until it has it. A whole run took 27 minutes with `cargo test` on two cores.

mod load;
mod programs;
mod record;
mod schedule;
mod slots;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use slots::Slots;

/// Failed tests that are repeated at most.
const MAX_REPEATED: usize = 10;
/// What the report lists.
const LONGEST: usize = 10;

/// Runs integration tests, many at the same time. The servers that they need must run: see tests/README.md.
#[derive(Parser)]
struct Args {
    /// Run only these test programs, such as `edge`; all by default. May be repeated.
    #[arg(long = "test", default_value = "*")]
    programs: Vec<String>,
    /// Run the tests too that are `#[ignore]`d: those that need a cluster with nodes.
    #[arg(long)]
    ignored: bool,
    /// Tests that run at the same time, not counting those that wait for a permit; by default as many as keep the processors busy.
    #[arg(long)]
    slots: Option<usize>,
    /// Run only tests whose name contains all of these texts. A name is `program module::test`.
    filters: Vec<String>,
}

fn main() -> Result<ExitCode> {
    let Args { programs, ignored, slots, filters } = Args::parse();
    let mut slots = slots.map_or_else(Slots::by_load, Slots::fixed);
    let programs = programs::find(&programs)?;
    let mut record = record::Record::beside(&programs)?;
    let mut tests = Vec::new();
    for program in &programs {
        tests.extend(program.tests(ignored)?);
    }
    tests.retain(|test| filters.iter().all(|filter| test.to_string().contains(filter)));
    // Tests that were never timed first: one of them may take long.
    tests.sort_by_key(|test| std::cmp::Reverse(record.last(test)));
    anyhow::ensure!(!tests.is_empty(), "no test has {filters:?} in its name");
    println!("{} tests of {} programs, {} at the same time", tests.len(), programs.len(), slots.bounds());
    let mut report = schedule::run(tests, &mut slots, &mut record)?;
    // A broker that many tests load at the same time can't keep deadlines of two seconds: a test that failed among others is run again alone.
    // More failures than these are no matter of load.
    let failed = report.failed();
    if (1..=MAX_REPEATED).contains(&failed.len()) {
        println!("\n{} failed in company and are repeated, one after another", failed.len());
        report.repeated(schedule::run(failed, &mut Slots::fixed(1), &mut record)?);
    }
    record.save()?;
    report.print(LONGEST);
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
