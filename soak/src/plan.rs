//! Five businesses, and what is sent in each.

use std::collections::BTreeMap;

use crate::record::Business;

/// The client type on and off the route that is changed during a run.
pub const CHANGED_TYPE: &str = "web";
/// The message type of that route.
pub const CHANGED_KIND: &str = "news";
/// Tags of clients and pushes.
pub const TAGS: [&str; 3] = ["blue", "green", "red"];

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
}

/// All of them.
pub const PLANS: [Plan; 5] = [
    Plan { name: "shop", push: "{}", kept: Kept::Long, content: 40, tags: false, changes: false },
    Plan { name: "club", push: "{}", kept: Kept::Long, content: 400, tags: true, changes: false },
    // The smallest retention, in segments of 25 kB: some seconds of its pushes.
    Plan {
        name: "feed",
        push: "{retention: {bytes: 100k}}",
        kept: Kept::Short,
        content: 6000,
        tags: false,
        changes: false,
    },
    Plan {
        name: "live",
        push: "{delivery: Transient}",
        kept: Kept::NotAtAll,
        content: 40,
        tags: false,
        changes: false,
    },
    Plan { name: "shift", push: "{}", kept: Kept::Long, content: 40, tags: false, changes: true },
];

/// Message types to clients, with the client types that may get them.
const TO_CLIENTS: [(&str, &[&str]); 4] =
    [("note", &["app", "web"]), ("bill", &["app"]), (CHANGED_KIND, &["app", "web"]), ("chat", &["app", "web"])];

impl Plan {
    /// The declaration; changed, with this many messages a second, and with or without one client type on the route that changes.
    pub fn declaration(&self, changed: Option<(u32, bool)>) -> String {
        let Self { name, push, .. } = self;
        let (rate, allowed) = changed.unwrap_or((20, true));
        let to = if allowed { "app, web" } else { "app" };
        let secret = self.secret();
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
        }
    }
}
