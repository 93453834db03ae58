//! An edge's admin port without an edge behind it: reports every configuration in the namespace as running, as soon as it exists.
//! For tests of the operator alone, which must not depend on how fast an edge is.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::operator::World;

/// Business → hash, of all that are not on their way out.
type Hashes = BTreeMap<String, String>;

/// See the module. Gone when dropped; [`World::leave`] takes it out of the EndpointSlices.
pub struct Mirror {
    /// Where it is asked.
    pub admin: SocketAddr,
    silent: watch::Sender<bool>,
    tasks: [JoinHandle<()>; 2],
}

impl Mirror {
    /// One that the operator knows under this name.
    pub async fn start(world: &World, name: &str) -> Result<Self> {
        let address = world.cluster.address.context("WIREPOST_TEST_ADDRESS is not set")?;
        let listener = TcpListener::bind((address, 0)).await?;
        let admin = listener.local_addr()?;
        let config_maps: Api<PartialObjectMeta<ConfigMap>> = world.cluster.api(&world.system.name);
        let (silent, hears) = watch::channel(false);
        let (known, hashes) = watch::channel(None);
        let follower = tokio::spawn(follow(config_maps, known));
        let listener = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (hashes, mut hears) = (hashes.clone(), hears.clone());
                // Ends after the answer, or when the peer has closed.
                tokio::spawn(async move {
                    tokio::select! {
                        _ = hears.wait_for(|silent| *silent) => {}
                        _ = answer(socket, hashes) => {}
                    }
                });
            }
        });
        world.endpoint(name, admin).await?;
        Ok(Self { admin, silent, tasks: [follower, listener] })
    }

    /// Whether it closes every connection, open ones too, without an answer.
    pub fn silence(&self, silent: bool) {
        self.silent.send_replace(silent);
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn answer(mut socket: TcpStream, mut hashes: watch::Receiver<Option<Hashes>>) -> Result<()> {
    let mut question = Vec::new();
    while !question.ends_with(b"\r\n\r\n") {
        anyhow::ensure!(socket.read_buf(&mut question).await? > 0, "no question");
    }
    let question = String::from_utf8(question)?.to_lowercase();
    let asked = question.lines().find_map(|line| line.strip_prefix("if-none-match: "));
    let wait = question.split_once("wait=").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    let until = Instant::now() + Duration::from_secs(wait.unwrap_or_default());
    loop {
        let known = hashes.wait_for(Option::is_some).await?.clone();
        let body = json!({"edge": "mirror", "businesses": known}).to_string();
        let tag = format!("\"{:08x}\"", body.bytes().fold(7u32, |sum, b| sum.wrapping_mul(31).wrapping_add(b.into())));
        let same = asked == Some(tag.as_str());
        if same && Instant::now() < until {
            if let Ok(changed) = timeout_at(until, hashes.changed()).await {
                changed?;
            }
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

/// Keeps `known` as the namespace is, from the first complete list on.
async fn follow(config_maps: Api<PartialObjectMeta<ConfigMap>>, known: watch::Sender<Option<Hashes>>) {
    let wanted = watcher::Config::default().labels("wirepost.dev/config=business,!wirepost.dev/removed");
    let events = watcher(config_maps, wanted).default_backoff();
    pin_mut!(events);
    let mut listed = Hashes::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(map)) => listed.extend(entry(&map)),
            Ok(watcher::Event::InitDone) => drop(known.send_replace(Some(std::mem::take(&mut listed)))),
            Ok(watcher::Event::Apply(map)) => {
                known.send_modify(|known| known.get_or_insert_default().extend(entry(&map)));
            }
            Ok(watcher::Event::Delete(map)) => known.send_modify(|known| {
                if let (Some(known), Some(business)) = (known, business(&map)) {
                    known.remove(&business);
                }
            }),
            Err(error) => eprintln!("the mirror's watch: {error}"),
        }
    }
}

fn business(map: &PartialObjectMeta<ConfigMap>) -> Option<String> {
    map.name_any().strip_prefix("wirepost-business-").map(str::to_owned)
}

fn entry(map: &PartialObjectMeta<ConfigMap>) -> Option<(String, String)> {
    Some((business(map)?, map.annotations().get("wirepost.dev/hash")?.clone()))
}
