//! Ownership of a vhost. Two installations on one vhost would each take the other's objects for orphans and revert the other's changes, so
//! an installation writes only to a vhost with its marker.
//!
//! The marker is an exchange, [`names::INSTALLATION`], whose arguments name the installation:
//! - it is part of an export of definitions, so a restored broker still names its owner, and a copied one is recognized as a copy;
//! - it comes with the snapshot that is read anyway, and needs no further right;
//! - arguments of an exchange can't be changed, so of two that claim a vhost at the same time the first has it. To the other the broker
//!   answers success and changes nothing (measured on 4.0.5), so the marker is read again.

use serde_json::json;
use wirepost_core::names;
use wirepost_rabbitmq::{CallError, ManagementClient};

use crate::actual;
use crate::error::Error;

pub use crate::error::{NotOurs, UNMARKED};

/// Arguments of the marker.
const ID: &str = "x-wirepost-installation";
const PLACE: &str = "x-wirepost-namespace";
/// Businesses that an error names at most.
const NAMED: usize = 3;

/// An installation of wirepost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// Unique, and the same for as long as the installation exists.
    pub id: String,
    /// The namespace that it is in, for people.
    pub place: String,
    /// An administrator's decision: take the vhost over from the installation with this id, or [`UNMARKED`]. Either also allows a vhost
    /// without a marker.
    pub adopt: Option<String>,
}

/// The installation that a vhost is marked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Its id.
    pub id: String,
    /// The namespace that it is in, for people.
    pub place: String,
}

/// Whether a vhost may be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It is marked as ours.
    Ours,
    /// It must be marked as ours. `instead`: replacing another's marker.
    Mark { instead: bool },
    /// It may not be changed.
    Refused(NotOurs),
}

/// Decides. `objects`: businesses with objects in the vhost. `is_known`: whether this installation's records show that it created them.
pub(crate) fn claim<'a>(
    vhost: &str,
    marker: Option<&Marker>,
    mut objects: impl Iterator<Item = &'a str>,
    installation: &Installation,
    is_known: impl FnOnce() -> bool,
) -> Claim {
    let adopts = |id: &str| installation.adopt.as_deref() == Some(id);
    match marker {
        Some(marker) if marker.id == installation.id => Claim::Ours,
        Some(marker) if adopts(&marker.id) => Claim::Mark { instead: true },
        Some(marker) => Claim::Refused(NotOurs::Another {
            vhost: vhost.to_owned(),
            id: marker.id.clone(),
            place: marker.place.clone(),
        }),
        None => {
            let some: Vec<&str> = objects.by_ref().take(NAMED).collect();
            // A process may have ended between deleting the former marker and setting its own.
            if some.is_empty() || installation.adopt.is_some() || is_known() {
                return Claim::Mark { instead: false };
            }
            let more = objects.count();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            Claim::Refused(NotOurs::Unmarked { vhost: vhost.to_owned(), objects: some.join(", ") + &more })
        }
    }
}

impl Marker {
    /// Reads the marker.
    pub(crate) fn read(exchange: &actual::Exchange) -> Self {
        let text =
            |key: &str| exchange.arguments.get(key).and_then(|value| value.as_str()).unwrap_or("unknown").to_owned();
        Self { id: text(ID), place: text(PLACE) }
    }
}

/// Marks a vhost, unless another has marked it meanwhile. `instead`: replaces the marker of this installation, which is deleted first. `gate` is
/// asked before each write.
pub(crate) async fn mark(
    management: &ManagementClient,
    installation: &Installation,
    instead: Option<&str>,
    gate: &(dyn Fn() -> bool + Send + Sync),
) -> Result<(), Error> {
    let doing = format!("marking vhost {} as that of installation {}", management.vhost(), installation.id);
    let failed = |error: CallError| match error {
        CallError::Failed(error) | CallError::Fatal(error) => Error::from(error),
        CallError::Object(cause) | CallError::NotFound(cause) => Error::Unmarked { doing: doing.clone(), cause },
    };
    let path = ["exchanges", management.vhost(), names::INSTALLATION];
    let check_gate = || if gate() { Ok(()) } else { Err(Error::Stopped { doing: doing.clone() }) };
    let another = |Marker { id, place }| NotOurs::Another { vhost: management.vhost().to_owned(), id, place };
    if let Some(former) = instead {
        // The snapshot may be outdated.
        match management.get::<actual::Exchange>(&doing, &path, "").await {
            Ok(exchange) => {
                let marker = Marker::read(&exchange);
                if marker.id == installation.id {
                    return Ok(());
                }
                if marker.id != former {
                    return Err(another(marker).into());
                }
                check_gate()?;
                management.delete(&doing, &path).await.map_err(failed)?;
            }
            Err(CallError::NotFound(_)) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    // Not internal: an export of definitions leaves internal exchanges out (measured on 4.3.6).
    let body = json!({
        "type": "fanout", "durable": true, "auto_delete": false,
        "arguments": {ID: installation.id, PLACE: installation.place},
    });
    check_gate()?;
    management.put(&doing, &path, &body).await.map_err(failed)?;
    let exchange = management.get::<actual::Exchange>(&doing, &path, "").await.map_err(failed)?;
    let marker = Marker::read(&exchange);
    if marker.id == installation.id {
        return Ok(());
    }
    Err(another(marker).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_administrators_word_takes_over_what_another_may_have_made() {
        let ours = |adopt: Option<&str>| Installation {
            id: "ours".into(),
            place: "wirepost".into(),
            adopt: adopt.map(str::to_owned),
        };
        let marker = |id: &str| Some(Marker { id: id.into(), place: "elsewhere".into() });
        let decide = |marker: Option<Marker>, objects: &[&str], adopt, known: bool| {
            claim("v", marker.as_ref(), objects.iter().copied(), &ours(adopt), || known)
        };
        let mark = |instead| Claim::Mark { instead };
        assert_eq!(decide(marker("ours"), &["pay"], None, false), Claim::Ours);
        assert_eq!(decide(None, &[], None, false), mark(false));
        assert_eq!(decide(None, &["pay"], None, true), mark(false));
        assert_eq!(decide(None, &["pay"], Some(UNMARKED), false), mark(false));
        assert_eq!(decide(marker("other"), &[], Some("other"), false), mark(true));
        assert_eq!(decide(None, &["pay"], Some("other"), false), mark(false), "it ended while it took the vhost over");
        for refused in [
            decide(None, &["pay"], None, false),
            decide(marker("other"), &["pay"], None, true),
            decide(marker("other"), &[], Some(UNMARKED), true),
            decide(marker("third"), &[], Some("other"), true),
        ] {
            assert!(matches!(refused, Claim::Refused(_)), "{refused:?}");
        }
    }
}
