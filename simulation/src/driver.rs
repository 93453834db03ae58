//! Runs each seed in a process of its own, whose clock and chance are simulated (`world.c`).

use std::{
    collections::VecDeque,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::{Args, declaration, mutations, scenario};

const WORLD: &str = include_str!("world.c");
/// What a run trusts: it reads one certificate, and not the hundreds of the machine.
const CA: &str = include_str!("../../testing/ca.pem");
/// A seed that takes longer does not end.
const LONGEST: Duration = Duration::from_mins(1);
/// Every so many seeds one is run twice, and must be the same twice.
const AGAIN: u64 = 100;
const CA_FILE: &str = "ca.pem";
const SEED: &str = "WIREPOST_SIMULATION_SEED";
/// Seeds that are run without a seeded bug before one is looked for.
const CONTROL: u64 = 40;
const DAY: u64 = 24 * 3600;

/// A range of seeds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seeds {
    first: u64,
    last: u64,
}

impl FromStr for Seeds {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.split_once("..") {
            Some((first, last)) => Self { first: first.parse()?, last: last.parse()? },
            None => Self { first: 1, last: text.parse()? },
        })
    }
}

/// What a process said.
struct Told {
    /// Its last line, if it came to its end.
    trace: Option<String>,
    lines: Vec<String>,
    failed: bool,
}

/// How seeds are run.
struct Runner {
    /// The simulated clock and chance.
    world: PathBuf,
    program: PathBuf,
    /// Which seeded bug is on.
    bug: Option<usize>,
    jobs: usize,
    folder: TempDir,
}

/// Runs seeds, and reports those that fail.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let runner = Runner::new(args)?;
    if let Some(seed) = args.seed {
        let level = std::env::var("RUST_LOG").unwrap_or_else(|_| "info,wirepost_stream=debug".to_owned());
        let status = runner.command(seed).env("RUST_LOG", level).status()?;
        println!("seed {seed}: {status}");
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let today = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / DAY;
    // Far from the fixed ones.
    let of_the_day = (0..args.of_the_day).map(|number| today * 1_000_000_000 + number);
    let seeds: VecDeque<u64> = (args.seeds.first..=args.seeds.last).chain(of_the_day).collect();
    let (count, began) = (seeds.len(), Instant::now());
    let told = |seed, problem: &str| println!("{problem}\n  replay: make simulate SEED={seed}\n");
    let failed = runner.search(seeds, usize::MAX, told);
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    println!(
        "{count} seeds in {:.0} s, {:.0} a minute on each of {} cores; failed: {failed:?}",
        minutes * 60.0,
        count as f64 / minutes / runner.jobs as f64,
        runner.jobs
    );
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Looks for each seeded bug.
pub(crate) fn mutations(args: &Args) -> Result<ExitCode> {
    let repository = std::env::current_dir()?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository.join("target"), PathBuf::from);
    let copy = target.join("mutations");
    let mut runner = Runner::new(args)?;
    mutations::apply(&repository, &copy)?;
    // The next build of the simulation replaces it.
    let program = runner.folder.path().join("wirepost-simulate");
    fs::copy(mutations::build(&copy, &target)?, &program)?;
    runner.program = program;
    // None of them is on: what is found then is no seeded bug.
    let control = runner.search((1..=CONTROL).collect(), 1, |_, problem| println!("{problem}\n"));
    ensure!(control.is_empty(), "without a seeded bug seed {control:?} fails");
    let mut missed = Vec::new();
    println!("| seeded bug | seed | what gave it away |\n|---|---|---|");
    for (number, mutation) in mutations::ALL.iter().enumerate() {
        if !mutation.name.contains(args.bug.as_deref().unwrap_or_default()) {
            continue;
        }
        runner.bug = Some(number);
        let first = Mutex::new(None);
        let keep = |seed, problem: &str| {
            let mut first = lock(&first);
            if first.as_ref().is_none_or(|(before, _)| seed < *before) {
                *first = Some((seed, problem.lines().nth(1).unwrap_or(problem).trim().to_owned()));
            }
        };
        runner.search((args.seeds.first..=args.seeds.last).collect(), 1, keep);
        if let Some((seed, why)) = first.into_inner().unwrap_or_else(PoisonError::into_inner) {
            println!("| {} | {seed} | {why} |", mutation.name);
        } else {
            println!("| {} | not found | |", mutation.name);
            missed.push(mutation.name);
        }
    }
    println!("\nnot found: {missed:#?}");
    Ok(if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Runner {
    fn new(args: &Args) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join(CA_FILE), CA)?;
        declaration::write_all(folder.path())?;
        Ok(Self {
            world: compile(folder.path())?,
            program: std::env::current_exe()?,
            bug: None,
            jobs: args.jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, Into::into)),
            folder,
        })
    }

    /// Runs these seeds, until so many have failed; those that did. `told`: what was wrong with one.
    fn search(&self, seeds: VecDeque<u64>, most: usize, told: impl Fn(u64, &str) + Sync) -> Vec<u64> {
        let (seeds, failed) = (Mutex::new(seeds), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for _ in 0..self.jobs {
                scope.spawn(|| {
                    while lock(&failed).len() < most {
                        let Some(seed) = lock(&seeds).pop_front() else { return };
                        if let Some(problem) = self.problem(seed) {
                            told(seed, &problem);
                            lock(&failed).push(seed);
                        }
                    }
                });
            }
        });
        let mut failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        failed.sort_unstable();
        failed
    }

    /// What is wrong with a seed.
    fn problem(&self, seed: u64) -> Option<String> {
        let tell = |told: Result<Told>| match told {
            Ok(told) if !told.failed => Ok(told.trace),
            Ok(told) => Err(format!("seed {seed} failed:\n  {}", told.lines.join("\n  "))),
            Err(error) => Err(format!("seed {seed}: {error:#}")),
        };
        let first = match tell(self.one(seed)) {
            Ok(trace) => trace,
            Err(problem) => return Some(problem),
        };
        if !seed.is_multiple_of(AGAIN) {
            return None;
        }
        match tell(self.one(seed)) {
            Ok(second) if second == first => None,
            Ok(second) => Some(format!("seed {seed} is not the same twice: {first:?}, then {second:?}")),
            Err(problem) => Some(format!("{problem}\n  but not the first time")),
        }
    }

    fn one(&self, seed: u64) -> Result<Told> {
        let mut child =
            self.command(seed).stdout(Stdio::piped()).stderr(Stdio::piped()).env("RUST_LOG", "off").spawn()?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let lines = |from: Option<Box<dyn std::io::Read + Send>>| {
            let from = from.map(BufReader::new);
            move || from.into_iter().flat_map(|from| from.lines().map_while(Result::ok)).collect::<Vec<_>>()
        };
        let (ended, end) = mpsc::channel();
        let read = lines(out.map(|out| Box::new(out) as _));
        let out = thread::spawn(move || {
            let lines = read();
            // Nobody waits any more if it took too long.
            let _ = ended.send(());
            lines
        });
        let err = thread::spawn(lines(err.map(|err| Box::new(err) as _)));
        if end.recv_timeout(LONGEST).is_err() {
            child.kill()?;
            child.wait()?;
            bail!("did not end within {LONGEST:?}");
        }
        let failed = !child.wait()?.success();
        let mut told = out.join().unwrap_or_default();
        let trace = told.last().cloned().filter(|line| line.starts_with("trace "));
        told.extend(err.join().unwrap_or_default());
        ensure!(failed || trace.is_some(), "it said nothing: {told:?}");
        Ok(Told { trace, lines: told, failed })
    }

    fn command(&self, seed: u64) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--inside").env("LD_PRELOAD", &self.world).env(SEED, seed.to_string());
        command.env("SSL_CERT_FILE", self.folder.path().join(CA_FILE)).env("SSL_CERT_DIR", self.folder.path());
        command.env(declaration::FOLDER, self.folder.path());
        if let Some(bug) = self.bug {
            command.env(mutations::SEEDED, bug.to_string());
        }
        command
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Compiles the simulated clock and chance.
fn compile(folder: &Path) -> Result<PathBuf> {
    let library = folder.join("world.so");
    let cc = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let mut child = Command::new(&cc)
        .args(["-shared", "-fPIC", "-O2", "-Wall", "-x", "c", "-", "-o"])
        .arg(&library)
        .stdin(Stdio::piped())
        .spawn()
        .with_context(|| format!("no C compiler {cc}; `make setup` installs one"))?;
    child.stdin.take().context("no input")?.write_all(WORLD.as_bytes())?;
    ensure!(child.wait()?.success(), "the simulated clock does not compile");
    Ok(library)
}

/// Inside a simulated process: runs its seed.
pub(crate) fn inside() -> Result<ExitCode> {
    let began = SystemTime::now();
    let seed = std::env::var(SEED).context("start it without --inside")?;
    ensure!(began == SystemTime::now(), "the clock of this process is not simulated");
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(scenario::run())?;
    for violation in &report.violations {
        println!("{violation}");
    }
    println!("trace {:016x} of seed {seed}: {}", report.trace, report.summary);
    Ok(if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
