//! Why a client may have missed something.

use wirepost_core::frames::GapReason;

/// Why a client may have missed something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// The stream no longer has what follows its position.
    Retention,
    /// Its position is not of this stream.
    Incarnation,
    /// What it gave is no cursor, or one of another business: that says nothing of the stream.
    Cursor,
}

impl Gap {
    /// What the client is told.
    pub fn reason(self) -> GapReason {
        match self {
            Self::Retention => GapReason::Retention,
            Self::Incarnation | Self::Cursor => GapReason::Incarnation,
        }
    }

    /// The label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Retention => "retention",
            Self::Incarnation => "incarnation",
            Self::Cursor => "cursor",
        }
    }
}
