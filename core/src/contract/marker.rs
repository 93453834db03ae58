//! A message that edges write where their pushes come from, and that no client gets.

/// Its message type. A push of this type that addresses somebody is not a marker, and is refused.
pub const BEGIN: &str = "wirepost.begin";

/// The body of a marker with this id.
pub fn body(id: &str) -> String {
    format!(r#"{{"id":"{id}","messageType":"{BEGIN}"}}"#)
}
