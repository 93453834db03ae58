//! `wirepost dead`: shows the messages that a business's services failed on, returns them to their queues, or removes
//! them, with the rights of the business's user.

mod access;
mod connection;
mod letter;
mod reader;
mod table;
mod unreadable;

use std::{collections::HashSet, process::ExitCode};

use clap::Subcommand;
use serde_json::json;
use wirepost_core::names;

use crate::output;
use access::Access;
use letter::Letter;
use reader::{Reader, ReplayResult, Step};

/// Default of `list --limit`.
const DEFAULT_LIMIT: u32 = 100;

/// Dead letters of a business: list, show, replay, drop.
///
/// Messages that are only read are back in the queue when the command ends, however it ends.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List dead letters: id, messageType, queue, reason, failures, time.
    ///
    /// The last line shows the length of the business's queues.
    List {
        #[command(flatten)]
        access: access::Args,
        /// Only messages of this queue, by its full name or its name in the declaration.
        #[arg(long)]
        queue: Option<String>,
        /// Maximum number of messages.
        #[arg(long, default_value_t = DEFAULT_LIMIT, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Print one JSON object per line, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Show a message completely: properties, headers, body.
    Show {
        /// Its id, as `list` shows it.
        id: String,
        #[command(flatten)]
        access: access::Args,
    },
    /// Return messages to the queues that they came from, oldest first, with their ids, headers and properties.
    ///
    /// Each is removed from the dead letters after the broker has confirmed it. After an interruption nothing is lost,
    /// and at most one message exists twice. Exit status: 0 = all requested messages were replayed, 1 = not.
    Replay {
        #[command(flatten)]
        access: access::Args,
        /// Only messages with this id; may be repeated.
        #[arg(long)]
        id: Vec<String>,
        /// Only messages of this queue, by its full name or its name in the declaration.
        #[arg(long)]
        queue: Option<String>,
        /// Maximum number of messages.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
        /// Print what would be replayed, and change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove messages for good.
    Drop {
        #[command(flatten)]
        access: access::Args,
        /// Messages with this id; may be repeated.
        #[arg(long, required_unless_present_any = ["all", "unreadable"])]
        id: Vec<String>,
        /// All messages; needs --yes.
        #[arg(long, requires = "yes", conflicts_with = "id")]
        all: bool,
        /// Messages that the broker can't deliver by AMQP 0-9-1, so that they can't be shown; needs --yes.
        #[arg(long, requires = "yes", conflicts_with = "id")]
        unreadable: bool,
        /// Confirms the removal.
        #[arg(long)]
        yes: bool,
    },
}

pub(crate) async fn run(Args { command }: Args) -> anyhow::Result<ExitCode> {
    match command {
        Command::List { access, queue, limit, json } => list(&access.read()?, queue, limit, json).await,
        Command::Show { id, access } => show(&access.read()?, &id).await,
        Command::Replay { access, id, queue, limit, dry_run } => {
            let selection = Selection::new(id, queue, limit);
            replay(&access.read()?, selection, dry_run).await
        }
        Command::Drop { access, id, all, unreadable, yes: _ } => {
            let selection = Selection::new(id, None, None);
            drop_letters(&access.read()?, selection, all, unreadable).await
        }
    }
}

/// The messages that a command selects; without ids all of them.
struct Selection {
    ids: HashSet<String>,
    queue: Option<String>,
    limit: u32,
    /// Ids that were found.
    found: HashSet<String>,
}

impl Selection {
    fn new(ids: Vec<String>, queue: Option<String>, limit: Option<u32>) -> Self {
        Self { ids: ids.into_iter().collect(), queue, limit: limit.unwrap_or(u32::MAX), found: HashSet::new() }
    }

    fn matches(&mut self, letter: &Letter, business: &str) -> bool {
        if !self.ids.is_empty() && !self.ids.contains(&letter.id) {
            return false;
        }
        self.found.insert(letter.id.clone());
        let of = letter.queue.as_deref();
        self.queue
            .as_ref()
            .is_none_or(|queue| of == Some(queue.as_str()) || of == Some(names::route_queue(business, queue).as_str()))
    }

    /// Reports ids that were not found; returns whether all were.
    fn report_missing(&self) -> bool {
        let mut missing: Vec<_> = self.ids.difference(&self.found).collect();
        missing.sort();
        for id in &missing {
            output::error_line(&format!("wirepost: no dead letter has the id {id}"));
        }
        missing.is_empty()
    }
}

async fn list(access: &Access, queue: Option<String>, limit: u32, as_json: bool) -> anyhow::Result<ExitCode> {
    let target = &access.target;
    let mut selection = Selection::new(Vec::new(), queue, None);
    let mut rows = vec![["ID", "TYPE", "QUEUE", "REASON", "COUNT", "TIME"].map(str::to_owned)];
    let mut reader = Reader::begin(target).await?;
    let mut shown = 0;
    while shown < limit {
        let step = reader.next().await?;
        let row = match &step {
            Step::End => break,
            Step::Letter(letter) if !selection.matches(letter, &target.business) => continue,
            Step::Letter(letter) if as_json => {
                output::line(&letter.summary().to_string())?;
                shown += 1;
                continue;
            }
            Step::Letter(letter) => letter.row(&target.business),
            Step::Unreadable(why) => {
                if as_json {
                    output::line(&json!({"unreadable": true, "why": why}).to_string())?;
                }
                [
                    "?".to_owned(),
                    format!("unreadable: {why}"),
                    String::new(),
                    String::new(),
                    String::new(),
                    String::new(),
                ]
            }
        };
        rows.push(row);
        shown += 1;
    }
    let counts = reader.counts(&access.queues).await;
    reader.requeue_all().await?;
    if !as_json {
        if rows.len() > 1 {
            for row in columns(&rows) {
                output::line(&row)?;
            }
        }
        output::line(&counts)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(access: &Access, id: &str) -> anyhow::Result<ExitCode> {
    let mut reader = Reader::begin(&access.target).await?;
    let mut found = 0;
    loop {
        match reader.next().await? {
            Step::End => break,
            Step::Letter(letter) if letter.id == id => {
                for line in letter.details().lines() {
                    output::line(line)?;
                }
                found += 1;
            }
            Step::Letter(_) | Step::Unreadable(_) => {}
        }
    }
    reader.requeue_all().await?;
    if found == 0 {
        anyhow::bail!("no dead letter has the id {id}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn replay(access: &Access, mut selection: Selection, dry_run: bool) -> anyhow::Result<ExitCode> {
    let target = &access.target;
    let mut reader = Reader::begin(target).await?;
    let (mut back, mut stay) = (0, 0);
    // A message must not overtake an earlier one that its queue did not take.
    let mut closed: HashSet<String> = HashSet::new();
    while back < selection.limit {
        let letter = match reader.next().await? {
            Step::End => break,
            Step::Unreadable(why) => {
                output::error_line(&format!("wirepost: a message stays: {why}"));
                stay += 1;
                continue;
            }
            Step::Letter(letter) => letter,
        };
        if !selection.matches(&letter, &target.business) {
            continue;
        }
        let id = letter.id.clone();
        let Some(queue) = letter.queue.clone() else {
            output::error_line(&format!("wirepost: {id} stays: it has no source queue ({})", letter.reason));
            stay += 1;
            continue;
        };
        if closed.contains(&queue) {
            output::error_line(&format!("wirepost: {id} stays: {queue} did not take an earlier message"));
            stay += 1;
            continue;
        }
        if dry_run {
            output::line(&format!("would replay {id} → {queue}"))?;
            back += 1;
            continue;
        }
        match reader.replay(&letter, &queue).await? {
            ReplayResult::Done => {
                output::line(&format!("replayed {id} → {queue}"))?;
                back += 1;
            }
            ReplayResult::Stays(why) => {
                output::error_line(&format!("wirepost: {id} stays: {why}"));
                closed.insert(queue);
                stay += 1;
            }
        }
    }
    reader.requeue_all().await?;
    let all = selection.report_missing() && stay == 0;
    let done = if dry_run { "would be replayed" } else { "replayed" };
    output::line(&format!("{back} {done}{}", if stay > 0 { format!(", {stay} stay") } else { String::new() }))?;
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn drop_letters(
    access: &Access,
    mut selection: Selection,
    all: bool,
    unreadable: bool,
) -> anyhow::Result<ExitCode> {
    let mut reader = Reader::begin(&access.target).await?;
    let (mut dropped, mut unread) = (0, 0);
    loop {
        match reader.next().await? {
            Step::End => break,
            Step::Letter(letter) if all || (!unreadable && selection.matches(&letter, &access.target.business)) => {
                reader.drop(&letter).await?;
                output::line(&format!("dropped {}", letter.id))?;
                dropped += 1;
            }
            Step::Unreadable(why) if all || unreadable => {
                output::error_line(&format!("wirepost: an unreadable message is removed: {why}"));
                unread += 1;
            }
            Step::Letter(_) | Step::Unreadable(_) => {}
        }
    }
    if unread > 0 {
        reader.drop_unreadable().await?;
        dropped += unread;
    }
    reader.requeue_all().await?;
    let found = selection.report_missing();
    output::line(&format!("{dropped} dropped"))?;
    Ok(if found { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Aligned columns, two spaces apart.
fn columns<const N: usize>(rows: &[[String; N]]) -> impl Iterator<Item = String> + use<'_, N> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    rows.iter().map(move |row| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    })
}
