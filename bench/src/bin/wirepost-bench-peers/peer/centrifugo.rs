//! Centrifugo 6: its JSON protocol, clients with a JWT, publishing by its HTTP API.
//!
//! A client hears its personal channel; where pushes are for everyone, also one that the server subscribes it to. Messages from clients are
//! published into a channel of each, which nobody hears. With Redis every channel has a history.

use std::{fs, net::SocketAddr, path::PathBuf, rc::Rc};

use anyhow::{Context, Result, ensure};
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::{client::IntoClientRequest, http::Request};
use wirepost_testing::{
    broker::{PATIENCE, eventually},
    process::Process,
};

use super::{CORE, Peer, Programs, Running};
use crate::protocol::{Post, Protocol, Seen, To, number_after};

const SECRET: &str = "a secret of a benchmark";
const API_KEY: &str = "a key of a benchmark";
const EVERYONE: &str = "news:all";
/// The number of the command that connects; those of messages follow.
const CONNECT: usize = 1;
const FIRST_MESSAGE: usize = 2;

struct Centrifugo {
    address: SocketAddr,
    listening: bool,
}

pub(super) async fn start(programs: &Programs, redis: Option<&PathBuf>, listening: bool) -> Result<Peer> {
    let folder = tempfile::tempdir()?;
    let mut processes = Vec::new();
    let mut settings = settings(redis.is_some());
    let mut behind = None;
    if let Some(redis) = redis {
        let port = free_port().await?;
        let process = Process::spawn_other(redis, None, "redis", folder.path(), |command| {
            command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        })?;
        process.be_quiet();
        opens(&process, port).await?;
        behind = Some(process.pid);
        settings["engine"] = json!({"type": "redis", "redis": {"address": [format!("redis://127.0.0.1:{port}")]}});
        processes.push(process);
    }
    let port = free_port().await?;
    settings["http_server"] = json!({"address": "127.0.0.1", "port": port});
    let file = folder.path().join("config.json");
    fs::write(&file, settings.to_string())?;
    let process = Process::spawn_other(&programs.centrifugo, Some(CORE), "centrifugo", folder.path(), |command| {
        command.arg("--config").arg(&file).env("PATH", "/usr/bin:/bin").env("HOME", folder.path());
    })?;
    process.be_quiet();
    opens(&process, port).await?;
    let server = process.pid;
    processes.push(process);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    Ok(Peer {
        protocol: Rc::new(Centrifugo { address, listening }),
        service: None,
        server,
        behind,
        _running: Running::Centrifugo { _processes: processes, _folder: folder },
    })
}

fn settings(history: bool) -> Value {
    let namespace = |name: &str| {
        let mut namespace = json!({"name": name});
        if history {
            namespace["history_size"] = json!(100);
            namespace["history_ttl"] = json!("300s");
        }
        namespace
    };
    let mut up = namespace("up");
    up["allow_publish_for_client"] = json!(true);
    json!({
        "client": {
            "allowed_origins": ["*"],
            "token": {"hmac_secret_key": SECRET},
            "subscribe_to_user_personal_channel": {"enabled": true, "personal_channel_namespace": "personal"},
        },
        "http_api": {"key": API_KEY},
        "channel": {"namespaces": [namespace("news"), namespace("personal"), up]},
        "log": {"level": "warn"},
    })
}

async fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port())
}

async fn opens(process: &Process, port: u16) -> Result<()> {
    eventually(&format!("{} listens", process.name), PATIENCE, || async {
        ensure!(process.running(), "{} ended: {}", process.name, process.log());
        Ok(TcpStream::connect(("127.0.0.1", port)).await.is_ok())
    })
    .await
}

fn channel(to: To) -> String {
    match to {
        To::Everyone => EVERYONE.to_owned(),
        To::One(client) => format!("personal:#user-{client}"),
    }
}

impl Protocol for Centrifugo {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn upgrade(&self, _client: usize) -> Result<Request<()>> {
        Ok("ws://localhost/connection/websocket".into_client_request()?)
    }

    fn hello(&self, client: usize) -> Result<Option<String>> {
        let channels = if self.listening { vec![EVERYONE] } else { vec![] };
        let claims = json!({"sub": format!("user-{client}"), "exp": 4_102_444_800_u64, "channels": channels});
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        let token = jsonwebtoken::encode(&Header::default(), &claims, &key).context("a token")?;
        Ok(Some(json!({"id": CONNECT, "connect": {"token": token}}).to_string()))
    }

    fn read(&self, frame: &str, seen: &mut dyn FnMut(Seen)) {
        for line in frame.split('\n') {
            if line == "{}" {
                // Its ping.
                seen(Seen::Answer("{}"));
            } else if line.starts_with("{\"id\":") {
                match number_after(line, "{\"id\":") {
                    _ if line.contains("\"error\":") => seen(Seen::Refused(line.to_owned())),
                    Some(CONNECT) => seen(Seen::Ready),
                    Some(id) if id >= FIRST_MESSAGE => seen(Seen::Ack(id - FIRST_MESSAGE)),
                    _ => seen(Seen::Refused(line.to_owned())),
                }
            } else if line.contains("\"disconnect\":") {
                seen(Seen::Refused(line.to_owned()));
            }
        }
    }

    fn up(&self, client: usize, number: usize, payload: &str) -> String {
        let id = number + FIRST_MESSAGE;
        format!(r#"{{"id":{id},"publish":{{"channel":"up:{client}","data":"{payload}"}}}}"#)
    }

    fn post(&self, pushes: &[(To, String)]) -> Post {
        let command = |(to, payload): &(To, String)| json!({"channel": channel(*to), "data": payload});
        if let [push] = pushes {
            return Post { path: "/api/publish", body: command(push) };
        }
        let commands: Vec<_> = pushes.iter().map(|push| json!({"publish": command(push)})).collect();
        Post { path: "/api/batch", body: json!({"commands": commands}) }
    }

    fn api_key(&self) -> &'static str {
        API_KEY
    }
}
