//! Seeded bugs: one change of the product's text each, which the simulation must find. They stand here and not in the
//! product, which has no branches for tests; a unit test shows that each text is still there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// A seeded bug.
pub(crate) struct Mutation {
    pub(crate) name: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

/// All of them.
pub(crate) const ALL: &[Mutation] = &[
    Mutation {
        name: "a reader does not notice that retention has passed it",
        file: "stream/src/supervisor.rs",
        from: "self.lost = first.is_none_or(|first| first > self.next);",
        to: "self.lost = first.is_none_or(|first| first > self.next) && self.lost;",
    },
    Mutation {
        name: "an offset alone proves a stream",
        file: "stream/src/supervisor/attach.rs",
        from: "offset == position.offset && fingerprint(offset, chunk.timestamp, &bytes) == position.fingerprint",
        to: "offset == position.offset || fingerprint(offset, chunk.timestamp, &bytes) == position.fingerprint",
    },
    Mutation {
        name: "a replica's word about the end of a stream counts",
        file: "stream/src/connection.rs",
        from: "self.leader.is_some() && (!self.replicated || is_leader())",
        to: "self.leader.is_some() && (!self.replicated || is_leader() || true)",
    },
    Mutation {
        name: "a page of a catch-up goes over deleted messages",
        file: "stream/src/read.rs",
        from: "if first.is_none_or(|first| first > result.next) {",
        to: "if first.is_none_or(|first| first > result.next && first == 0) {",
    },
    Mutation {
        name: "what was chosen for former tags is handed over",
        file: "edge/src/push/basis.rs",
        from: "self.tags == mailbox.tags() && hub.judges_as(&self.judge)",
        to: "(self.tags == mailbox.tags() || true) && hub.judges_as(&self.judge)",
    },
    Mutation {
        name: "a changed declaration leaves the log as it was",
        file: "edge/src/push/hub.rs",
        from: "if !before.judges_as(&business) {\n            state.log.keep_position();",
        to: "if !before.judges_as(&business) && state.log.position().is_none() {\n            state.log.keep_position();",
    },
    Mutation {
        name: "a connection goes live before the end of the log",
        file: "edge/src/push/hub.rs",
        from: "return Advance::More(entries, reached);\n            }\n            reached",
        to: "break;\n            }\n            reached",
    },
    Mutation {
        name: "a reader that resets tells nobody",
        file: "edge/src/push/reader.rs",
        from: "FeedEvent::Reset => {\n                    context.metrics.streams_replaced.inc();\n                    hub.forget(Some(Gap::Incarnation));",
        to: "FeedEvent::Reset => {\n                    context.metrics.streams_replaced.inc();\n                    hub.forget(None);",
    },
    Mutation {
        name: "a message that the broker gave back is acknowledged",
        file: "broker/src/rabbit/publish/window.rs",
        from: "Some(reason) => Err(PublishError::Unrouted(reason)),\n                    None if taken",
        to: "Some(_) if taken => Ok(()),\n                    Some(reason) => Err(PublishError::Unrouted(reason)),\n                    None if taken",
    },
    Mutation {
        name: "what was sent and not confirmed counts as not sent",
        file: "broker/src/rabbit/publish/window.rs",
        from: "job.answer(Err(PublishError::Unknown(\"the broker did not confirm in time\".to_owned())));",
        to: "job.answer(Err(PublishError::Unavailable(\"the broker did not confirm in time\".to_owned())));",
    },
    Mutation {
        name: "messages that were lost with their connection stay in the accounts",
        file: "broker/src/rabbit/publish/queues.rs",
        from: "(exchange.in_flight, exchange.bytes_in_flight) = (0, 0);\n            exchange.pace",
        to: "exchange.pace",
    },
    Mutation {
        name: "a sender's messages are taken from the end of its queue",
        file: "broker/src/rabbit/publish/fair.rs",
        from: "let item = items.pop_front();",
        to: "let item = items.pop_back();",
    },
];

impl Mutation {
    /// The sources of `repository` with this bug, in `copy`.
    pub(crate) fn apply(&self, repository: &Path, copy: &Path) -> Result<()> {
        let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(repository).output()?;
        ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
        for file in String::from_utf8(listed.stdout)?.split('\0').filter(|file| !file.is_empty()) {
            let (from, to) = (repository.join(file), copy.join(file));
            let Ok(mut text) = fs::read(&from) else { continue };
            if file == self.file {
                text = self.mutated(&String::from_utf8(text)?).context(self.name)?.into_bytes();
            }
            // What is as it was keeps its time: the compiler takes it as it is.
            if fs::read(&to).is_ok_and(|old| old == text) {
                continue;
            }
            fs::create_dir_all(to.parent().context("a file without a folder")?)?;
            fs::write(to, text)?;
        }
        Ok(())
    }

    fn mutated(&self, text: &str) -> Option<String> {
        (text.matches(self.from).count() == 1).then(|| text.replacen(self.from, self.to, 1))
    }
}

/// Builds the simulation from these sources; its program.
pub(crate) fn build(source: &Path) -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| source.join("target"), PathBuf::from);
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--profile", "simulation", "--workspace", "--locked", "--bin", "wirepost-simulate"])
        .current_dir(source)
        .status()?;
    ensure!(status.success(), "the mutated sources do not compile");
    Ok(target.join("simulation/wirepost-simulate"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_every_seeded_bug_is_in_the_product() {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for mutation in ALL {
            let text = fs::read_to_string(repository.join(mutation.file)).unwrap();
            assert!(mutation.mutated(&text).is_some(), "{}: correct its text in {}", mutation.name, mutation.file);
        }
    }
}
