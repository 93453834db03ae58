//! An edge's admin port without an edge behind it: reports every configuration in the namespace as running, as soon as it exists.
//! For tests of the operator alone, which must not depend on how fast an edge is.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::{Map, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::operator::World;

const POLL: Duration = Duration::from_millis(50);

/// See the module. Gone when dropped; [`World::leave`] takes it out of the EndpointSlices.
pub struct Mirror {
    /// Where it is asked.
    pub admin: SocketAddr,
    silent: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Mirror {
    /// One that the operator knows under this name.
    pub async fn start(world: &World, name: &str) -> Result<Self> {
        let address = world.cluster.address.context("WIREPOST_TEST_ADDRESS is not set")?;
        let listener = TcpListener::bind((address, 0)).await?;
        let admin = listener.local_addr()?;
        let config_maps: Api<ConfigMap> = world.cluster.api(&world.system.name);
        let (silent, hears) = watch::channel(false);
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (config_maps, mut hears) = (config_maps.clone(), hears.clone());
                // Ends after the answer, or when the peer has closed.
                tokio::spawn(async move {
                    tokio::select! {
                        _ = hears.wait_for(|silent| *silent) => {}
                        _ = answer(socket, config_maps) => {}
                    }
                });
            }
        });
        world.endpoint(name, admin).await?;
        Ok(Self { admin, silent, task })
    }

    /// Whether it closes every connection, open ones too, without an answer.
    pub fn silence(&self, silent: bool) {
        self.silent.send_replace(silent);
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut socket: TcpStream, config_maps: Api<ConfigMap>) -> Result<()> {
    let mut question = Vec::new();
    while !question.ends_with(b"\r\n\r\n") {
        anyhow::ensure!(socket.read_buf(&mut question).await? > 0, "no question");
    }
    let question = String::from_utf8(question)?.to_lowercase();
    let known = question.lines().find_map(|line| line.strip_prefix("if-none-match: "));
    let wait = question.split_once("wait=").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    let until = Instant::now() + Duration::from_secs(wait.unwrap_or_default());
    loop {
        let body = json!({"edge": "mirror", "businesses": hashes(&config_maps).await?}).to_string();
        let tag = format!("\"{:08x}\"", body.bytes().fold(7u32, |sum, b| sum.wrapping_mul(31).wrapping_add(b.into())));
        let same = known == Some(tag.as_str());
        if same && Instant::now() < until {
            sleep(POLL).await;
            continue;
        }
        let (status, body) = if same { ("304 Not Modified", "") } else { ("200 OK", body.as_str()) };
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 {status}\r\netag: {tag}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        return Ok(socket.write_all(answer.as_bytes()).await?);
    }
}

/// Business → hash, of all that are not on their way out.
async fn hashes(config_maps: &Api<ConfigMap>) -> Result<Map<String, serde_json::Value>> {
    let all =
        config_maps.list(&ListParams::default().labels("wirepost.dev/config=business,!wirepost.dev/removed")).await?;
    let entry = |map: &ConfigMap| {
        let business = map.name_any().strip_prefix("wirepost-business-")?.to_owned();
        Some((business, json!(map.annotations().get("wirepost.dev/hash")?)))
    };
    Ok(all.iter().filter_map(entry).collect())
}
