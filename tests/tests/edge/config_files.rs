//! A directory of configurations as people have it: what one file is, no other business feels.

use std::os::unix::fs::symlink;
use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::edge::Edge;
use wirepost_testing::setup::{PAYMENTS, Setup, TICKER};

async fn hash(edge: &Edge, business: &str) -> Result<Value> {
    let configz: Value = serde_json::from_str(&edge.admin("/configz").await?.1)?;
    Ok(configz["businesses"][business].clone())
}

async fn runs(edge: &Edge, business: &str, expected: &str) -> Result<()> {
    eventually(&format!("the change of {business} runs"), PATIENCE, || async {
        Ok(hash(edge, business).await? == json!(expected))
    })
    .await
}

/// Changes a business's configuration by its file.
fn change(setup: &Setup, business: &str, generation: i64) -> Result<String> {
    setup.reconfigure(business, |config| config.generation = generation)?;
    let mut config = setup.config(business)?;
    config.generation = generation;
    Ok(config.hash())
}

#[tokio::test]
async fn one_bad_file_stops_no_other_business() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS, TICKER]).await?;
    let dir = setup.config_dir();
    symlink("/nowhere/at/all.json", dir.join("dangling.json"))?;
    std::fs::create_dir(dir.join("folder.json"))?;
    std::fs::write(dir.join("large.json"), vec![b' '; (1 << 20) + 1])?;
    std::fs::write(dir.join("gbk.json"), b"{\"businessType\":\"\xb6\xa9\xb5\xa5\"}")?;
    std::fs::write(dir.join("list.json"), "[]")?;
    ensure!(Command::new("mkfifo").arg(dir.join("pipe.json")).status()?.success());
    symlink("/dev/zero", dir.join("endless.json"))?;
    // Looks like the first one, and must not win by its name.
    let mut second = setup.config("payments")?;
    second.client_types = vec!["pos".to_owned()];
    std::fs::write(dir.join("0-second.json"), serde_json::to_vec(&second)?)?;

    // A new edge gets ready with all of that.
    let edge = setup.edge("e1").start().await?;
    let mut alice = edge.client("alice", "app").connect().await?;
    edge.client("bob", "app").business("ticker").connect().await?;
    assert_eq!(edge.count("wirepost_edge_bad_configs_total").await?, 8);
    let log = edge.log();
    for file in ["dangling", "folder", "large", "gbk", "list", "pipe", "endless", "0-second"] {
        let told = log.lines().filter(|line| line.contains("ERROR") && line.contains(&format!("{file}.json"))).count();
        assert_eq!(told, 1, "{file}: {log}");
    }
    // Changes of the others are loaded, and what was reported is not reported again.
    for generation in [7, 8] {
        let changed = change(&setup, "ticker", generation)?;
        runs(&edge, "ticker", &changed).await?;
    }
    assert_eq!(edge.count("wirepost_edge_bad_configs_total").await?, 8);

    // A good file that becomes a bad one keeps its business, also where another file would like to have it.
    let good = change(&setup, "payments", 3)?;
    runs(&edge, "payments", &good).await?;
    let file = dir.join("payments.json");
    std::fs::remove_file(&file)?;
    std::fs::create_dir(&file)?;
    eventually("it is counted", PATIENCE, || async { Ok(edge.count("wirepost_edge_bad_configs_total").await? > 8) })
        .await?;
    let changed = change(&setup, "ticker", 9)?;
    runs(&edge, "ticker", &changed).await?;
    assert_eq!(hash(&edge, "payments").await?, json!(good));
    alice.send_acked(&json!({"id": "o", "messageType": "order.placed"})).await?;
    // Once it is gone the other one takes its place.
    std::fs::remove_dir(&file)?;
    runs(&edge, "payments", &second.hash()).await
}
