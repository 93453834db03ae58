//! Bodies of the management API's answers.

use serde::Deserialize;
use serde_json::Value;

/// Why the broker refused: `{"error":"…","reason":"…"}`.
pub(super) fn broker_reason(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Refusal {
        error: Option<String>,
        reason: Option<Value>,
    }
    match serde_json::from_slice::<Refusal>(body).ok()? {
        Refusal { reason: Some(Value::String(reason)), .. } => Some(reason.trim().to_owned()),
        Refusal { error, .. } => error,
    }
}

/// `{"status":"failed","reason":"…","alarms":[{"node":"…","resource":"memory"}]}`; `None`: something else.
pub(super) fn alarm_in(body: &[u8]) -> Option<String> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    let alarms = answer["alarms"].as_array().map(Vec::as_slice).unwrap_or_default();
    if alarms.is_empty() && answer["status"] != "failed" {
        return None;
    }
    let resources: Vec<_> = alarms.iter().filter_map(|alarm| alarm["resource"].as_str()).collect();
    Some(if resources.is_empty() { "resource alarm".to_owned() } else { format!("alarm: {}", resources.join(", ")) })
}
