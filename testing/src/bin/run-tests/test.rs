//! One test in a process of its own.

use std::io::{BufRead, BufReader, PipeReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use wirepost_testing::permits::{GRANTED, WAITING};
use wirepost_testing::process::CA_FILE;

use crate::programs::Test;

/// Output may still be on its way when a process has ended; something that it left behind may hold the pipe forever.
const REST_OF_OUTPUT: Duration = Duration::from_secs(2);

/// A tenth of the processor time of another process, where both want it (sched(7)). The servers that all tests share are such others:
/// an edge promises an answer within two seconds, and sixteen busy tests must not make the broker late.
const NICE: &str = "10";

/// What happens to a running test.
#[derive(Debug)]
pub(crate) enum Event {
    /// It waits for a permit.
    Waiting,
    /// It has its permit.
    Granted,
    /// It has ended.
    Ended {
        passed: bool,
        /// Everything that it printed.
        output: String,
    },
}

/// A test that was started.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) test: Test,
    pub(crate) pid: u32,
    /// When it last began to run or to wait.
    pub(crate) since: Instant,
    /// Whether it waits for a permit.
    pub(crate) waiting: bool,
    /// How long it has run so far, without its waits.
    pub(crate) ran: Duration,
}

impl Running {
    /// Starts a test, whose process and those that it starts are nice to the shared servers; its events go to `events` with this number.
    pub(crate) fn start(test: Test, number: usize, events: Sender<(usize, Event)>) -> Result<Self> {
        let (reader, writer) = std::io::pipe()?;
        let mut command = Command::new("nice");
        command.args(["-n", NICE]).arg(&test.executable);
        let child = command
            .args(["--exact", &test.name, "--include-ignored", "--nocapture", "--test-threads", "1"])
            .current_dir(&test.folder)
            .env("SSL_CERT_FILE", CA_FILE)
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .spawn()
            .with_context(|| format!("starting {test}"))?;
        let pid = child.id();
        std::thread::spawn(move || follow(child, reader, number, &events));
        Ok(Self { test, pid, since: Instant::now(), waiting: false, ran: Duration::ZERO })
    }

    /// Begins or ends a wait.
    pub(crate) fn set_waiting(&mut self, waiting: bool) {
        self.ran = self.run_time();
        self.since = Instant::now();
        self.waiting = waiting;
    }

    /// How long it has run, without its waits.
    pub(crate) fn run_time(&self) -> Duration {
        if self.waiting { self.ran } else { self.ran + self.since.elapsed() }
    }
}

fn follow(mut child: Child, reader: PipeReader, number: usize, events: &Sender<(usize, Event)>) {
    let (lines, output) = channel();
    let permits = events.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            let event = if line.contains(WAITING) {
                Event::Waiting
            } else if line.contains(GRANTED) {
                Event::Granted
            } else {
                if lines.send(line).is_err() {
                    return;
                }
                continue;
            };
            let _ = permits.send((number, event));
        }
    });
    let passed = child.wait().is_ok_and(|status| status.success());
    let _ = events.send((number, Event::Ended { passed, output: rest(&output) }));
}

fn rest(lines: &Receiver<String>) -> String {
    let deadline = Instant::now() + REST_OF_OUTPUT;
    let mut output = String::new();
    while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        output.push_str(&line);
        output.push('\n');
    }
    output
}
