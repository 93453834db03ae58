//! What stands in the stream of receipts: the receipts, and between them what the edge that judges has written.
//!
//! *Who judges* is decided by the order of the stream, which all edges read alike. Each checkpoint names a term and its
//! edge. The first one of a higher term begins it; what another edge writes in the same term, or in a lower one, does not
//! count. An edge that begins to read in the middle may take such a one for the truth; then it finds that nobody judges,
//! and begins a term of its own. Two that judge for a moment report the same twice.

use serde::{Deserialize, Serialize};

use crate::broker::Position;

/// Written by the edge that judges, or wants to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Checkpoint {
    /// Counts the edges that have judged; 0 is only to find the end of the stream.
    pub(super) term: u64,
    /// The process that wrote it.
    pub(super) judge: String,
    /// Its own name.
    #[serde(rename = "checkpoint")]
    pub(super) id: String,
    /// Where the next edge begins. `None`: nothing has been judged yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) from: Option<From>,
}

/// Everything before it has been judged and reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct From {
    /// The last push; `None`: there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pushes: Option<Place>,
    /// No receipt of a later push stands before it; `None`: before the first message of the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) receipts: Option<Place>,
}

/// A [`Position`], as JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    offset: u64,
    fingerprint: u64,
}

impl std::convert::From<Position> for Place {
    fn from(Position { offset, fingerprint }: Position) -> Self {
        Self { offset, fingerprint }
    }
}

impl std::convert::From<Place> for Position {
    fn from(Place { offset, fingerprint }: Place) -> Self {
        Self { offset, fingerprint }
    }
}

/// A message of the stream.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Written {
    Checkpoint(Checkpoint),
    #[serde(rename_all = "camelCase")]
    Receipts {
        unique_id: String,
        ids: Vec<String>,
    },
}

impl Written {
    /// `None`: neither; a later version may write more.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }
}

/// Who judges, as far as the stream was read.
#[derive(Debug, Default)]
pub(super) struct Terms(Option<Checkpoint>);

impl Terms {
    /// The last checkpoint that counts.
    pub(super) fn last(&self) -> Option<&Checkpoint> {
        self.0.as_ref()
    }

    /// Takes the next checkpoint of the stream. False: it does not count.
    pub(super) fn take(&mut self, next: Checkpoint) -> bool {
        let counts = next.term > 0
            && self
                .0
                .as_ref()
                .is_none_or(|last| next.term > last.term || (next.term == last.term && next.judge == last.judge));
        if counts {
            self.0 = Some(next);
        }
        counts
    }
}
