//! What edges tell each other by the control stream ([`names::CONTROL`](crate::names::CONTROL)): one JSON object a message. An edge reads
//! the whole stream when it starts, and follows it.

use serde::{Deserialize, Serialize};

/// A message of the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Control {
    /// Sessions end.
    Revocation(Revocation),
    /// Of a later version: an edge that does not know it passes over it.
    #[serde(other)]
    Unknown,
}

/// Sessions of a business that end, and whose tickets and resume tokens are refused: those that were issued until
/// [`issued_before`](Self::issued_before), narrowed to an identity or to one session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revocation {
    /// The business.
    pub business: String,
    /// Only sessions of this identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique_id: Option<String>,
    /// Only this session, by the digits that the ids of its connections share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Of that session only the tokens before this generation: a newer one has fewer tags. Its connections go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// Sessions whose token call was answered until then end, ms since the epoch.
    pub issued_before: i64,
    /// Then the last of them has ended by itself, ms since the epoch.
    pub until: i64,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_revocation_has_the_form_that_other_versions_read_and_a_later_kind_is_passed_over() {
        let revocation = Revocation {
            business: "pay".into(),
            unique_id: Some("alice".into()),
            session: None,
            generation: None,
            issued_before: 5,
            until: 9,
        };
        let text = json!({"kind": "revocation", "business": "pay", "uniqueId": "alice", "issuedBefore": 5, "until": 9});
        assert_eq!(serde_json::to_value(Control::Revocation(revocation.clone())).unwrap(), text);
        let mut later = text;
        later["more"] = json!(1);
        assert_eq!(serde_json::from_value::<Control>(later).unwrap(), Control::Revocation(revocation));
        assert_eq!(serde_json::from_value::<Control>(json!({"kind": "other", "a": 1})).unwrap(), Control::Unknown);
    }
}
