//! The envelope: the JSON object of the wire, the same in a socket frame and in an AMQP body.
//!
//! *Parsing* reads the top level once and borrows everything; `content` and unknown fields keep their bytes. A field of ours that occurs
//! twice, also in escaped form, is rejected, since parsers differ in which copy they use. *Writing* puts our fields first, each once, then
//! the unknown ones, then `content` byte for byte.

mod at_most;
mod parse;
mod write;

pub use at_most::AtMost;
pub use parse::unmarked;

use std::borrow::Cow;

use crate::SendType;

/// Longest `id` and `correlationId`, in bytes.
pub const MAX_ID: usize = 64;
/// Longest `messageType`, in bytes: it is the routing key, which AMQP bounds at 255.
pub const MAX_MESSAGE_TYPE: usize = 200;
/// Longest identity or client type, in bytes.
pub const MAX_IDENTITY: usize = 256;
/// Most `tags` and most `businesses` of one envelope.
pub const MAX_LIST: usize = 64;
/// Most envelopes in one call that pushes several.
pub const MAX_BATCH: usize = 256;
/// Deepest nesting of the whole object. Deeper JSON is valid, but overflows the stack of many recursive parsers.
pub const MAX_DEPTH: usize = 64;

/// The value of `toUniqueId` that addresses everyone.
pub const EVERYONE: &str = "*";

/// An envelope, borrowed from the bytes that it was parsed from. Absent, null and (for identities and lists) empty values are all `None` or
/// empty: an empty audience addresses no client.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Envelope<'a> {
    /// `id`.
    pub id: Option<Cow<'a, str>>,
    /// `sendType`.
    pub send_type: Option<SendType>,
    /// `messageType`.
    pub message_type: Option<Cow<'a, str>>,
    /// `businessType`.
    pub business_type: Option<Cow<'a, str>>,
    /// `fromUniqueId`.
    pub from_unique_id: Option<Cow<'a, str>>,
    /// `fromClientType`.
    pub from_client_type: Option<Cow<'a, str>>,
    /// `toUniqueId`; `"*"` is [`EVERYONE`].
    pub to_unique_id: Option<Cow<'a, str>>,
    /// `toClientType`.
    pub to_client_type: Option<Cow<'a, str>>,
    /// `timestamp` in ms since the epoch; 0 is `None`.
    pub timestamp: Option<i64>,
    /// `content`, the bytes as received.
    pub content: Option<&'a str>,
    /// `tags`.
    pub tags: Vec<Cow<'a, str>>,
    /// `businesses`.
    pub businesses: Vec<Cow<'a, str>>,
    /// `correlationId`.
    pub correlation_id: Option<Cow<'a, str>>,
    /// `expiresAt` in ms since the epoch; 0 is `None`.
    pub expires_at: Option<i64>,
    /// `cursor`; only the edge sets it.
    pub cursor: Option<Cow<'a, str>>,
    /// `op`: names a control frame where control frames are on.
    pub op: Option<Cow<'a, str>>,
    /// Unknown fields: key as JSON text with its quotes, value as JSON text.
    pub unknown: Vec<(String, &'a str)>,
}

/// Why bytes are not an envelope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not JSON, or not an object.
    #[error("not a JSON object: {0}")]
    Json(String),
    /// Not UTF-8.
    #[error("not UTF-8")]
    Utf8,
    /// In another well-known form than ours.
    #[error("the body {0}")]
    Form(&'static str),
    /// A field of ours occurs twice.
    #[error("field {0} occurs twice; send it once")]
    Duplicate(&'static str),
    /// A field has a wrong type or value.
    #[error("field {field} {problem}")]
    Field {
        /// Which.
        field: &'static str,
        /// What is wrong and what would be valid.
        problem: String,
    },
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("nested deeper than {MAX_DEPTH} levels")]
    Depth,
}

impl<'a> Envelope<'a> {
    /// Reads an envelope.
    ///
    /// # Errors
    /// See [`EnvelopeError`]; nothing about routes or permissions is decided here.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        parse::parse(bytes)
    }

    /// The id of what [`Envelope::parse`] rejected, so that its sender knows which message it was. `None` if it can't be read, is itself
    /// invalid, or occurs twice. Reads the bytes a second time: for rejections only.
    pub fn readable_id(bytes: &'a [u8]) -> Option<Cow<'a, str>> {
        parse::readable_id(bytes)
    }

    /// Appends the envelope as JSON. `cursor` is left out, see [`Envelope::write_with_cursor`].
    pub fn write(&self, out: &mut Vec<u8>) {
        write::write(self, None, out);
    }

    /// Appends the envelope as JSON with the cursor of its delivery.
    pub fn write_with_cursor(&self, cursor: &str, out: &mut Vec<u8>) {
        write::write(self, Some(cursor), out);
    }

    /// The envelope as JSON.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.content.map_or(0, str::len));
        self.write(&mut out);
        out
    }

    /// Whether it addresses everyone.
    pub fn for_everyone(&self) -> bool {
        self.to_unique_id.as_deref() == Some(EVERYONE)
    }

    /// Whether it names an audience at all.
    pub fn has_audience(&self) -> bool {
        self.to_unique_id.is_some() || !self.tags.is_empty()
    }
}

#[cfg(test)]
mod tests;
