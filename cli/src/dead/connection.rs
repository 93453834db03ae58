//! The connection to the broker, and what its errors mean to a user.

use std::time::Duration;

use wirepost_amqp::{Error, v091::Connection};

use super::access::Target;

/// AMQP heartbeat.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(10);

pub(super) async fn connect(target: &Target) -> anyhow::Result<Connection> {
    let mut connection = Connection::open(&target.endpoint, HEARTBEAT).await?;
    connection.confirm().await?;
    Ok(connection)
}

pub(super) fn explain(error: Error, object: &str) -> anyhow::Error {
    let remedy = match &error {
        Error::Channel { code: 404, .. } => {
            "; is the business correct, and has the operator (or wirepost dev) created its queues?"
        }
        Error::Channel { code: 403, .. } => "; use the business's own user (the access Secret)",
        _ => "",
    };
    anyhow::Error::new(error).context(format!("{object}{remedy}"))
}
