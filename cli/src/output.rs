//! Lines on stdout and stderr.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use tokio::sync::mpsc;

/// Lines that wait for a slow terminal. When it is full, the printing task waits, and with it the queue that it prints.
const CAPACITY: usize = 256;

/// Writes a line to stdout.
///
/// # Errors
/// Nobody reads stdout any longer.
pub(crate) fn line(text: &str) -> io::Result<()> {
    // One write for each line, so that lines of several tasks do not mix.
    io::stdout().lock().write_all(format!("{text}\n").as_bytes())?;
    io::stdout().flush()
}

/// Writes a line to stderr. A failure can't be reported anywhere.
pub(crate) fn error_line(text: &str) {
    let _ = io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// Foreign text as one line: control characters, which could end the line or control the terminal, become JSON escapes;
/// line breaks and tabs become spaces.
pub(crate) fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    for c in text.trim().chars() {
        match c {
            '\n' | '\r' | '\t' => out.push(' '),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// Prints from many tasks by its own thread, so that a blocked terminal does not block the runtime.
#[derive(Clone)]
pub(crate) struct Console {
    lines: mpsc::Sender<String>,
}

impl Console {
    /// Starts the thread; it ends when the last handle is dropped.
    pub(crate) fn start() -> Self {
        let (lines, mut waiting) = mpsc::channel::<String>(CAPACITY);
        std::thread::spawn(move || {
            while let Some(text) = waiting.blocking_recv() {
                // A dev server whose output nobody reads keeps serving.
                let _ = line(&text);
            }
        });
        Self { lines }
    }

    /// Queues a line for printing, waiting for room.
    pub(crate) async fn say(&self, text: impl Into<String>) {
        let _ = self.lines.send(text.into()).await;
    }

    /// Waits until everything queued so far is printed, for at most a second.
    pub(crate) async fn flush(&self) {
        let written = async {
            while self.lines.capacity() < CAPACITY {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), written).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_one_line_and_cannot_control_the_terminal() {
        assert_eq!(one_line(b"{\"a\":\n\t1}\n"), "{\"a\":  1}");
        assert_eq!(one_line("\"\u{1b}[2J\u{9b}1m\"".as_bytes()), "\"\\u001b[2J\\u009b1m\"");
        assert_eq!(one_line("\"ü🚚\"".as_bytes()), "\"ü🚚\"");
    }
}
