//! Runs the real binary like a user: as processes, reading their lines.

#![allow(clippy::unwrap_used)] // it is all test

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

/// How long something may take that should happen immediately.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// `wirepost` with these arguments, without settings from the environment.
pub(crate) fn wirepost(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wirepost"));
    for variable in [
        "WIREPOST_URL",
        "WIREPOST_API_KEY",
        "WIREPOST_JWT",
        "WIREPOST_AMQP",
        "WIREPOST_STREAM",
        "WIREPOST_MANAGEMENT",
        "WIREPOST_ACCESS",
    ] {
        command.env_remove(variable);
    }
    command.args(arguments);
    command
}

/// Runs it to its end: exit status, stdout, stderr.
pub(crate) fn run(arguments: &[&str]) -> (i32, String, String) {
    texts(&wirepost(arguments).stdin(Stdio::null()).output().unwrap())
}

/// [`run`] with something on stdin.
pub(crate) fn run_with(arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut child =
        wirepost(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    texts(&child.wait_with_output().unwrap())
}

fn dev(arguments: &[&str]) -> Command {
    let ports = ["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    wirepost(&[&ports, arguments].concat())
}

fn texts(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// A running process. Killed when dropped.
pub(crate) struct Running {
    child: Child,
    stdin: ChildStdin,
    lines: Arc<(Mutex<Vec<String>>, Condvar)>,
    /// Lines before this one were already consumed.
    read: usize,
}

impl Running {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::of(wirepost(arguments))
    }

    pub(crate) fn of(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        collect(child.stdout.take().unwrap(), Arc::clone(&lines));
        collect(child.stderr.take().unwrap(), Arc::clone(&lines));
        let stdin = child.stdin.take().unwrap();
        Self { child, stdin, lines, read: 0 }
    }

    /// `wirepost dev` on free ports, and its URL.
    pub(crate) fn dev(arguments: &[&str]) -> (Self, String) {
        Self::greeted(Self::of(dev(arguments)))
    }

    /// The same with https and wss; its certificate is kept in this folder.
    pub(crate) fn dev_tls(arguments: &[&str], cache: &Path) -> (Self, String) {
        let mut command = dev(&[&["--tls"], arguments].concat());
        command.env("XDG_CACHE_HOME", cache);
        Self::greeted(Self::of(command))
    }

    /// Starts `wirepost dev`, makes the task of this name panic, and checks that the process ends and says so.
    pub(crate) fn dev_ends_by_panic(task: &str, arguments: &[&str]) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("panic");
        let mut command = dev(arguments);
        command.env("WIREPOST_TEST_PANIC", format!("{task}@{}", file.display()));
        let (mut dev, _) = Self::greeted(Self::of(command));
        fs::File::create(file).unwrap();
        dev.line(&format!("task \"{task}\" panicked: a test asked for it; ending"));
        assert_eq!(dev.end().code(), Some(1), "{task}");
    }

    fn greeted(mut dev: Self) -> (Self, String) {
        let greeting = dev.line("wirepost dev listens on ");
        let url = greeting.split(' ').find(|word| word.starts_with("http")).unwrap().to_owned();
        (dev, url)
    }

    /// A connected client.
    pub(crate) fn listen(url: &str, business: &str, id: &str, client_type: &str, more: &[&str]) -> Self {
        let who = ["listen", "--url", url, "--business", business, "--id", id, "--client-type", client_type];
        let mut listen = Self::start(&[&who, more].concat());
        listen.line(if more.contains(&"--plain") { "wirepost: connected" } else { r#"{"op":"welcome""# });
        listen
    }

    /// The next line of stdout or stderr that contains this text; earlier ones are skipped.
    pub(crate) fn line(&mut self, text: &str) -> String {
        self.line_within(text, PATIENCE)
    }

    pub(crate) fn line_within(&mut self, text: &str, patience: Duration) -> String {
        let end = Instant::now() + patience;
        let (lines, more) = &*self.lines;
        let mut lines = lines.lock().unwrap();
        loop {
            if let Some(found) = lines[self.read..].iter().position(|line| line.contains(text)) {
                self.read += found + 1;
                return lines[self.read - 1].clone();
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no line with {text:?} came; all lines:\n{}", lines.join("\n"));
            lines = more.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// All lines so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.0.lock().unwrap().clone()
    }

    /// Types a line.
    pub(crate) fn type_line(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
        self.stdin.flush().unwrap();
    }

    /// `TERM`, `INT`.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "it does not end; all lines:\n{}", self.lines().join("\n"));
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends a `listen` and returns the cursor that it prints.
    pub(crate) fn cursor(mut self) -> String {
        self.signal("INT");
        let line = self.line("--cursor ");
        self.end();
        line.rsplit(' ').next().unwrap().to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(stream: impl Read + Send + 'static, lines: Arc<(Mutex<Vec<String>>, Condvar)>) {
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            lines.0.lock().unwrap().push(line);
            lines.1.notify_all();
        }
    });
}

/// A folder with a copy of one of the repository's examples.
pub(crate) fn folder_with(example: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(example);
    fs::copy(&source, folder.path().join(example)).unwrap();
    folder
}

/// A file's text with one replacement, which must match.
pub(crate) fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{} lacks {from:?}", path.display());
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}
