//! Who is here: a service asks any edge, and learns of the clients of all of them, or which edge is not known.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};
use wirepost_testing::broker::{PATIENCE, eventually};
use wirepost_testing::client::Client;
use wirepost_testing::edge::Edge;
use wirepost_testing::fleet::Fleet;
use wirepost_testing::setup::{PAYMENTS, Setup, TICKER};

const FORGED: &str = "wirepost_edge_forged_questions_total";
const PATH: &str = "/payments/websocket/presence";

async fn ask(edge: &Edge, query: &[(&str, &str)]) -> Result<Value> {
    let (status, body) = edge.get(PATH, query).await?;
    ensure!(status == 200 && body["result"] == 0, "{status}: {body}");
    Ok(body["data"].clone())
}

async fn post(edge: &Edge, body: &Value) -> Result<(u16, Value)> {
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
    let url = format!("http://{}{PATH}", edge.public);
    let answer = http.post(url).header("x-api-key", edge.setup.api_key()).body(body.to_string()).send().await?;
    Ok((answer.status().as_u16(), answer.json().await?))
}

async fn count(edge: &Edge, query: &[(&str, &str)]) -> Result<u64> {
    ask(edge, query).await?["connections"].as_u64().context("no number")
}

/// How an edge is, in an answer.
fn state<'a>(data: &'a Value, edge: &str) -> Option<&'a str> {
    let edges = data["edges"].as_array()?;
    edges.iter().find(|one| one["edge"] == edge)?["state"].as_str()
}

#[tokio::test]
async fn any_edge_knows_the_clients_of_all() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS, TICKER]).await?;
    // Nothing runs at the last place.
    let fleet = Fleet::new(4);
    let (e1, e2, e3) =
        tokio::try_join!(fleet.edge(&setup, 0).start(), fleet.edge(&setup, 1).start(), fleet.edge(&setup, 2).start())?;
    let before = chrono_ms()?;
    let alice = e1.client("alice", "app").tags(&["vip"]).connect().await?;
    let alices_page = e2.client("alice", "h5").tags(&["eu", "vip"]).connect().await?;
    let _bob = e3.client("bob", "app").tags(&["eu"]).connect().await?;
    let _of_another_business = e3.client("alice", "app").business("ticker").connect().await?;

    for edge in [&e1, &e2, &e3] {
        let data = ask(edge, &[("uniqueId", "alice"), ("uniqueId", "bob"), ("uniqueId", "carol")]).await?;
        ensure!(data["complete"] == true && data["connections"] == 3, "{data}");
        let of_each = json!([
            {"uniqueId": "alice", "connections": 2}, {"uniqueId": "bob", "connections": 1},
            {"uniqueId": "carol", "connections": 0},
        ]);
        ensure!(data["uniqueIds"] == of_each, "{data}");
        ensure!(data["list"].is_null() && data["next"].is_null(), "counts only, unless a list is asked for: {data}");
        for name in ["e1", "e2", "e3"] {
            ensure!(state(&data, name) == Some("answered"), "{data}");
        }
        ensure!(state(&data, fleet.address(3)) == Some("gone"), "{data}");
        ensure!(count(edge, &[]).await? == 3);
        ensure!(count(edge, &[("tag", "vip")]).await? == 2 && count(edge, &[("tag", "eu")]).await? == 2);
        ensure!(count(edge, &[("tag", "eu"), ("tag", "vip")]).await? == 3, "one with both tags counts once");
        ensure!(count(edge, &[("clientType", "app")]).await? == 2);
        ensure!(count(edge, &[("uniqueId", "alice"), ("clientType", "app"), ("tag", "vip")]).await? == 1);
        ensure!(count(edge, &[("uniqueId", "alice"), ("tag", "none")]).await? == 0);
    }

    // A list in pages, each from another edge.
    let (mut listed, mut after) = (Vec::new(), String::new());
    for edge in [&e1, &e2, &e3] {
        let mut query = vec![("list", "true"), ("limit", "1")];
        query.extend(Some(("after", after.as_str())).filter(|(_, after)| !after.is_empty()));
        let data = ask(edge, &query).await?;
        listed.extend(data["list"].as_array().context("no list")?.clone());
        let next = data["next"].as_str().unwrap_or_default().to_owned();
        ensure!(next.is_empty() == (listed.len() == 3), "{data}");
        after = next;
    }
    let facts: Vec<_> = listed.iter().map(|one| [&one["uniqueId"], &one["clientType"], &one["edge"]]).collect();
    ensure!(json!(facts) == json!([["alice", "app", "e1"], ["alice", "h5", "e2"], ["bob", "app", "e3"]]), "{facts:?}");
    ensure!(listed[0]["connectionId"] == alice.welcome["connectionId"] && listed[1]["tags"] == json!(["eu", "vip"]));
    for one in &listed {
        let since = one["since"].as_i64().context("no time")?;
        ensure!((before..=chrono_ms()?).contains(&since), "{one}, connected after {before}");
    }

    // Thousands of identities in one call.
    let mut ids: Vec<String> = (0..9_990).map(|n| format!("customer-{n}")).collect();
    ids.extend(["bob", "alice"].map(str::to_owned));
    let (status, body) = post(&e2, &json!({"uniqueIds": ids})).await?;
    ensure!(status == 200 && body["data"]["online"] == json!(["bob", "alice"]), "{status}: {body}");
    let (_, body) = post(&e2, &json!({"uniqueIds": ids, "clientTypes": ["h5"]})).await?;
    ensure!(body["data"]["online"] == json!(["alice"]), "{body}");
    ids.extend((0..100).map(|n| n.to_string()));
    ensure!(post(&e2, &json!({"uniqueIds": ids})).await?.1["result"] == 41_301);
    ensure!(post(&e2, &json!({"uniqueIds": []})).await?.1["result"] == 40_001);

    // What changes shows at once.
    alices_page.leave().await?;
    let left = Instant::now();
    eventually("alice has left", Duration::from_secs(2), || async {
        Ok(count(&e3, &[("uniqueId", "alice")]).await? == 1)
    })
    .await
    .with_context(|| format!("after {:?}", left.elapsed()))
}

fn chrono_ms() -> Result<i64> {
    Ok(i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis())?)
}

#[tokio::test]
async fn an_edge_that_is_frozen_is_unknown_and_one_that_was_killed_is_gone() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let fleet = Fleet::new(3);
    let (e1, e2, e3) =
        tokio::try_join!(fleet.edge(&setup, 0).start(), fleet.edge(&setup, 1).start(), fleet.edge(&setup, 2).start())?;
    let mut clients: Vec<Client> = Vec::new();
    for edge in [&e1, &e2, &e3] {
        clients.push(edge.client("alice", "app").connect().await?);
    }
    ensure!(count(&e1, &[("uniqueId", "alice")]).await? == 3);
    // Names come with the answers to its regular questions.
    e1.await_metric("wirepost_edge_peers{kind=\"answers\"}", 2.0).await?;

    e2.pause()?;
    let asked = Instant::now();
    let (status, body) = e1.get(PATH, &[("uniqueId", "alice")]).await?;
    ensure!(status == 200 && asked.elapsed() < Duration::from_secs(5), "{status} after {:?}", asked.elapsed());
    let data = &body["data"];
    ensure!(data["complete"] == false && data["connections"] == 2 && state(data, "e2") == Some("unknown"), "{body}");
    ensure!(body["description"].as_str().is_some_and(|text| text.contains("e2")), "{body}");
    ensure!(e1.count("wirepost_edge_presence_questions_total{kind=\"incomplete\"}").await? >= 1);
    e1.await_metric("wirepost_edge_peers{kind=\"silent\"}", 1.0).await?;
    e2.resume()?;
    eventually("all answer again", PATIENCE, || async {
        let data = ask(&e1, &[("uniqueId", "alice")]).await?;
        Ok(data["complete"] == true && data["connections"] == 3)
    })
    .await?;

    e3.kill9()?;
    let killed = Instant::now();
    eventually("the dead edge counts no more", Duration::from_secs(10), || async {
        let data = ask(&e1, &[("uniqueId", "alice")]).await?;
        Ok(data["complete"] == true && data["connections"] == 2 && state(&data, "e3") == Some("gone"))
    })
    .await
    .with_context(|| format!("{:?} after it was killed", killed.elapsed()))
}

#[tokio::test]
async fn an_edge_that_begins_is_known_to_those_that_it_knows_before_it_is_ready() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let fleet = Fleet::new(3);
    // Nobody has told the first one of others, nor the others of each other.
    let first = fleet.address(0);
    let e1 = fleet.edge_that_knows(&setup, 0, &[first]).start().await?;
    let e2 = fleet.edge_that_knows(&setup, 1, &[first]).start().await?;
    let e3 = fleet.edge_that_knows(&setup, 2, &[first]).start().await?;
    let _alice = e2.client("alice", "app").connect().await?;
    eventually("the first one knows her", Duration::from_secs(5), || async { Ok(count(&e1, &[]).await? == 1) }).await?;
    eventually("so does another", Duration::from_secs(5), || async { Ok(count(&e3, &[]).await? == 1) }).await
}

#[tokio::test]
async fn only_edges_with_the_same_keys_are_asked_and_answered() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let fleet = Fleet::new(2);
    let e1 = fleet.edge(&setup, 0).start().await?;
    let keys = setup.dir().join("other-keys.json");
    let secret = STANDARD.encode(rand::random::<[u8; 32]>());
    std::fs::write(&keys, format!(r#"{{"current":"test","keys":[{{"id":"test","secret":"{secret}"}}]}}"#))?;
    let stranger = fleet.edge(&setup, 1).flag("keys-file", keys.display()).start().await?;
    let _client = stranger.client("alice", "app").connect().await?;
    let data = ask(&e1, &[]).await?;
    ensure!(data["complete"] == false && data["connections"] == 0, "{data}");
    ensure!(state(&data, fleet.address(1)) == Some("unknown"), "{data}");
    e1.await_metric(FORGED, 1.0).await?;

    // Nor anybody else who reaches the admin port, and clients never do.
    let http = reqwest::Client::builder().no_proxy().build()?;
    let question = json!({"presence": {"business": "payments", "filter": {}}}).to_string();
    for (address, status) in [(e1.admin, 403), (e1.public, 404)] {
        let request = http.post(format!("http://{address}/peers")).header("x-wirepost-seal", "AAAA");
        ensure!(request.body(question.clone()).send().await?.status() == status, "{address}");
    }
    Ok(())
}

/// Sends a request to the admin port that never ends its body. The answer's first line, and how long it took.
async fn unfinished(edge: &Edge, seal: &str, announced: usize) -> Result<(String, Duration)> {
    let mut stream = TcpStream::connect(edge.admin).await?;
    let head =
        format!("POST /peers HTTP/1.1\r\nhost: e\r\nx-wirepost-seal: {seal}\r\ncontent-length: {announced}\r\n\r\n{{");
    let asked = Instant::now();
    stream.write_all(head.as_bytes()).await?;
    let mut line = String::new();
    timeout(PATIENCE, BufReader::new(&mut stream).read_line(&mut line)).await.context("no answer")??;
    Ok((line.trim().to_owned(), asked.elapsed()))
}

/// Takes a question that an edge puts to this address: its seal and its body.
async fn recorded(listener: &TcpListener) -> Result<(String, String)> {
    let (stream, _) = timeout(PATIENCE, listener.accept()).await.context("nobody asks")??;
    let (mut reader, mut seal, mut length) = (BufReader::new(stream), String::new(), 0);
    loop {
        let mut line = String::new();
        timeout(PATIENCE, reader.read_line(&mut line)).await.context("half a question")??;
        let Some((name, value)) = line.trim().split_once(": ") else {
            if line.trim().is_empty() {
                break;
            }
            continue;
        };
        match name {
            "x-wirepost-seal" => value.clone_into(&mut seal),
            "content-length" => length = value.parse()?,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    timeout(PATIENCE, reader.read_exact(&mut body)).await.context("half a body")??;
    Ok((seal, String::from_utf8(body)?))
}

#[tokio::test]
async fn a_question_is_judged_before_it_is_read_and_answered_once() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let fleet = Fleet::new(3);
    let (asks, edge) = tokio::try_join!(fleet.edge(&setup, 0).start(), fleet.edge(&setup, 1).start())?;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let put = async |edge: &Edge, seal: &str, body: &str| -> Result<u16> {
        let request = http.post(format!("http://{}/peers", edge.admin)).header("x-wirepost-seal", seal);
        Ok(request.body(body.to_owned()).send().await?.status().as_u16())
    };
    // Who takes the place of an edge records what it is asked.
    let thief = TcpListener::bind(fleet.address(2)).await?;

    // Who is here is asked of one process, as long as it has not been silent for too long.
    let next = async |kind: &str| loop {
        let asked = recorded(&thief).await?;
        if asked.1.contains(kind) {
            return anyhow::Ok(asked);
        }
    };
    let asking = async { tokio::join!(next("presence"), ask(&asks, &[("uniqueId", "alice")])) };
    let (question, data) = timeout(PATIENCE, asking).await.context("nobody is asked")?;
    let ((seal, body), _) = (question?, data?);
    for to in [&edge, &asks] {
        let status = put(to, &seal, &body).await?;
        ensure!(status == 403, "{status}: {seal} {body}");
    }
    ensure!(edge.count(FORGED).await? == 1);

    // An edge that has begun anew is told for which process a question was: it is not forged, and is not answered either.
    let to_process = async |seal: &str, process: &str| {
        let request = http.post(format!("http://{}/peers", edge.admin)).header("x-wirepost-seal", seal);
        anyhow::Ok(request.header("x-wirepost-to", process).body(body.clone()).send().await?.status().as_u16())
    };
    // The thief's process is not known to whoever asks: the question is for one without a name.
    ensure!(to_process(&seal, "").await? == 421);
    ensure!(to_process(&seal, "another").await? == 403, "for whom it is can't be made up");
    ensure!(to_process("AAAA", "").await? == 403);
    ensure!(edge.count(FORGED).await? == 3);
    ensure!(edge.count("wirepost_edge_misdirected_questions_total").await? == 1);

    // Any edge may be asked how it is, with each question once.
    let (seal, body) = next("load").await?;
    ensure!(put(&edge, &seal, &body).await? == 200, "as its clock and its keys are ours");
    ensure!(put(&edge, &seal, &body).await? == 403, "a second time");
    let (seal, body) = next("load").await?;
    ensure!(put(&edge, &seal, &body.replace("load", "Load")).await? == 403, "another body");

    // Nothing of a stranger's body is awaited, little of a short question's, and nothing longer than for a moment.
    let (line, took) = unfinished(&edge, "AAAA", 4 << 20).await?;
    ensure!(line.contains(" 403 ") && took < Duration::from_secs(1), "{line} after {took:?}");
    let (line, took) = unfinished(&edge, &next("load").await?.0, 4 << 20).await?;
    ensure!(line.contains(" 413 ") && took < Duration::from_secs(1), "{line} after {took:?}");
    let (line, took) = unfinished(&edge, &next("load").await?.0, 100).await?;
    ensure!(line.contains(" 408 ") && took < Duration::from_secs(5), "{line} after {took:?}");
    Ok(())
}

#[tokio::test]
async fn an_edge_that_begins_anew_is_taken_for_no_forger_and_takes_none_for_one() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let fleet = Fleet::new(2);
    let (e1, e2) = tokio::try_join!(fleet.edge(&setup, 0).start(), fleet.edge(&setup, 1).start())?;
    eventually("they know each other", PATIENCE, || async { Ok(ask(&e1, &[]).await?["complete"] == true) }).await?;
    e2.kill9()?;
    drop(e2);
    let again = fleet.edge(&setup, 1).start().await?;
    let _alice = again.client("alice", "app").connect().await?;
    eventually("the new one is known", PATIENCE, || async {
        let data = ask(&e1, &[]).await?;
        Ok(data["complete"] == true && data["connections"] == 1)
    })
    .await?;
    ensure!(again.count(FORGED).await? == 0 && e1.count(FORGED).await? == 0);
    Ok(())
}

#[tokio::test]
async fn a_name_that_nobody_can_have_is_asked_of_no_edge() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let edge = setup.edge("e1").start().await?;
    for body in [
        json!({"uniqueIds": ["x".repeat(257)]}),
        json!({"uniqueIds": ["alice"], "tags": ["x".repeat(257)]}),
        json!({"uniqueIds": ["alice"], "clientTypes": ["x".repeat(100_000)]}),
    ] {
        let (status, answer) = post(&edge, &body).await?;
        ensure!(status == 400 && answer["result"] == 40_001, "{status}: {answer}");
    }
    ensure!(post(&edge, &json!({"uniqueIds": ["x".repeat(256)]})).await?.0 == 200);
    Ok(())
}

#[tokio::test]
async fn an_edge_that_has_asked_and_never_answered_is_unknown() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS]).await?;
    let fleet = Fleet::new(3);
    let between = TcpListener::bind(fleet.address(2)).await?;
    // The second one knows nobody; the first one asks by way of the test, and freezes.
    let e1 = fleet.edge_that_knows(&setup, 0, &[fleet.address(2)]).start().await?;
    let e2 = fleet.edge_that_knows(&setup, 1, &[fleet.address(1)]).start().await?;
    ensure!(ask(&e2, &[]).await?["complete"] == true, "it is alone");
    let (seal, body) = recorded(&between).await?;
    e1.pause()?;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let put = http.post(format!("http://{}/peers", e2.admin)).header("x-wirepost-seal", seal).body(body);
    ensure!(put.send().await?.status() == 200);
    let data = ask(&e2, &[]).await?;
    ensure!(data["complete"] == false && state(&data, fleet.address(0)) == Some("unknown"), "{data}");
    e1.resume()
}

#[tokio::test]
async fn a_business_that_asks_too_often_is_refused_and_others_are_not() -> Result<()> {
    let setup = Setup::new(&[PAYMENTS, TICKER]).await?;
    let edge = setup.edge("e1").start().await?;
    let mut refused = None;
    for _ in 0..2_000 {
        let (status, body) = edge.get(PATH, &[("uniqueId", "alice")]).await?;
        if status != 200 {
            refused = Some((status, body));
            break;
        }
    }
    let (status, body) = refused.context("never refused")?;
    ensure!(status == 503 && body["result"] == 50_302, "{status}: {body}");
    ensure!(edge.count("wirepost_edge_business_limited_total{kind=\"presence\"}").await? >= 1);
    ensure!(edge.get("/ticker/websocket/presence", &[]).await?.0 == 200);
    eventually("it may ask again", PATIENCE, || async { Ok(edge.get(PATH, &[]).await?.0 == 200) }).await
}
