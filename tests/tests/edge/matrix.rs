//! Who may do what: every operation that exists, tried by everybody who could try it, for the own business and for another one. What is
//! right stands in the tables of docs/security.md, which must have a row for each.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use wirepost_core::SendType;
use wirepost_core::edge_config::{ApiKey, RouteConfig};
use wirepost_core::hex;
use wirepost_edge::http::operation::Operation;
use wirepost_testing::client::{Client, Event};
use wirepost_testing::edge::Edge;
use wirepost_testing::service::{Service, next_json};
use wirepost_testing::setup::Setup;
use wirepost_topology::Access;

use crate::sweep::{Object, objects, tried};

const DOCUMENT: &str = include_str!("../../../docs/security.md");
const OWN: &str = "payments";
/// Begins like the other one, so that a pattern without an anchor would show.
const FOREIGN: &str = "payments-2";
const TYPES: [&str; 3] = ["app", "h5", "pos"];
/// The last message, which everybody gets.
const LAST: &str = "end.reached";

/// The rows of the table behind a heading: the first cell without its code marks, and the other cells by the name of their column.
fn table(heading: &str) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    let (_, section) = DOCUMENT.split_once(heading).with_context(|| format!("docs/security.md has no {heading}"))?;
    let lines = section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let mut lines = lines.map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")));
    let names: Vec<String> = lines.next().context("an empty table")?.collect();
    let rows = lines.skip(1).map(|mut row| {
        let key = row.next().unwrap_or_default();
        (key, names.iter().skip(1).cloned().zip(row).collect())
    });
    Ok(rows.collect())
}

/// All cells that are otherwise than they should be, in one error.
fn compare(what: &str, is: &BTreeMap<String, BTreeMap<String, String>>) -> Result<()> {
    let should = table(what)?;
    let known: BTreeSet<_> = should.keys().collect();
    let found: BTreeSet<_> = is.keys().collect();
    ensure!(known == found, "{what}: only in the table or only in the code: {:?}", known.symmetric_difference(&found));
    let mut wrong = Vec::new();
    for (row, cells) in is {
        for (column, cell) in cells {
            let expected = should[row].get(column).with_context(|| format!("{what}: no column {column}"))?;
            if expected != cell {
                wrong.push(format!("{row}, {column}: is {cell}, and the table says {expected}"));
            }
        }
        ensure!(cells.len() == should[row].len(), "{what}: {row} was not tried for each column");
    }
    ensure!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
    Ok(())
}

fn word(own: bool, foreign: bool) -> String {
    match (own, foreign) {
        (true, true) => "any",
        (true, false) => "own",
        (false, false) => "no",
        (false, true) => "for the foreign business alone",
    }
    .to_owned()
}

struct World {
    setup: Setup,
    edge: Edge,
    http: reqwest::Client,
    /// Signs tokens of clients of [`OWN`].
    issuer: EncodingKey,
}

impl World {
    /// Both businesses declare the same; each has a key of its own and an issuer of its own.
    async fn new() -> Result<Self> {
        let (own, foreign) = (issuer()?, issuer()?);
        let setup = Setup::new(&[&declaration(OWN, &own.1), &declaration(FOREIGN, &foreign.1)]).await?;
        for business in [OWN, FOREIGN] {
            let key = ApiKey { sha256: hex(Sha256::digest(key_of(business))), expires_at: None };
            setup.reconfigure(business, |config| config.auth.api_keys = vec![key])?;
        }
        let edge = setup.edge("e1").start().await?;
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_mins(1)).build()?;
        Ok(Self { setup, edge, http, issuer: own.0 })
    }

    fn call(&self, method: Method, path: &str) -> RequestBuilder {
        // What a revocation names is nobody's here.
        let query = if method == Method::DELETE { "uniqueId=nobody" } else { "uniqueId=alice&clientType=app" };
        let url = format!("http://{}{path}?{query}", self.edge.public);
        let body = if path.ends_with("/presence") {
            json!({"uniqueIds": ["alice"]})
        } else {
            json!({"messageType": LAST, "toUniqueId": "*", "content": {}})
        };
        self.http.request(method, url).body(body.to_string())
    }

    fn jwt(&self) -> Result<String> {
        let header = Header { kid: Some("k".to_owned()), ..Header::new(Algorithm::ES256) };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        let claims =
            json!({"iss": "https://id.example", "aud": "shop", "sub": "alice", "type": "app", "exp": now + 600});
        Ok(encode(&header, &claims, &self.issuer)?)
    }

    async fn ticket(&self, business: &str, id: &str, client_type: &str) -> Result<String> {
        let path = format!("/{business}/websocket/token?uniqueId={id}&clientType={client_type}");
        let url = format!("http://{}{path}", self.edge.public);
        let answer = self.http.get(url).header("x-api-key", key_of(business)).send().await?;
        let body: Value = answer.json().await?;
        let url = body["data"].as_str().with_context(|| format!("no ticket: {body}"))?;
        Ok(url.rsplit('/').next().unwrap_or_default().to_owned())
    }

    async fn client(&self, business: &str, client_type: &str) -> Result<Client> {
        let ticket = self.ticket(business, &format!("of-{client_type}"), client_type).await?;
        Client::connect(self.edge.public, &ticket).await
    }
}

fn key_of(business: &str) -> String {
    format!("the-key-of-{business}")
}

fn issuer() -> Result<(EncodingKey, Value)> {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes())?;
    let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&key, Algorithm::ES256)?)?;
    (jwk["kid"], jwk["use"]) = (json!("k"), json!("sig"));
    Ok((key, json!({"keys": [jwk]})))
}

/// Each accepts something from the other, so that there is an exchange for both.
fn declaration(name: &str, keys: &Value) -> String {
    let other = if name == OWN { FOREIGN } else { OWN };
    json!({
        "apiVersion": "wirepost.dev/v1alpha1",
        "kind": "WsBusiness",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "clientTypes": TYPES,
            "routes": [
                {"messageType": "order.placed", "sendType": "ClientToServer", "from": ["app"], "queue": {"name": "orders"}},
                {"messageType": "bill.paid", "sendType": "ServerToClient", "to": ["h5"], "audience": "Everyone",
                 "receipts": true, "receiptsWithinSeconds": 60},
                {"messageType": "chat.said", "sendType": "ClientToClient", "from": ["app"], "to": ["h5"], "audience": "Everyone"},
                {"messageType": LAST, "sendType": "ServerToClient", "to": TYPES, "audience": "Everyone"},
            ],
            "acceptFrom": [{"businessType": other, "messageTypes": ["said.elsewhere"]}],
            "auth": {"jwt": {
                "issuer": "https://id.example", "audiences": ["shop"], "jwks": {"inline": keys},
                "claims": {"uniqueId": "sub", "clientType": "type"},
            }},
        },
    })
    .to_string()
}

/// What a caller shows.
#[derive(Clone, Copy, Debug)]
enum Shown<'a> {
    Nothing,
    Bearer(&'a str),
    Key(&'a str),
}

impl Shown<'_> {
    fn add(self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Nothing => request,
            Self::Bearer(text) => request.bearer_auth(text),
            Self::Key(text) => request.header("x-api-key", text),
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Nothing => "nothing",
            Self::Bearer(text) | Self::Key(text) => text,
        }
    }
}

/// Whether an operation is done for a business.
async fn done(world: &World, operation: Operation, business: &str, shown: Shown<'_>) -> Result<bool> {
    if operation == Operation::Connect {
        // Under the subprotocol a refusal is a close frame.
        let mut client = Client::back(world.edge.public, shown.text(), None).await?;
        return Ok(matches!(client.event(Duration::from_mins(1)).await?, Event::Control(_)));
    }
    let path = operation.path().replace("{business}", business);
    let status = shown.add(world.call(operation.method(), &path)).send().await?.status().as_u16();
    ensure!([200, 400, 401, 403].contains(&status), "{operation:?} for {business} with {shown:?}: {status}");
    Ok(status == 200)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_operation_by_http_is_for_whom_the_table_says() -> Result<()> {
    let world = World::new().await?;
    let (jwt, ticket, key) = (world.jwt()?, world.ticket(OWN, "alice", "app").await?, key_of(OWN));
    let mut is = BTreeMap::new();
    for operation in Operation::ALL {
        let mut row = BTreeMap::new();
        for (column, shown) in [
            ("nobody, or an unknown credential", &[Shown::Nothing, Shown::Bearer("forged"), Shown::Key("forged")][..]),
            ("a client's token", &[Shown::Bearer(&jwt)]),
            ("a ticket", &[Shown::Bearer(&ticket)]),
            ("an API key", &[Shown::Key(&key), Shown::Bearer(&key)]),
        ] {
            let mut words = BTreeSet::new();
            for shown in shown {
                let own = done(&world, operation, OWN, *shown).await?;
                // The path of a socket names no business.
                let foreign = operation != Operation::Connect && done(&world, operation, FOREIGN, *shown).await?;
                words.insert(word(own, foreign));
            }
            ensure!(words.len() == 1, "{operation:?}: {column} is not one thing: {words:?}");
            row.extend(words.pop_first().map(|word| (column.to_owned(), word)));
        }
        is.insert(format!("{} {}", operation.method(), operation.path()), row);
    }
    compare("### By HTTP", &is)?;
    for path in ["/livez", "/readyz", "/metrics", "/configz"] {
        let outside = world.call(Method::GET, path).header("x-api-key", &key).send().await?.status();
        ensure!(outside == 404, "{path} on the public port: {outside}");
        ensure!(world.edge.admin(path).await?.0 == 200, "{path} is not on the admin port");
    }
    Ok(())
}

/// What a client was told of a message that it sent.
async fn sent(client: &mut Client, route: &RouteConfig, of: &str) -> Result<bool> {
    let id = format!("{of}-{}", route.message_type);
    let mut message = json!({"id": id, "messageType": route.message_type, "content": {"of": of}});
    if route.send_type != SendType::ClientToServer {
        message["toUniqueId"] = json!("*");
    }
    client.send(&message).await?;
    loop {
        match client.event(Duration::from_mins(1)).await? {
            Event::Control(frame) if frame["id"] == id.as_str() => return Ok(frame["op"] == "ack"),
            Event::End(end) => bail!("the connection ended: {end:?}"),
            Event::Control(_) | Event::Push(_) | Event::Position(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_message_is_for_the_client_types_that_the_table_says_and_stays_in_its_business() -> Result<()> {
    let world = World::new().await?;
    let routes: Vec<RouteConfig> = world.setup.config(OWN)?.routes;
    let mut is: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    let mut note = |verb: &str, kind: SendType, column: &str, own: bool, foreign: bool| {
        let row = is.entry(format!("{verb} {kind}")).or_default();
        row.entry(column.to_owned()).or_default().insert(word(own, foreign));
    };
    // Where a route can list nobody, it is the same for all.
    let columns = |listed: &[String], client_type: &str| -> &[&str] {
        match (listed.is_empty(), listed.iter().any(|one| one == client_type)) {
            (true, _) => &["a client of a listed type", "a client of another type"],
            (false, true) => &["a client of a listed type"],
            (false, false) => &["a client of another type"],
        }
    };

    // Who receives, before anybody sends by this edge.
    let mut receivers = Vec::new();
    for business in [OWN, FOREIGN] {
        for client_type in TYPES {
            receivers.push((business, client_type, world.client(business, client_type).await?));
        }
    }
    // Everybody sends everything: by a socket, and a service by HTTP.
    for route in &routes {
        for client_type in TYPES {
            let ticket = world.ticket(OWN, &format!("sender-{client_type}"), client_type).await?;
            let mut sender = Client::connect(world.edge.public, &ticket).await?;
            let own = route.message_type != LAST && sent(&mut sender, route, OWN).await?;
            for column in columns(&route.from, client_type) {
                note("send", route.send_type, column, own, false);
            }
        }
        for (business, key) in [(OWN, OWN), (FOREIGN, OWN)] {
            if route.message_type == LAST {
                continue;
            }
            let body =
                json!({"messageType": route.message_type, "toUniqueId": "*", "content": {"of": key}}).to_string();
            let path = Operation::Push.path().replace("{business}", business);
            let answer = world.call(Operation::Push.method(), &path).header("x-api-key", key_of(key)).body(body);
            let done = answer.send().await?.status().is_success();
            ensure!(business == OWN || !done, "a service pushes into another business");
            if business == OWN {
                note("send", route.send_type, "an API key", done, false);
            }
        }
    }
    for business in [OWN, FOREIGN] {
        let last = json!({"messageType": LAST, "toUniqueId": "*", "content": {"of": business}});
        Service::of(&world.setup, business).await?.push(&last).await?;
    }

    for (business, client_type, mut client) in receivers {
        let mut got = BTreeSet::new();
        loop {
            let push = client.push().await?;
            ensure!(push["content"]["of"] == business, "a client of {business} got {push}");
            ensure!(push["businessType"] == business, "a client of {business} got {push}");
            if push["messageType"] == LAST {
                break;
            }
            got.extend(push["messageType"].as_str().map(str::to_owned));
        }
        for route in routes.iter().filter(|route| business == OWN && route.message_type != LAST) {
            let own = got.contains(&route.message_type);
            for column in columns(&route.to, client_type) {
                note("receive", route.send_type, column, own, false);
            }
            note("receive", route.send_type, "an API key", false, false);
        }
    }
    let mut orders = Service::of(&world.setup, OWN).await?.consume("orders", 10).await?;
    let order = next_json(&mut orders).await?;
    ensure!(order["content"]["of"] == OWN && order["fromUniqueId"] == "sender-app", "{order}");
    let foreign = Service::of(&world.setup, FOREIGN).await?.depth("orders").await?;
    ensure!(foreign == 0, "{foreign} messages are in the queue of another business");

    // A cell that depends on the route, not on what the table names, would have two words.
    let is = is.into_iter().map(|(row, cells)| {
        let cells =
            cells.into_iter().map(|(column, words)| (column, words.into_iter().collect::<Vec<_>>().join(" or ")));
        (row, cells.collect())
    });
    compare("### Over a WebSocket", &is.collect())
}

/// The row of an object: what follows `wirepost.B.`, with `*` for names that teams and edges choose.
fn row(name: &str) -> Option<(Option<&str>, String)> {
    let Some((business, part)) = name.strip_prefix("wirepost.")?.split_once('.') else {
        return Some((None, name.to_owned()));
    };
    let chosen = ["q.", "edge.", "events."].into_iter().find(|start| part.starts_with(start));
    Some((Some(business), chosen.map_or(part.to_owned(), |start| format!("{start}*"))))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_object_on_the_broker_is_for_whom_the_table_says() -> Result<()> {
    let world = World::new().await?;
    let (setup, vhost) = (&world.setup, &world.setup.vhost().name);
    // What services, edges and the operator make.
    for business in [OWN, FOREIGN] {
        for queue in ["events.audit", "edge.e9"] {
            let durable = json!({"durable": true, "auto_delete": false, "arguments": {"x-queue-type": "classic"}});
            setup.call("PUT", &["queues", vhost, &format!("wirepost.{business}.{queue}")], &durable).await?;
        }
        setup
            .call(
                "PUT",
                &["exchanges", vhost, &format!("wirepost.{business}.owner")],
                &json!({"type": "fanout", "durable": true}),
            )
            .await?;
    }
    setup
        .call("PUT", &["exchanges", vhost, "wirepost.installation"], &json!({"type": "fanout", "durable": true}))
        .await?;
    let objects = objects(setup).await?;

    let events = (&*format!("wirepost.{OWN}.events.probe"), &*format!("wirepost.{OWN}.events"));
    let of_service = tried(&setup.service_amqp(OWN).await?, events, &objects).await?;
    let pushes = (&*format!("wirepost.{OWN}.edge.probe"), &*format!("wirepost.{OWN}.push"));
    let of_edge = tried(&setup.edge_amqp().await?, pushes, &objects).await?;

    let cell = |allowed: &BTreeSet<(Access, String)>, names: &[&str]| {
        let words = [(Access::Configure, "configure"), (Access::Write, "write"), (Access::Read, "read")];
        let words = words
            .into_iter()
            .filter(|(access, _)| names.iter().any(|name| allowed.contains(&(*access, (*name).to_owned()))));
        let words: Vec<_> = words.map(|(_, word)| word).collect();
        if words.is_empty() { "no".to_owned() } else { words.join(", ") }
    };
    let mut rows: BTreeMap<String, [Vec<&str>; 2]> = BTreeMap::new();
    for name in objects.iter().map(Object::name) {
        match row(name) {
            Some((business, row)) => rows.entry(row).or_default()[usize::from(business == Some(FOREIGN))].push(name),
            None => ensure!(
                [&of_service, &of_edge].iter().all(|allowed| allowed.iter().all(|(_, one)| one != name)),
                "somebody may touch {name}"
            ),
        }
    }
    let mut is = BTreeMap::new();
    for (row, [own, foreign]) in &rows {
        ensure!(cell(&of_service, foreign) == "no", "a service reaches another business: {foreign:?}");
        ensure!(
            foreign.is_empty() || cell(&of_edge, foreign) == cell(&of_edge, own),
            "an edge may do with {own:?} what it may not with {foreign:?}, or the other way round"
        );
        let cells = [("the services' user", cell(&of_service, own)), ("the edges' user", cell(&of_edge, own))];
        is.insert(row.clone(), BTreeMap::from(cells.map(|(column, cell)| (column.to_owned(), cell))));
    }
    compare("### On the broker", &is)?;

    // The reasons stand beside the rights.
    let said: BTreeMap<String, String> = table("## The edges' rights on the broker")?
        .into_iter()
        .map(|(right, cells)| (right, cells.into_values().collect()))
        .collect();
    let words = |access: Access| match access {
        Access::Configure => "configure",
        Access::Write => "write",
        Access::Read => "read",
    };
    let mut rights: BTreeMap<String, String> = wirepost_topology::EDGE_RIGHTS
        .iter()
        .map(|right| (format!("{} {}", words(right.access), right.objects), right.why.replace('`', "")))
        .collect();
    rights.insert("tag management".to_owned(), "ask for alarms".to_owned());
    ensure!(said == rights, "docs/security.md has other rights than the code: {rights:#?}");
    Ok(())
}
