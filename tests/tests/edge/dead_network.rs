//! A network that goes silent tells nobody: `wirepost listen` notices within 35 s and is back within 40, as the protocol asks of every
//! client.

use std::fs::OpenOptions;
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::process::Process;
use wirepost_testing::proxy::Proxy;
use wirepost_testing::setup::{PAYMENTS, Setup};

/// What the protocol promises, and what a machine with many tests may add.
const BACK: Duration = Duration::from_secs(40 + 8);

#[tokio::test]
async fn listen_is_back_within_forty_seconds_of_a_silent_network() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    let network = Proxy::start(edge.public).await?;
    let typed = setup.dir().join("typed");
    ensure!(Command::new("mkfifo").arg(&typed).status()?.success());
    // Read and write, so that opening it waits for nobody.
    let open = || OpenOptions::new().read(true).write(true).open(&typed);
    let (stdin, mut keyboard) = (open()?, open()?);
    let listen = Process::spawn("wirepost", "alice", setup.dir(), |command| {
        command
            .args(["listen", "--business=payments", "--id=alice", "--client-type=app"])
            .arg(format!("--url=http://{}", network.address))
            .env("WIREPOST_API_KEY", setup.api_key())
            .stdin(stdin);
    })?;
    let welcomes = || listen.log().matches(r#""op":"welcome""#).count();
    eventually("it is connected", PATIENCE, || async { Ok(welcomes() == 1) }).await?;

    network.forget();
    let begun = Instant::now();
    // More than the kernel takes: a client that waits for its own writes would notice nothing.
    let line = json!({"id": "o", "messageType": "order.placed", "content": "x".repeat(50_000)}).to_string();
    std::thread::spawn(move || {
        for _ in 0..400 {
            if writeln!(keyboard, "{line}").is_err() {
                return;
            }
        }
    });
    let push = json!({"messageType": "payment.completed", "toUniqueId": "alice", "content": "meanwhile"});
    ensure!(edge.post(&push).await?.0 == 200);
    eventually("it notices", BACK, || async { Ok(listen.log().contains("nothing received for 35s")) }).await?;
    let noticed = begun.elapsed();
    eventually("it is back", BACK.saturating_sub(noticed), || async { Ok(welcomes() == 2) }).await?;
    println!("noticed after {noticed:?}, back after {:?}", begun.elapsed());
    eventually("what was pushed meanwhile comes", PATIENCE, || async { Ok(listen.log().contains("meanwhile")) })
        .await?;
    ensure!(listen.log().contains(r#""resumed":true"#), "it did not go on from its cursor");
    Ok(())
}
