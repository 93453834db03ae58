//! Why a client may have missed something.

use wirepost_core::frames::GapReason;

/// Why a client may have missed something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// The stream no longer has what follows its position.
    Retention,
    /// Its position does not belong to this stream.
    Incarnation,
    /// What it sent is not a cursor, or a cursor of another business: that says nothing about the stream.
    Cursor,
    /// It had no cursor, and was greeted before the reader was attached.
    Unread,
}

impl Gap {
    /// Whether reading the stream has shown it.
    pub fn was_read(self) -> bool {
        matches!(self, Self::Retention | Self::Incarnation)
    }

    /// The reason in the frame to the client.
    pub fn reason(self) -> GapReason {
        match self {
            Self::Retention => GapReason::Retention,
            Self::Incarnation | Self::Cursor => GapReason::Incarnation,
            Self::Unread => GapReason::Unread,
        }
    }

    /// The label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Retention => "retention",
            Self::Incarnation => "incarnation",
            Self::Cursor => "cursor",
            Self::Unread => "unread",
        }
    }
}
