//! `wirepost dead`: looks at the messages that a business's services could not handle, puts them back into their queues, or removes them,
//! with the rights that the operator gives to the business's user.

mod access;
mod aside;
mod letter;
mod table;
mod walk;

use std::{collections::HashSet, process::ExitCode};

use clap::Subcommand;
use serde_json::json;
use wirepost_core::names;

use crate::output;
use access::Access;
use letter::Letter;
use walk::{Moved, Step, Walk};

/// Messages that `list` shows where nothing else is asked for.
const LISTED: u32 = 100;

/// Dead letters of a business: list, show, replay, drop.
///
/// What is looked at is back when the command ends, however it ends.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show what is there: id, messageType, queue, reason, failures, time.
    ///
    /// The last line says how long the business's queues are.
    List {
        #[command(flatten)]
        access: access::Args,
        /// Only those of this queue, by its full name or as the declaration calls it.
        #[arg(long)]
        queue: Option<String>,
        /// Show at most so many.
        #[arg(long, default_value_t = LISTED, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// A JSON object a line, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Show one whole: properties, headers, body.
    Show {
        /// As `list` shows it.
        id: String,
        #[command(flatten)]
        access: access::Args,
    },
    /// Put messages back into the queues that they came from, oldest first, with their ids, headers and properties.
    ///
    /// Each is removed from the dead letters after the broker has confirmed it in its queue. If that breaks off, nothing is lost, and one
    /// message at most is there twice. Exit status: 0 = all that were asked for are back, 1 = not.
    Replay {
        #[command(flatten)]
        access: access::Args,
        /// Only those with this id; may be repeated.
        #[arg(long)]
        id: Vec<String>,
        /// Only those of this queue, by its full name or as the declaration calls it.
        #[arg(long)]
        queue: Option<String>,
        /// At most so many.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
        /// Say what would be put back, and change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove messages for good.
    Drop {
        #[command(flatten)]
        access: access::Args,
        /// Those with this id; may be repeated.
        #[arg(long, required_unless_present_any = ["all", "unreadable"])]
        id: Vec<String>,
        /// All of them; needs --yes.
        #[arg(long, requires = "yes", conflicts_with = "id")]
        all: bool,
        /// Those that the broker can't hand over by AMQP 0-9-1, which nobody can look at; needs --yes.
        #[arg(long, requires = "yes", conflicts_with = "id")]
        unreadable: bool,
        /// Yes, remove them.
        #[arg(long)]
        yes: bool,
    },
}

pub(crate) async fn run(Args { command }: Args) -> anyhow::Result<ExitCode> {
    match command {
        Command::List { access, queue, limit, json } => list(&access.read()?, queue, limit, json).await,
        Command::Show { id, access } => show(&access.read()?, &id).await,
        Command::Replay { access, id, queue, limit, dry_run } => {
            let wanted = Wanted::new(id, queue, limit);
            replay(&access.read()?, wanted, dry_run).await
        }
        Command::Drop { access, id, all, unreadable, yes: _ } => {
            let wanted = Wanted::new(id, None, None);
            drop_letters(&access.read()?, wanted, all, unreadable).await
        }
    }
}

/// Which messages a command is about; of an empty list of ids all.
struct Wanted {
    ids: HashSet<String>,
    queue: Option<String>,
    limit: u32,
    /// Ids that were met.
    met: HashSet<String>,
}

impl Wanted {
    fn new(ids: Vec<String>, queue: Option<String>, limit: Option<u32>) -> Self {
        Self { ids: ids.into_iter().collect(), queue, limit: limit.unwrap_or(u32::MAX), met: HashSet::new() }
    }

    fn takes(&mut self, letter: &Letter, business: &str) -> bool {
        if !self.ids.is_empty() && !self.ids.contains(&letter.id) {
            return false;
        }
        self.met.insert(letter.id.clone());
        let of = letter.queue.as_deref();
        self.queue
            .as_ref()
            .is_none_or(|queue| of == Some(queue.as_str()) || of == Some(names::route_queue(business, queue).as_str()))
    }

    /// Says which ids there were none of; whether there were all.
    fn complain_of_missing(&self) -> bool {
        let mut missing: Vec<_> = self.ids.difference(&self.met).collect();
        missing.sort();
        for id in &missing {
            output::complain(&format!("wirepost: no dead letter has the id {id}"));
        }
        missing.is_empty()
    }
}

async fn list(access: &Access, queue: Option<String>, limit: u32, as_json: bool) -> anyhow::Result<ExitCode> {
    let account = &access.account;
    let mut wanted = Wanted::new(Vec::new(), queue, None);
    let mut rows = vec![["ID", "TYPE", "QUEUE", "REASON", "COUNT", "TIME"].map(str::to_owned)];
    let mut walk = Walk::begin(account).await?;
    let mut shown = 0;
    while shown < limit {
        let step = walk.next().await?;
        let row = match &step {
            Step::End => break,
            Step::Letter(letter) if !wanted.takes(letter, &account.business) => continue,
            Step::Letter(letter) if as_json => {
                output::line(&letter.summary().to_string())?;
                shown += 1;
                continue;
            }
            Step::Letter(letter) => letter.row(&account.business),
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
    let counts = walk.counts(&access.queues).await;
    walk.put_back().await?;
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
    let mut walk = Walk::begin(&access.account).await?;
    let mut found = 0;
    loop {
        match walk.next().await? {
            Step::End => break,
            Step::Letter(letter) if letter.id == id => {
                for line in letter.whole().lines() {
                    output::line(line)?;
                }
                found += 1;
            }
            Step::Letter(_) | Step::Unreadable(_) => {}
        }
    }
    walk.put_back().await?;
    if found == 0 {
        anyhow::bail!("no dead letter has the id {id}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn replay(access: &Access, mut wanted: Wanted, dry_run: bool) -> anyhow::Result<ExitCode> {
    let account = &access.account;
    let mut walk = Walk::begin(account).await?;
    let (mut back, mut stay) = (0, 0);
    // A message of a queue that did not take one before it must not overtake that one.
    let mut closed: HashSet<String> = HashSet::new();
    while back < wanted.limit {
        let letter = match walk.next().await? {
            Step::End => break,
            Step::Unreadable(why) => {
                output::complain(&format!("wirepost: a message stays: {why}"));
                stay += 1;
                continue;
            }
            Step::Letter(letter) => letter,
        };
        if !wanted.takes(&letter, &account.business) {
            continue;
        }
        let id = letter.id.clone();
        let Some(queue) = letter.queue.clone() else {
            output::complain(&format!("wirepost: {id} stays: it came from no queue ({})", letter.reason));
            stay += 1;
            continue;
        };
        if closed.contains(&queue) {
            output::complain(&format!("wirepost: {id} stays: another one of {queue} before it was not taken"));
            stay += 1;
            continue;
        }
        if dry_run {
            output::line(&format!("would replay {id} → {queue}"))?;
            back += 1;
            continue;
        }
        match walk.replay(&letter, &queue).await? {
            Moved::Yes => {
                output::line(&format!("replayed {id} → {queue}"))?;
                back += 1;
            }
            Moved::No(why) => {
                output::complain(&format!("wirepost: {id} stays: {why}"));
                closed.insert(queue);
                stay += 1;
            }
        }
    }
    walk.put_back().await?;
    let all = wanted.complain_of_missing() && stay == 0;
    let done = if dry_run { "would be replayed" } else { "replayed" };
    output::line(&format!("{back} {done}{}", if stay > 0 { format!(", {stay} stay") } else { String::new() }))?;
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn drop_letters(access: &Access, mut wanted: Wanted, all: bool, unreadable: bool) -> anyhow::Result<ExitCode> {
    let mut walk = Walk::begin(&access.account).await?;
    let (mut dropped, mut unread) = (0, 0);
    loop {
        match walk.next().await? {
            Step::End => break,
            Step::Letter(letter) if all || (!unreadable && wanted.takes(&letter, &access.account.business)) => {
                walk.drop(&letter).await?;
                output::line(&format!("dropped {}", letter.id))?;
                dropped += 1;
            }
            Step::Unreadable(why) if all || unreadable => {
                output::complain(&format!("wirepost: a message that can't be read goes: {why}"));
                unread += 1;
            }
            Step::Letter(_) | Step::Unreadable(_) => {}
        }
    }
    if unread > 0 {
        walk.drop_unreadable().await?;
        dropped += unread;
    }
    walk.put_back().await?;
    let found = wanted.complain_of_missing();
    output::line(&format!("{dropped} dropped"))?;
    Ok(if found { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Cells under each other, two spaces apart.
fn columns<const N: usize>(rows: &[[String; N]]) -> impl Iterator<Item = String> + use<'_, N> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    rows.iter().map(move |row| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    })
}
