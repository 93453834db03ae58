//! What you need to try a business: commands that work without changes.

use std::{
    env,
    fmt::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::{Value, json};
use wirepost_core::{
    Compiled, SendType,
    content::example,
    edge_config::{Audience, BusinessConfig, RouteConfig},
    envelope::EVERYONE,
    names, pattern,
};

use crate::edge;

/// The identity in all commands.
const IDENTITY: &str = "alice";

/// Common to all cards.
pub(super) struct Cards {
    /// Where the edge listens.
    pub public: SocketAddr,
    /// `None` = each business has the key that its name implies.
    pub api_key: Option<String>,
    /// What it shows, if it speaks TLS.
    pub certificate: Option<PathBuf>,
}

impl Cards {
    /// The address to call; for an edge that listens on all addresses the loopback address.
    pub(super) fn url(&self) -> String {
        let ip = match self.public.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", SocketAddr::new(ip, self.public.port()))
    }

    /// Commands for one business. `shown`: messages on its queues are printed.
    pub(super) fn card(&self, compiled: &Compiled, file: Option<&Path>, shown: bool) -> String {
        let name = &compiled.business;
        let url = self.url();
        let key = self.api_key.clone().unwrap_or_else(|| edge::dev_key(name));
        let mut options = String::new();
        if url != edge::DEFAULT_URL {
            let _ = write!(options, " --url {url}");
        }
        if let Some(key) = &self.api_key {
            let _ = write!(options, " --api-key {}", quoted(key));
        }
        let example = Example::of(&compiled.config);
        let client_type = &example.client_type;
        let file = file.map(|file| format!("  ({})", file.display())).unwrap_or_default();
        let mut lines = vec![String::new(), format!("{name}{file}")];
        lines.push(format!(
            "  token    curl -s -H {} '{url}/{name}/websocket/token?uniqueId={IDENTITY}&clientType={client_type}'",
            quoted(&format!("X-Api-Key: {key}")),
        ));
        lines.push(format!(
            "  connect  {}/socket/{{token}}   (the token call's \"data\")",
            url.replacen("http", "ws", 1)
        ));
        lines.push(format!(
            "  listen   wirepost listen --business {name} --id {IDENTITY} --client-type {client_type}{options}"
        ));
        match example.push {
            Some(Ok(push)) => lines.push(format!("  push     wirepost push {name} {}{options}", quoted(&push))),
            Some(Err(none)) => lines.push(format!("  push     {none}")),
            None => {}
        }
        if let Some((from, send)) = example.send {
            let where_to =
                if from == *client_type { "into `listen`".to_owned() } else { format!("as client type {from}") };
            lines.push(match send {
                Ok(send) => format!("  type     {send}   ({where_to})"),
                Err(none) => format!("  type     {none}"),
            });
        }
        let queues: Vec<&str> = shown_queues(compiled).collect();
        if !queues.is_empty() {
            let remark = if shown {
                "messages are shown here"
            } else {
                "for your service; --show-queues consumes and shows them"
            };
            lines.push(format!("  queues   {}   ({remark})", queues.join(", ")));
        }
        lines.join("\n")
    }
}

/// The queues that a business's services consume.
pub(super) fn shown_queues(compiled: &Compiled) -> impl Iterator<Item = &str> {
    let prefix = names::route_queue(&compiled.business, "");
    let own = compiled.topology.queues.iter().map(|queue| queue.name.as_str());
    own.filter(move |name| name.starts_with(&prefix))
        .chain(compiled.topology.existing_queues.iter().map(String::as_str))
}

/// Messages that a declaration allows. An `Err` says why there is no example.
struct Example {
    client_type: String,
    push: Option<Result<String, String>>,
    /// With its sender's client type.
    send: Option<(String, Result<String, String>)>,
}

impl Example {
    /// If possible, one client type receives the push and sends the message.
    fn of(config: &BusinessConfig) -> Self {
        let of = |direction: SendType| config.routes.iter().filter(move |route| route.send_type == direction);
        let senders: Vec<&RouteConfig> = of(SendType::ClientToServer).chain(of(SendType::ClientToClient)).collect();
        let both = of(SendType::ServerToClient)
            .find_map(|push| Some((push, push.to.iter().find(|t| senders.iter().any(|s| s.from.contains(t)))?)));
        let push = both.map(|(push, _)| push).or_else(|| of(SendType::ServerToClient).next());
        let client_type = both
            .map(|(_, client_type)| client_type)
            .or_else(|| push.and_then(|push| push.to.first()))
            .or_else(|| senders.first().and_then(|route| route.from.first()))
            .or_else(|| config.client_types.first());
        let client_type = client_type.cloned().unwrap_or_default();
        let sender = senders.iter().find(|route| route.from.contains(&client_type)).or_else(|| senders.first());
        let send = sender.map(|route| {
            let from = if route.from.contains(&client_type) { client_type.clone() } else { route.from[0].clone() };
            (from, message(route, route.send_type == SendType::ClientToClient))
        });
        Self { client_type, push: push.map(|route| message(route, true)), send }
    }
}

/// An envelope, in reading order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sample<'a> {
    message_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    to_unique_id: Option<&'a str>,
    content: Value,
}

fn message(route: &RouteConfig, addressed: bool) -> Result<String, String> {
    let to = if route.audience == Audience::Everyone { EVERYONE } else { IDENTITY };
    let content = match &route.schema {
        None => json!({}),
        Some(schema) => example::of(schema)
            .ok_or_else(|| format!("{} (no example: none was found that matches its schema)", route.message_type))?,
    };
    let sample =
        Sample { message_type: pattern::example(&route.message_type), to_unique_id: addressed.then_some(to), content };
    serde_json::to_string(&sample).map_err(|error| format!("{} (no example: {error})", route.message_type))
}

/// Quoted for a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// How to call this program from another terminal, if `wirepost` is not on the path.
pub(super) fn alias() -> Option<String> {
    let this = env::current_exe().ok()?;
    let on_path = env::var_os("PATH").is_some_and(|path| {
        env::split_paths(&path).any(|folder| folder.join("wirepost").canonicalize().ok() == this.canonicalize().ok())
    });
    (!on_path).then(|| format!("alias wirepost={}", this.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(routes: &Value) -> BusinessConfig {
        let business = serde_json::from_value(json!({
            "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness", "metadata": {"name": "pay"},
            "spec": {"clientTypes": ["h5", "app"], "routes": routes},
        }));
        wirepost_core::compile::compile_one(&business.unwrap()).unwrap().config
    }

    #[test]
    fn the_example_uses_one_client_type_for_both_directions() {
        let example = Example::of(&config(&json!([
            {"messageType": "paid.*", "sendType": "ServerToClient", "to": ["h5", "app"]},
            {"messageType": "ask", "sendType": "ClientToServer", "from": ["app"], "queue": {"name": "q"},
             "schema": {"type": "object", "required": ["id", "n"], "properties": {"id": {"type": "string"}, "n": {"type": "integer", "minimum": 5}}}},
        ])));
        assert_eq!(example.client_type, "app");
        let push = r#"{"messageType":"paid.example","toUniqueId":"alice","content":{}}"#;
        assert_eq!(example.push, Some(Ok(push.into())));
        let send = r#"{"messageType":"ask","content":{"id":"example-1","n":5}}"#;
        assert_eq!(example.send, Some(("app".into(), Ok(send.into()))));
    }

    #[test]
    fn an_example_that_does_not_match_its_schema_is_not_shown() {
        let example = Example::of(&config(&json!([
            {"messageType": "code", "sendType": "ServerToClient", "to": ["app"],
             "schema": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"}},
            {"messageType": "ask", "sendType": "ClientToServer", "from": ["app"], "queue": {"name": "q"},
             "schema": {"type": "object", "minProperties": 2}},
        ])));
        let push = r#"{"messageType":"code","toUniqueId":"alice","content":"AAA-1111"}"#;
        assert_eq!(example.push, Some(Ok(push.into())));
        let none = "ask (no example: none was found that matches its schema)";
        assert_eq!(example.send, Some(("app".into(), Err(none.into()))));
    }

    #[test]
    fn a_business_without_pushes_has_an_example_too() {
        let example = Example::of(&config(
            &json!([{"messageType": "ask", "sendType": "ClientToServer", "queue": {"name": "q"}}]),
        ));
        assert_eq!((example.client_type.as_str(), example.push), ("h5", None));
    }

    #[test]
    fn a_quote_survives_the_shell() {
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
