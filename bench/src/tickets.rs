//! Tickets made with the edge's own keys: the token call is no part of what is measured.

use anyhow::Result;
use wirepost_edge::identity::{
    keys::KeyRing,
    ticket::{self, Purpose, Ticket},
};
use wirepost_runtime::clock;
use wirepost_testing::setup::Setup;

const DAY_MS: i64 = 86_400_000;

/// Tickets of the identities `user-0`, `user-1`, … of the business `bench`, valid for a day.
pub async fn make(setup: &Setup, count: usize) -> Result<Vec<String>> {
    let keys = KeyRing::load(setup.keys_file()).await?;
    Ok((0..count).map(|i| ticket(&keys, &format!("user-{i}"))).collect())
}

fn ticket(keys: &KeyRing, unique_id: &str) -> String {
    let ends = clock::now_ms() + DAY_MS;
    let ticket = Ticket {
        purpose: Purpose::Connect,
        business: "bench".into(),
        unique_id: unique_id.into(),
        client_type: "app".into(),
        tags: vec![],
        session_ends_at: ends,
        expires_at: ends,
        id: [0; 16],
    };
    ticket::seal(keys, &ticket)
}
