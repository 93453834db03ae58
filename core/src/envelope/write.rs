//! Writing an envelope: our fields first and once, unknown ones as received, `content` last and byte for byte.

use std::io::Write;

use super::Envelope;

pub(super) fn write(envelope: &Envelope<'_>, cursor: Option<&str>, out: &mut Vec<u8>) {
    let mut object = Object { out, first: true };
    object.text("id", envelope.id.as_deref());
    object.text("sendType", envelope.send_type.map(crate::SendType::as_str));
    object.text("messageType", envelope.message_type.as_deref());
    object.text("businessType", envelope.business_type.as_deref());
    object.text("fromUniqueId", envelope.from_unique_id.as_deref());
    object.text("fromClientType", envelope.from_client_type.as_deref());
    object.text("toUniqueId", envelope.to_unique_id.as_deref());
    object.text("toClientType", envelope.to_client_type.as_deref());
    object.number("timestamp", envelope.timestamp);
    object.list("tags", &envelope.tags);
    object.list("businesses", &envelope.businesses);
    object.text("correlationId", envelope.correlation_id.as_deref());
    object.number("expiresAt", envelope.expires_at);
    object.text("cursor", cursor);
    for (key, value) in &envelope.unknown {
        object.separate();
        object.out.extend_from_slice(key.as_bytes());
        object.out.push(b':');
        object.out.extend_from_slice(value.as_bytes());
    }
    if let Some(content) = envelope.content {
        object.key("content");
        object.out.extend_from_slice(content.as_bytes());
    }
    if object.first {
        object.out.push(b'{');
    }
    out.push(b'}');
}

struct Object<'o> {
    out: &'o mut Vec<u8>,
    first: bool,
}

impl Object<'_> {
    fn separate(&mut self) {
        self.out.push(if self.first { b'{' } else { b',' });
        self.first = false;
    }

    /// `name` is one of ours and needs no escape.
    fn key(&mut self, name: &str) {
        self.separate();
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    fn string(&mut self, value: &str) {
        // Writing to a Vec can't fail, and a string always serializes.
        let _ = serde_json::to_writer(&mut *self.out, value);
    }

    fn text(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.key(name);
            self.string(value);
        }
    }

    fn number(&mut self, name: &str, value: Option<i64>) {
        if let Some(value) = value {
            self.key(name);
            let _ = write!(self.out, "{value}");
        }
    }

    fn list(&mut self, name: &str, items: &[std::borrow::Cow<'_, str>]) {
        if items.is_empty() {
            return;
        }
        self.key(name);
        for (i, item) in items.iter().enumerate() {
            self.out.push(if i == 0 { b'[' } else { b',' });
            self.string(item);
        }
        self.out.push(b']');
    }
}
