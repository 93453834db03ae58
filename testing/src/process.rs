//! A program of ours as a process: the binary that cargo built beside the tests, its log, its signals, its end.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::broker::eventually;

/// A file with one CA certificate that signs nothing, for `SSL_CERT_FILE`: what a program trusts where a test names no CA. Programs read the
/// CA certificates of the machine when they start, and test programs for each HTTP client. In debug builds that took most of the time of a
/// start (docs/development.md); with this file it is one certificate instead of about 140.
pub const CA_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/ca.pem");
/// Lines of a log that a failing test shows.
const LOG_TAIL: usize = 80;

/// A running program; killed when dropped. A failing test shows the end of its log.
#[derive(Debug)]
pub struct Process {
    /// Tells it from others of the same program.
    pub name: String,
    pub pid: u32,
    child: Mutex<Child>,
    log: PathBuf,
    quiet: AtomicBool,
}

impl Process {
    /// Starts `program` with an empty environment but for what `set_up` adds; its log goes into `folder`.
    pub fn spawn(program: &str, name: &str, folder: &Path, set_up: impl FnOnce(&mut Command)) -> Result<Self> {
        Self::start(Command::new(binary(program)?), name, folder, set_up)
    }

    /// The same, limited to this many open files.
    pub fn spawn_limited(
        program: &str,
        open_files: u32,
        name: &str,
        folder: &Path,
        set_up: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        // The shell becomes the program, with the same pid.
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(format!("ulimit -n {open_files}; exec \"$0\" \"$@\"")).arg(binary(program)?);
        Self::start(shell, name, folder, set_up)
    }

    /// A program of others; with `core`, on that core of the machine alone.
    pub fn spawn_other(
        program: &Path,
        core: Option<&str>,
        name: &str,
        folder: &Path,
        set_up: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let command = match core {
            None => Command::new(program),
            // It becomes the program, with the same pid.
            Some(core) => {
                let mut taskset = Command::new("taskset");
                taskset.args(["-c", core]).arg(program);
                taskset
            }
        };
        Self::start(command, name, folder, set_up)
    }

    fn start(mut command: Command, name: &str, folder: &Path, set_up: impl FnOnce(&mut Command)) -> Result<Self> {
        let log = folder.join(format!("{name}-{:08x}.log", rand::random::<u32>()));
        let output = File::create(&log)?;
        command
            .env_clear()
            .envs([("NO_COLOR", "1"), ("RUST_BACKTRACE", "1"), ("SSL_CERT_FILE", CA_FILE)])
            .stdin(Stdio::null());
        set_up(&mut command);
        let child = command
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        Ok(Self {
            name: name.to_owned(),
            pid: child.id(),
            child: Mutex::new(child),
            log,
            quiet: AtomicBool::new(false),
        })
    }

    /// Its log is of no interest when it ends: for test programs whose output nobody captures.
    pub fn be_quiet(&self) {
        self.quiet.store(true, Ordering::Relaxed);
    }

    /// Begins its shutdown.
    pub fn sigterm(&self) -> Result<()> {
        self.signal("TERM")
    }

    /// Ends it as a crash would.
    pub fn kill9(&self) -> Result<()> {
        let mut child = self.child();
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Whether it lives.
    pub fn running(&self) -> bool {
        matches!(self.exit_status(), Ok(None))
    }

    /// Freezes it.
    pub fn pause(&self) -> Result<()> {
        self.signal("STOP")
    }

    /// Thaws it.
    pub fn resume(&self) -> Result<()> {
        self.signal("CONT")
    }

    /// Waits for its end.
    pub async fn exited(&self, limit: Duration) -> Result<ExitStatus> {
        eventually("the process ends", limit, || async { Ok(self.exit_status()?.is_some()) }).await?;
        self.exit_status()?.context("exited")
    }

    /// Everything that it logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn exit_status(&self) -> Result<Option<ExitStatus>> {
        Ok(self.child().try_wait()?)
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, name: &str) -> Result<()> {
        ensure!(self.exit_status()?.is_none(), "{} has ended already", self.name);
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.pid.to_string()).status()?;
        ensure!(status.success(), "kill -{name} {}: {status}", self.pid);
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill9();
        if self.quiet.load(Ordering::Relaxed) {
            return;
        }
        // Captured by the test harness, and so shown only where the test fails.
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        eprintln!("---- the end of the log of {} (pid {})", self.name, self.pid);
        for line in &lines[lines.len().saturating_sub(LOG_TAIL)..] {
            eprintln!("{line}");
        }
    }
}

/// Runs `program` to its end, with an empty environment and this on stdin: exit status, stdout, stderr.
pub async fn run(program: &str, arguments: &[&str], input: &str) -> Result<(Option<i32>, String, String)> {
    let (binary, input) = (binary(program)?, input.to_owned());
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let run = move || {
        let mut command = Command::new(&binary);
        command.env_clear().args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {}", binary.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
    };
    tokio::task::spawn_blocking(run).await?
}

/// Beside this program, or beside `deps/`, where cargo puts tests: so both are of one build.
pub fn binary(program: &str) -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let folder = here.parent().context("this program is not where cargo puts it")?;
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    let path = folder.join(program);
    ensure!(
        path.exists(),
        "{} is not there: `make integration` builds it, by hand `cargo build --workspace --bins`",
        path.display()
    );
    Ok(path)
}
