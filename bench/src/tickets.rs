//! Tickets made with the edge's own keys: the token call is no part of what is measured.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use wirepost_edge::identity::{
    grant::Grant,
    keys::KeyRing,
    ticket::{self, Purpose, Ticket},
};
use wirepost_runtime::clock;
use wirepost_testing::setup::Setup;

const DAY_MS: i64 = 86_400_000;
/// Tickets so far.
static MADE: AtomicU64 = AtomicU64::new(0);

/// Makes tickets of the business `bench`, valid for a day.
pub struct Mint(KeyRing);

impl Mint {
    /// With the keys of a setup's edges.
    pub async fn load(setup: &Setup) -> Result<Self> {
        Ok(Self(KeyRing::load(setup.keys_file()).await?))
    }

    /// A ticket of this identity.
    pub fn ticket(&self, unique_id: &str) -> String {
        let ends = clock::now_ms() + DAY_MS;
        let ticket = Ticket {
            purpose: Purpose::Connect,
            business: "bench".into(),
            unique_id: unique_id.into(),
            client_type: "app".into(),
            tags: vec![],
            session_ends_at: ends,
            expires_at: ends,
            // Each is good once.
            id: u128::from(MADE.fetch_add(1, Ordering::Relaxed)).to_be_bytes(),
            grant: Grant::new(clock::now_ms(), 0, 0),
        };
        ticket::seal(&self.0, &ticket)
    }
}

/// Tickets of the identities `user-0`, `user-1`, …
pub async fn make(setup: &Setup, count: usize) -> Result<Vec<String>> {
    let mint = Mint::load(setup).await?;
    Ok((0..count).map(|i| mint.ticket(&format!("user-{i}"))).collect())
}
