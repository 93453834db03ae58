//! What people read of a run: its figures, and for each violation the whole life of the message.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::audit::Violation;
use crate::record::{MessageNo, Outcome, Record, What};

/// Violations that are shown with the life of their message.
const SHOWN: usize = 20;
/// What a client saw before and after a violation.
const AROUND: usize = 6;

/// What happened how often.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub messages: usize,
    /// Of these, those that name businesses.
    pub shared: usize,
    /// Answers that say of one of these that it gets nothing.
    pub declined: usize,
    pub confirmed: usize,
    pub refused: usize,
    pub unknown: usize,
    pub stored: usize,
    pub deliveries: usize,
    pub consumed: usize,
    pub connections: usize,
    pub resumed: usize,
    pub gaps: usize,
    pub tag_changes: usize,
    pub faults: usize,
}

impl Figures {
    /// Of a record.
    pub fn of(record: &Record) -> Self {
        let shared = record.messages.iter().filter(|message| !message.shared.is_empty()).count();
        let (messages, connections) = (record.messages.len(), record.connections.len());
        let mut figures = Self { messages, shared, connections, ..Self::default() };
        for entry in &record.entries {
            let counted = match &entry.what {
                What::Answered { outcome: Outcome::Confirmed, .. } => &mut figures.confirmed,
                What::Answered { outcome: Outcome::NotArrived, .. } => &mut figures.refused,
                What::Answered { outcome: Outcome::Unknown, .. } => &mut figures.unknown,
                What::Declined { .. } => &mut figures.declined,
                What::Stored { .. } => &mut figures.stored,
                What::Got { .. } => &mut figures.deliveries,
                What::Consumed { .. } => &mut figures.consumed,
                What::Welcome { resumed: Some(true), .. } => &mut figures.resumed,
                What::Gap { .. } => &mut figures.gaps,
                What::Refreshed { done: true, .. } => &mut figures.tag_changes,
                What::Fault { .. } => &mut figures.faults,
                _ => continue,
            };
            *counted += 1;
        }
        figures
    }
}

/// The times of all faults.
pub fn timeline(record: &Record) -> String {
    let lines = record.entries.iter().filter_map(|entry| {
        let at = entry.at.as_secs_f64();
        match &entry.what {
            What::Fault { what, .. } => Some(format!("{at:9.3} {what}\n")),
            What::Healed { what, .. } => Some(format!("{at:9.3}   over: {what}\n")),
            _ => None,
        }
    });
    lines.collect()
}

/// Gaps by business and reason.
pub fn gaps(record: &Record) -> String {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for entry in &record.entries {
        if let What::Gap { connection, reason } = &entry.what {
            let business = &record.businesses[record.client_of(*connection).business].name;
            *counts.entry((business, reason)).or_default() += 1;
        }
    }
    counts.iter().fold(String::new(), |mut text, ((business, reason), count)| {
        let _ = write!(text, " {business} {reason} {count},");
        text
    })
}

/// The violations, each with what led to it.
pub fn violations(record: &Record, found: &[Violation]) -> String {
    let mut counts: BTreeMap<_, usize> = BTreeMap::new();
    for violation in found {
        let client = violation.client.map_or("", |client| record.clients[client].name.as_str());
        *counts.entry((violation.kind, client)).or_default() += 1;
    }
    let mut text = counts.iter().fold(String::new(), |mut text, ((kind, client), count)| {
        let _ = writeln!(text, "{count:5} {kind:?} {client}");
        text
    });
    for violation in found.iter().take(SHOWN) {
        let _ = writeln!(text, "\n{violation}");
        if let Some(message) = violation.message {
            text += &life(record, message);
        }
        if let Some(client) = violation.client {
            let _ = writeln!(text, "  what {} saw about then:", record.clients[client].name);
            text += &around(record, client, violation.at);
        }
    }
    if found.len() > SHOWN {
        let _ = writeln!(text, "\nand {} more", found.len() - SHOWN);
    }
    text
}

/// Everything that was ever seen of a message.
fn life(record: &Record, message: MessageNo) -> String {
    let mut text = String::new();
    for entry in &record.entries {
        let line = match &entry.what {
            What::Offered { message: of } if *of == message => "offered".to_owned(),
            What::Answered { message: of, outcome } if *of == message => format!("{outcome:?}"),
            What::Stored { business, offset, message: Some(of) } if *of == message => {
                format!("in the stream of {} at {offset}", record.businesses[*business].name)
            }
            What::Got { connection, message: Some(of), cursor } if *of == message => {
                format!("came to {} on connection {connection}, cursor {cursor:?}", record.client_of(*connection).name)
            }
            What::Consumed { queue, message: of, redelivered } if *of == message => {
                format!("consumed from {queue}{}", if *redelivered { ", redelivered" } else { "" })
            }
            _ => continue,
        };
        let _ = writeln!(text, "    {:9.3} {line}", entry.at.as_secs_f64());
    }
    text
}

fn around(record: &Record, client: usize, at: Duration) -> String {
    let seen: Vec<_> = record
        .entries
        .iter()
        .filter_map(|entry| {
            let (connection, line) = match &entry.what {
                What::Asked { connection, cursor, tags } => {
                    (connection, format!("asks with cursor {cursor:?}, tags {tags:?}"))
                }
                What::Welcome { connection, resumed, cursor } => {
                    (connection, format!("welcome: resumed {resumed:?}, cursor {cursor:?}"))
                }
                What::Got { connection, message, cursor } => {
                    let id = message.map_or("?", |message| record.messages[message].id.as_str());
                    (connection, format!("'{id}', cursor {cursor:?}"))
                }
                What::Position { connection, cursor } => (connection, format!("position {cursor}")),
                What::Gap { connection, reason } => (connection, format!("gap {reason}")),
                What::Refreshing { connection, tags } => (connection, format!("asks for tags {tags:?}")),
                What::Refreshed { connection, done } => (connection, format!("refreshed: {done}")),
                What::Ended { connection, how } => (connection, format!("ended: {how}")),
                _ => return None,
            };
            (record.connections[*connection] == client).then_some((entry.at, *connection, line))
        })
        .collect();
    let there = seen.partition_point(|(time, _, _)| *time < at);
    let shown = &seen[there.saturating_sub(AROUND)..(there + AROUND).min(seen.len())];
    shown.iter().fold(String::new(), |mut text, (at, connection, line)| {
        let _ = writeln!(text, "    {:9.3} connection {connection}: {line}", at.as_secs_f64());
        text
    })
}

/// Copies the edges' logs to where they outlive the run, and says where.
pub fn keep_logs(folder: &Path, seed: u64) -> Result<()> {
    let kept = std::env::temp_dir().join(format!("wirepost-soak-{seed}"));
    std::fs::create_dir_all(&kept)?;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log")
            && let Some(name) = path.file_name()
        {
            std::fs::copy(&path, kept.join(name))?;
        }
    }
    println!("logs of the edges: {}", kept.display());
    Ok(())
}
