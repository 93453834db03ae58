//! `wirepost revoke`: ends sessions of a business's clients before their time, through the edge's sessions call.

use std::process::ExitCode;

use crate::{
    edge::{self, Edge},
    output,
};

/// End sessions of a business's clients: their connections, and the tokens with which they would come back.
///
/// Every edge closes them within a second, also one that starts later. A client that comes back asks for a new token,
/// so make sure that your token call refuses whom you want to keep out. Exit status: 0 = the broker confirmed it, 1 =
/// not.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("whose").required(true).multiple(true)))]
pub(crate) struct Args {
    /// The business whose clients they are.
    business: String,
    /// All sessions of this identity.
    #[arg(long, group = "whose", conflicts_with = "connection_id")]
    unique_id: Option<String>,
    /// The session of this connection, as frames, events and logs name it.
    #[arg(long, group = "whose")]
    connection_id: Option<String>,
    /// Only sessions whose token was handed out until then, in ms since the epoch. Alone: of all clients.
    #[arg(long, group = "whose")]
    issued_before: Option<i64>,
    /// The edge.
    #[arg(long, default_value = edge::DEFAULT_URL, env = "WIREPOST_URL")]
    url: String,
    /// Key of the business's services. Default: the key of `wirepost dev`, dev-<business>.
    #[arg(long, env = edge::API_KEY, hide_env_values = true)]
    api_key: Option<String>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args { business, unique_id, connection_id, issued_before, url, api_key } = args;
    let edge = Edge::new(&url)?;
    let key = api_key.unwrap_or_else(|| edge::dev_key(&business));
    let issued_before = issued_before.map(|time| time.to_string());
    let query: Vec<(&str, &str)> =
        [("uniqueId", &unique_id), ("connectionId", &connection_id), ("issuedBefore", &issued_before)]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.as_deref()?)))
            .collect();
    let answer = edge.revoke(&business, &key, &query).await?;
    if answer.result == 0 {
        let before = &answer.data["issuedBefore"];
        output::line(&format!("revoked: sessions that began until {before} (ms since the epoch) end on every edge"))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::error_line(&format!("wirepost: {} (result {})", answer.description, answer.result));
    Ok(ExitCode::FAILURE)
}
