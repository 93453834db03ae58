//! A dead letter: its origin, the reason, its content, and the form in which it is replayed.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use wirepost_amqp::v091::{Message, Properties, Property};
use wirepost_core::{contract::headers, hex, names};

use super::table::{self, lossy};
use crate::output::one_line;

/// Headers that the broker adds; a replayed message does not have them. The other headers are the sender's.
const BROKER_HEADERS: [&str; 9] = [
    "x-death",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-last-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
    "x-delivery-count",
    "x-acquired-count",
];
/// Length of an id that is derived from the content, in hex digits.
const HASH_DIGITS: usize = 16;

/// Identifies a message, regardless of the headers that the broker adds.
pub(super) type ContentHash = [u8; 32];

/// See the module.
pub(super) struct Letter {
    /// `message_id`, else the envelope's `id`, else one derived from the content, which begins with `~`.
    pub(super) id: String,
    /// The queue where it died; `None` for a message that was set aside.
    pub(super) queue: Option<String>,
    /// `delivery_limit`, `expired`, `rejected`, …; or the reason for which it was set aside.
    pub(super) reason: String,
    /// How often it died there.
    count: u64,
    /// Seconds since the epoch: its first death there.
    time: Option<u64>,
    message_type: String,
    headers: Value,
    message: Message,
}

impl Letter {
    pub(super) fn of(message: Message) -> Self {
        let properties = &message.properties;
        let table = table::headers(properties).unwrap_or_default();
        let headers = table::json(&table);
        let body: Value = serde_json::from_slice(&message.body).unwrap_or_default();
        let of_body = |field: &str| body[field].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let property = |property| properties.text(property).map(|text| lossy(&text)).filter(|text| !text.is_empty());
        // The newest death comes first.
        let death = &headers["x-death"][0];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let id = property(Property::MessageId).or_else(|| of_body("id")).unwrap_or_else(|| hash(&message));
        Self {
            id: one_line(id.as_bytes()),
            queue: text(&death["queue"]),
            reason: text(&death["reason"])
                .or_else(|| set_aside_reason(&headers))
                .unwrap_or_else(|| "unknown".to_owned()),
            count: death["count"].as_u64().unwrap_or(1),
            time: death["time"].as_u64(),
            message_type: of_body("messageType")
                .or_else(|| property(Property::Type))
                .or_else(|| text(&death["routing-keys"][0]))
                .unwrap_or_default(),
            headers,
            message,
        }
    }

    pub(super) fn tag(&self) -> u64 {
        self.message.delivery_tag
    }

    pub(super) fn content_hash(&self) -> ContentHash {
        let Message { routing_key, body, .. } = &self.message;
        let properties = self.properties();
        let mut digest = Sha256::new();
        for part in [&routing_key[..], properties.as_bytes(), &body[..]] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }

    pub(super) fn body(&self) -> &[u8] {
        &self.message.body
    }

    /// The sender's properties and headers without `user-id`: the broker accepts that from the same user only
    /// (rabbitmq.com/docs/validated-user-id).
    pub(super) fn properties(&self) -> Properties {
        let properties = self.message.properties.without(Property::UserId);
        let Some(table) = table::headers(&properties) else { return properties };
        let entries = table::entries(&table);
        if entries.iter().map(|entry| entry.bytes.len()).sum::<usize>() < table.len() {
            // An unknown kind of value: keep the broker's headers rather than lose a part of the sender's.
            return properties;
        }
        let kept: Vec<u8> = entries
            .iter()
            .filter(|entry| !BROKER_HEADERS.iter().any(|name| name.as_bytes() == entry.name))
            .flat_map(|entry| entry.bytes.iter().copied())
            .collect();
        if kept.is_empty() { properties.without(Property::Headers) } else { properties.with_table(&kept) }
    }

    /// The cells of `list`.
    pub(super) fn row(&self, business: &str) -> [String; 6] {
        let queue = self.queue.clone().unwrap_or_default();
        let short = queue.strip_prefix(&names::route_queue(business, "")).unwrap_or(&queue).to_owned();
        let cells = [
            self.id.clone(),
            self.message_type.clone(),
            short,
            self.reason.clone(),
            self.count.to_string(),
            self.time.map(rfc3339).unwrap_or_default(),
        ];
        cells.map(|cell| one_line(cell.as_bytes()))
    }

    /// The same as JSON.
    pub(super) fn summary(&self) -> Value {
        json!({
            "id": self.id, "messageType": self.message_type, "queue": self.queue, "reason": self.reason, "count": self.count,
            "time": self.time.map(rfc3339), "bytes": self.message.body.len(),
        })
    }

    /// All of it, as lines; the body is the last line.
    pub(super) fn details(&self) -> String {
        let Self { message: Message { exchange, routing_key, properties, body, .. }, .. } = self;
        let mut lines = vec![
            format!("id: {}", self.id),
            format!("messageType: {}", self.message_type),
            format!("queue: {}", self.queue.as_deref().unwrap_or("none")),
            format!("reason: {} (count {})", self.reason, self.count),
            format!("time: {}", self.time.map(rfc3339).unwrap_or_default()),
            format!("exchange: {}, routing key: {}", lossy(exchange), lossy(routing_key)),
        ];
        for (name, property) in [
            ("content-type", Property::ContentType),
            ("content-encoding", Property::ContentEncoding),
            ("correlation-id", Property::CorrelationId),
            ("reply-to", Property::ReplyTo),
            ("expiration", Property::Expiration),
            ("message-id", Property::MessageId),
            ("type", Property::Type),
            ("user-id", Property::UserId),
            ("app-id", Property::AppId),
            ("cluster-id", Property::ClusterId),
        ] {
            lines.extend(properties.text(property).map(|text| format!("{name}: {}", lossy(&text))));
        }
        lines.push(format!("headers: {}", self.headers));
        lines.push(format!("body ({} bytes): {}", body.len(), lossy(body)));
        lines.iter().map(|line| one_line(line.as_bytes())).collect::<Vec<_>>().join("\n")
    }
}

/// Why it was set aside, as written by an edge or the operator.
fn set_aside_reason(headers: &Value) -> Option<String> {
    headers[headers::REASON].as_str().map(str::to_owned)
}

/// An id derived from the content: the same message always has the same one.
fn hash(message: &Message) -> String {
    let digest = Sha256::new().chain_update(&message.routing_key).chain_update(&message.body).finalize();
    format!("~{}", &hex(digest)[..HASH_DIGITS])
}

/// `2026-11-27T08:15:00Z` (Howard Hinnant's `civil_from_days`).
fn rfc3339(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Eras of 400 years begin in March, so that the leap day is the last day of a year.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(name: &str, value: &[u8]) -> Vec<u8> {
        let size = u32::try_from(value.len()).unwrap().to_be_bytes();
        [&[u8::try_from(name.len()).unwrap()], name.as_bytes(), b"S", &size, value].concat()
    }

    fn letter(properties: Properties, body: &'static [u8]) -> Letter {
        Letter::of(Message {
            delivery_tag: 1,
            redelivered: false,
            exchange: "wirepost.pay.dlx".into(),
            routing_key: "order.new".into(),
            properties,
            body: body.into(),
        })
    }

    #[test]
    fn a_letter_is_replayed_with_its_senders_properties() {
        let own = string("from-unique-id", &[0xb6, 0xa9]);
        let table =
            [own.clone(), string("x-first-death-queue", b"q"), string("x-last-death-reason", b"rejected")].concat();
        let sent = Properties::default().with_text(Property::AppId, &[0xb6]).with_text(Property::MessageId, b"m-1");
        let dead = sent.with_table(&table).with_text(Property::UserId, b"guest");
        assert_eq!(letter(dead, b"{}").properties(), sent.with_table(&own));
        let bare = letter(sent.with_table(&string("x-last-death-reason", b"rejected")), b"{}");
        assert_eq!(bare.properties(), sent, "it came without headers");
    }

    #[test]
    fn every_letter_has_an_id() {
        let named = Properties::default().with_text(Property::MessageId, b"m-1");
        assert_eq!(letter(named.clone(), br#"{"id":"other"}"#).id, "m-1");
        assert_eq!(letter(Properties::default(), br#"{"id":"of the body"}"#).id, "of the body");
        let garbage = letter(Properties::default(), b"\xff").id;
        assert!(garbage.starts_with('~') && garbage == letter(Properties::default(), b"\xff").id);
        assert_ne!(garbage, letter(Properties::default(), b"\xfe").id);
        let escaped = letter(named.with_text(Property::MessageId, b"\x1b[2J\xb6"), b"{}").id;
        assert_eq!(escaped, "\\u001b[2J\u{fffd}");
    }

    #[test]
    fn a_time_is_a_date() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(rfc3339(1_795_765_500), "2026-11-27T07:45:00Z");
    }
}
