//! The soak's auditor on a whole run without faults, in which proxies lie to some clients.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use wirepost_soak::audit::Kind;
use wirepost_soak::lies::Lie;
use wirepost_soak::report;
use wirepost_soak::run::{Found, Options, run};

#[tokio::test(flavor = "multi_thread")]
async fn the_auditor_finds_each_lie_at_its_victim_and_nothing_else() -> Result<()> {
    let options = Options {
        time: Duration::from_secs(9),
        seed: 1,
        edges: 2,
        pace: Duration::from_millis(150),
        nodes: 0,
        operator: false,
        lies: true,
    };
    let Found { record, violations, .. } = run(options).await?;
    let found: BTreeSet<(String, Kind)> = violations
        .iter()
        .map(|violation| {
            let client = violation.client.map(|client| record.clients[client].name.clone());
            let sender = violation.message.map(|message| record.messages[message].sender.clone());
            (client.or(sender).unwrap_or_else(|| violation.what.clone()), violation.kind)
        })
        .collect();
    let expected: BTreeSet<_> = Lie::ALL.iter().map(|lie| (lie.victim(), lie.kind())).collect();
    assert_eq!(found, expected, "{}", report::violations(&record, &violations));
    Ok(())
}
