//! Five businesses, what is sent in each, and what is for the clients of several.

use std::collections::BTreeMap;

use crate::record::Business;

/// The client type on and off the route that is changed during a run.
pub const CHANGED_TYPE: &str = "web";
/// The message type of that route.
pub const CHANGED_KIND: &str = "news";
/// Tags of clients and pushes.
pub const TAGS: [&str; 3] = ["blue", "green", "red"];

/// What changes of a declaration during a run.
#[derive(Clone, Copy, Debug)]
pub struct Changed {
    /// Messages a second.
    pub rate: u32,
    /// Whether [`CHANGED_TYPE`] gets [`CHANGED_KIND`].
    pub allowed: bool,
    /// Whether it accepts anything from other businesses.
    pub accepts: bool,
}

impl Changed {
    /// As it is at first.
    pub const NOT: Self = Self { rate: 20, allowed: true, accepts: true };
}

/// For how long its pushes are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// Longer than any run.
    Long,
    /// For some seconds.
    Short,
    /// `Transient`.
    NotAtAll,
}

/// A business of the soak.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub name: &'static str,
    /// `push` of its declaration.
    push: &'static str,
    kept: Kept,
    /// Bytes of a push's content.
    pub content: usize,
    /// Whether pushes for tags are sent, and clients change theirs.
    pub tags: bool,
    /// Whether its edge configuration changes.
    pub changes: bool,
    /// The businesses whose messages are for its clients too, where they name it.
    accepts: &'static [&'static str],
}

/// All of them.
pub const PLANS: [Plan; 5] = [
    Plan { name: "shop", push: "{}", kept: Kept::Long, content: 40, tags: false, changes: false, accepts: &["club"] },
    Plan { name: "club", push: "{}", kept: Kept::Long, content: 400, tags: true, changes: false, accepts: &["shop"] },
    // The smallest retention, in segments of 25 kB: some seconds of its pushes.
    Plan {
        name: "feed",
        push: "{retention: {bytes: 100k}}",
        kept: Kept::Short,
        content: 6000,
        tags: false,
        changes: false,
        accepts: &[],
    },
    Plan {
        name: "live",
        push: "{delivery: Transient}",
        kept: Kept::NotAtAll,
        content: 40,
        tags: false,
        changes: false,
        accepts: &["shop"],
    },
    Plan { name: "shift", push: "{}", kept: Kept::Long, content: 40, tags: false, changes: true, accepts: &["shop"] },
];

/// Message types to clients, with the client types that may get them.
const TO_CLIENTS: [(&str, &[&str]); 4] =
    [("note", &["app", "web"]), ("bill", &["app"]), (CHANGED_KIND, &["app", "web"]), ("chat", &["app", "web"])];

impl Plan {
    /// The declaration; changed, if anything is.
    pub fn declaration(&self, changed: Changed) -> String {
        let Self { name, push, .. } = self;
        let Changed { rate, allowed, accepts } = changed;
        let to = if allowed { "app, web" } else { "app" };
        let secret = self.secret();
        let accepted = |from: &&str| format!("{{businessType: {from}, messageTypes: [note, {CHANGED_KIND}, chat]}}");
        let accepted: Vec<String> = self.accepts.iter().filter(|_| accepts).map(accepted).collect();
        let accepted = accepted.join(", ");
        format!(
            r#"
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {{name: {name}, namespace: soak}}
spec:
  clientTypes: [app, web]
  routes:
    - {{messageType: order, sendType: ClientToServer, queue: {{name: orders}}}}
    - {{messageType: visit, sendType: ClientToServer, queue: {{name: orders}}}}
    - {{messageType: "visit.#", sendType: ClientToServer, queue: {{name: visits}}}}
    - {{messageType: note, sendType: ServerToClient, to: [app, web], audience: Everyone}}
    - {{messageType: bill, sendType: ServerToClient, to: [app]}}
    - {{messageType: {CHANGED_KIND}, sendType: ServerToClient, to: [{to}], audience: Everyone}}
    - {{messageType: chat, sendType: ClientToClient, from: [app, web], to: [app, web]}}
  acceptFrom: [{accepted}]
  push: {push}
  limits: {{messagesPerSecond: {rate}, burst: 40}}
  access: {{secretName: {secret}}}
"#
        )
    }

    /// Whether its pushes go through a stream.
    pub fn is_durable(&self) -> bool {
        self.kept != Kept::NotAtAll
    }

    /// Whether its clients get messages of another business that name it.
    pub fn accepts(&self, other: &Self) -> bool {
        self.accepts.contains(&other.name)
    }

    /// The businesses whose clients get its messages that name them, by number.
    pub fn accepted_by(&self) -> Vec<usize> {
        (0..PLANS.len()).filter(|other| PLANS[*other].accepts(self)).collect()
    }

    /// The Secret of its services, where an operator makes one.
    pub fn secret(&self) -> String {
        format!("{}-access", self.name)
    }

    /// What the auditor has to know.
    pub fn business(&self) -> Business {
        let to = TO_CLIENTS.iter().map(|(kind, to)| {
            ((*kind).to_owned(), to.iter().map(|client_type| (*client_type).to_owned()).collect::<Vec<_>>())
        });
        Business {
            name: self.name.to_owned(),
            durable: self.is_durable(),
            short_retention: self.kept == Kept::Short,
            to: to.collect::<BTreeMap<_, _>>(),
            accepts: (0..PLANS.len()).filter(|other| self.accepts(&PLANS[*other])).collect(),
        }
    }
}
