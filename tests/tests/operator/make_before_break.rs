//! A declaration changes while clients send by the former one, or while the broker fails at a part of it: every acknowledged message has a
//! queue, and only the affected routes wait.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use wirepost_testing::broker::{PrivateBroker, depth, eventually, key_of, publish};
use wirepost_testing::cluster::PATIENCE;
use wirepost_testing::edge::Edge;
use wirepost_testing::operator::{World, condition_of, edges::client};
use wirepost_testing::proxy::{Network, Proxy};
use wirepost_testing::service::Service;
use wirepost_testing::traffic::{Pusher, Sender, all_pushed};

const RECEIVE: &str = "wirepost.payments.receive";
const ORDERS: &str = "wirepost.payments.q.orders";
const REFUNDS: &str = "wirepost.payments.q.refunds";
const UNROUTED: &str = "wirepost.payments.unrouted";
const STREAM: &str = "queue wirepost.payments.stream";
const SECRET: &str = "payments-wirepost";

/// The business with these routes to queues, and further lines of its spec.
fn payments(routes: &[(&str, &str)], more: &str) -> String {
    let route = |(message_type, queue): &(&str, &str)| {
        format!("    - {{messageType: \"{message_type}\", sendType: ClientToServer, queue: {{name: {queue}}}}}\n")
    };
    let routes: String = routes.iter().map(route).collect();
    format!(
        "
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {{name: payments}}
spec:
  clientTypes: [app]
  access: {{secretName: {SECRET}}}
  limits: {{messagesPerSecond: 10000, burst: 20000}}
  routes:
    - {{messageType: payment.completed, sendType: ServerToClient, to: [app]}}
{routes}{more}
"
    )
}

/// An edge that takes its configurations through a proxy.
async fn edge_through(world: &World, proxy: &Proxy) -> Result<Edge> {
    let address = world.cluster.address.context("WIREPOST_TEST_ADDRESS is not set")?;
    let kubeconfig = world.edge_account.kubeconfig_through(proxy.address)?;
    let edge = world.setup.edge("edge-1").config_namespace(&world.system.name, &kubeconfig);
    let edge = edge.flag("admin-listen", format!("{address}:0")).start().await?;
    world.endpoint("edge-1", edge.admin).await?;
    Ok(edge)
}

/// The edge configuration as it was last written.
async fn config(world: &World) -> Result<Value> {
    let data = world.config_map("payments").await?.and_then(|map| map.data).context("no configuration")?;
    Ok(serde_json::from_str(&data["config.json"])?)
}

/// Message types of the routes to queues, as the edges have them.
fn routes(config: &Value) -> Vec<String> {
    let routes =
        config["routes"].as_array().into_iter().flatten().filter(|route| route["sendType"] == "ClientToServer");
    routes.map(|route| route["messageType"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_while_an_edge_does_not_know_of_a_removed_route_is_in_its_queue() -> Result<()> {
    let world = World::new().await?;
    let proxy = Proxy::start(world.cluster.server()?).await?;
    let operator = world.operator("one").start().await?;
    let edge = edge_through(&world, &proxy).await?;
    world.apply(&payments(&[("order.#", "orders"), ("refund", "refunds")], "")).await?;
    world.condition("payments", "Ready", "True").await?;
    let secret = world.secret(SECRET).await?.context("no Secret")?;
    let mut sender = Sender::start(client(&edge, &secret, "alice", "app").await?);
    sender.next_ack(PATIENCE).await?;

    proxy.set(Network::Stalled);
    let transient = "  push: {delivery: Transient}\n  deletionPolicy: Delete";
    world.apply(&payments(&[("refund", "refunds")], transient)).await?;
    // It goes as far as possible: the edge still has the former configuration.
    let wsb = world
        .wait("payments", "say that a queue waits for the edges", |wsb| {
            condition_of(wsb, "Provisioned").is_some_and(|c| c.message.contains("until every edge runs"))
        })
        .await?;
    let message = &condition_of(&wsb, "Provisioned").context("no Provisioned")?.message;
    ensure!(message.contains(ORDERS) && message.contains("wirepost.payments.stream"), "{message}");
    operator.looks(3).await?;
    for _ in 0..20 {
        sender.next_ack(PATIENCE).await?;
    }
    let (_client, outcomes) = sender.stop().await?;
    let acked = outcomes.iter().filter(|outcome| outcome.acked()).count();
    let (_connection, channel) = world.setup.vhost().channel().await?;
    let depths = async || anyhow::Ok((depth(&channel, ORDERS).await? as usize, depth(&channel, UNROUTED).await?));
    ensure!(depths().await? == (acked, 0), "{:?} of {acked}", depths().await?);
    ensure!(world.setup.picture().await?.contains_key(STREAM), "clients that catch up read it");

    proxy.set(Network::Fine);
    let bound = format!("binding {RECEIVE} -> {ORDERS} with '{}'", key_of(ORDERS));
    let removed = || async {
        let picture = world.setup.picture().await?;
        Ok(!picture.contains_key(&bound) && !picture.contains_key(STREAM))
    };
    eventually("what only the former declaration needs is removed", PATIENCE, removed).await?;
    ensure!(depths().await? == (acked, 0), "{:?} of {acked}", depths().await?);
    operator.had_every_right()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_differs_holds_back_its_routes_and_nothing_else() -> Result<()> {
    let world = World::new().await?;
    let _mirror = wirepost_testing::mirror::Mirror::start(&world, "edge-1").await?;
    let operator = world.operator("one").start().await?;
    let both = [("order.#", "orders"), ("refund", "refunds")];
    world.apply(&payments(&both, "")).await?;
    world.condition("payments", "Ready", "True").await?;
    let (before, secret) = (config(&world).await?, world.secret(SECRET).await?.context("no Secret")?);

    // Somebody has created a queue by hand that will become a route's, and recreated another one with wrong arguments. A queue without messages
    // would be removed as not declared.
    let vhost = &world.setup.vhost().name;
    let (_connection, channel) = world.setup.vhost().channel().await?;
    world.setup.delete_queue(REFUNDS).await?;
    for queue in [REFUNDS, "wirepost.payments.q.claims"] {
        let classic = json!({"durable": true, "arguments": {"x-queue-type": "classic"}});
        // The operator may be faster.
        let made = || async {
            let _ = world.setup.delete_queue(queue).await;
            Ok(world.setup.call("PUT", &["queues", vhost, queue], &classic).await.is_ok())
        };
        eventually("the queue is of another type", PATIENCE, made).await?;
        publish(&channel, "", queue, b"by hand").await?;
    }
    let auth = "  auth: {allowedOrigins: [\"https://shop.example\"]}";
    let more = [("order.#", "orders"), ("claim", "claims"), ("refund", "refunds"), ("invoice", "invoices")];
    world.apply(&payments(&more, auth)).await?;
    let patch = json!({"metadata": {"annotations": {"wirepost.dev/rotate": "2"}}});
    let api = world.team.businesses();
    api.patch("payments", &kube::api::PatchParams::default(), &kube::api::Patch::Merge(patch)).await?;
    let wsb = world.reason("payments", "Provisioned", "NotAsDeclared").await?;
    ensure!(wsb.metadata.generation == Some(2));
    let rotated = || async { Ok(world.secret(SECRET).await?.is_some_and(|now| now["username"] != secret["username"])) };
    eventually("its services have new credentials", PATIENCE, rotated).await?;
    let now = config(&world).await?;
    ensure!(now["generation"] == 2 && now["auth"]["allowedOrigins"] == json!(["https://shop.example"]), "{now}");
    ensure!(now["auth"]["apiKeys"] != before["auth"]["apiKeys"], "{now}");
    ensure!(routes(&now) == ["order.#", "refund", "invoice"], "{:?}", routes(&now));
    let said = |wsb: &_| condition_of(wsb, "Provisioned").map(|c| c.message.clone()).unwrap_or_default();
    world.wait("payments", "name what waits", |wsb| said(wsb).contains("left out where they are new: claim")).await?;

    for queue in [REFUNDS, "wirepost.payments.q.claims"] {
        world.setup.delete_queue(queue).await?;
    }
    world.condition("payments", "Ready", "True").await?;
    ensure!(routes(&config(&world).await?) == ["order.#", "claim", "refund", "invoice"]);
    operator.had_every_right()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_that_waits_keeps_its_former_queue_and_no_other_removal_waits_for_it() -> Result<()> {
    let world = World::new().await?;
    let _mirror = wirepost_testing::mirror::Mirror::start(&world, "edge-1").await?;
    let operator = world.operator("one").start().await?;
    world.apply(&payments(&[("order.#", "orders"), ("refund", "refunds")], "")).await?;
    world.condition("payments", "Ready", "True").await?;
    let vhost = &world.setup.vhost().name;
    let classic = json!({"durable": true, "arguments": {"x-queue-type": "classic"}});
    world.setup.call("PUT", &["queues", vhost, "wirepost.payments.q.moved"], &classic).await?;
    let (_connection, channel) = world.setup.vhost().channel().await?;
    publish(&channel, "", "wirepost.payments.q.moved", b"by hand").await?;

    world.apply(&payments(&[("order.#", "moved")], "")).await?;
    world.reason("payments", "Provisioned", "NotAsDeclared").await?;
    let bound = |queue: &str| format!("binding {RECEIVE} -> {queue} with '{}'", key_of(queue));
    let removed = || async { Ok(!world.setup.picture().await?.contains_key(&bound(REFUNDS))) };
    eventually("what nobody uses is unbound", PATIENCE, removed).await?;
    operator.looks(3).await?;
    ensure!(world.setup.picture().await?.contains_key(&bound(ORDERS)), "edges publish to it");
    ensure!(config(&world).await?["routes"].to_string().contains(ORDERS));

    world.setup.delete_queue("wirepost.payments.q.moved").await?;
    world.condition("payments", "Ready", "True").await?;
    let removed = || async { Ok(!world.setup.picture().await?.contains_key(&bound(ORDERS))) };
    eventually("the former queue is unbound once no edge uses it", PATIENCE, removed).await?;
    operator.had_every_right()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_waits_for_an_edge_that_never_reports_and_no_longer_than_its_bound() -> Result<()> {
    const BOUND: Duration = Duration::from_secs(8);
    let world = World::new().await?;
    let operator = world.operator("one").flag("edges-timeout-seconds", BOUND.as_secs()).start().await?;
    let address = world.cluster.address.context("WIREPOST_TEST_ADDRESS is not set")?;
    let nobody = TcpListener::bind((address, 0)).await?;
    world.endpoint("silent", nobody.local_addr()?).await?;
    world.apply(&payments(&[("order.#", "orders"), ("refund", "refunds")], "")).await?;
    world.condition("payments", "Provisioned", "True").await?;
    let begun = Instant::now();
    world.apply(&payments(&[("order.#", "orders")], "")).await?;
    let waits = |wsb: &_| condition_of(wsb, "Provisioned").is_some_and(|c| c.message.contains("until every edge runs"));
    world.wait("payments", "say that a queue waits for the edges", waits).await?;
    let bound = format!("binding {RECEIVE} -> {REFUNDS} with '{}'", key_of(REFUNDS));
    let removed = || async { Ok(!world.setup.picture().await?.contains_key(&bound)) };
    eventually("what nobody declares is unbound", PATIENCE, removed).await?;
    ensure!(begun.elapsed() >= BOUND, "it did not wait");
    operator.had_every_right()
}

/// In front of a management API: while switched on, it fails calls that delete a queue.
async fn failing_deletes(management: &str) -> Result<(String, Arc<AtomicBool>)> {
    let (start, target) = management.rsplit_once('@').context("a management URL with a user")?;
    let (target, fails) = (target.to_owned(), Arc::new(AtomicBool::new(true)));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (url, switch) = (format!("{start}@{}", listener.local_addr()?), Arc::clone(&fails));
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let (target, fails) = (target.clone(), Arc::clone(&fails));
            tokio::spawn(async move {
                let mut to = TcpStream::connect(target).await?;
                let (mut question, mut answer) = (vec![0; 64 << 10], vec![0; 64 << 10]);
                loop {
                    // A client sends its next request only after the answer.
                    tokio::select! {
                        read = from.read(&mut question) => match read? {
                            0 => return anyhow::Ok(()),
                            n if question.starts_with(b"DELETE /api/queues/") && fails.load(Ordering::Relaxed) => {
                                question[..n].fill(0);
                                let failed = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";
                                from.write_all(failed).await?;
                            }
                            n => to.write_all(&question[..n]).await?,
                        },
                        read = to.read(&mut answer) => match read? {
                            0 => return Ok(()),
                            n => from.write_all(&answer[..n]).await?,
                        },
                    }
                }
            });
        }
    });
    Ok((url, switch))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_cannot_be_deleted_holds_back_no_credentials() -> Result<()> {
    let world = World::new().await?;
    let _mirror = wirepost_testing::mirror::Mirror::start(&world, "edge-1").await?;
    let (management, fails) = failing_deletes(&world.setup.vhost().broker.management).await?;
    let _operator = world.operator("one").flag("management", management).start().await?;
    world.apply(&payments(&[("order.#", "orders"), ("refund", "refunds")], "")).await?;
    world.condition("payments", "Ready", "True").await?;
    let secret = world.secret(SECRET).await?.context("no Secret")?;
    world.apply(&payments(&[("order.#", "orders")], "")).await?;
    let failing = |wsb: &_| condition_of(wsb, "Provisioned").is_some_and(|c| c.message.contains("delete queue"));
    world.wait("payments", "name the queue that can't be deleted", failing).await?;

    let patch = json!({"metadata": {"annotations": {"wirepost.dev/rotate": "2"}}});
    let api = world.team.businesses();
    api.patch("payments", &kube::api::PatchParams::default(), &kube::api::Patch::Merge(patch)).await?;
    let rotated = || async { Ok(world.secret(SECRET).await?.is_some_and(|now| now["username"] != secret["username"])) };
    eventually("its services have new credentials", PATIENCE, rotated).await?;
    let now = world.secret(SECRET).await?.context("no Secret")?;
    ensure!(now.contains_key("queue.refunds"), "it exists still, and may have to be emptied: {:?}", now.keys());
    Service::with(&now).await?;

    fails.store(false, Ordering::Relaxed);
    world.condition("payments", "Ready", "True").await?;
    let left = || async { Ok(world.secret(SECRET).await?.is_some_and(|now| !now.contains_key("queue.refunds"))) };
    eventually("the name of the removed queue leaves the Secret", PATIENCE, left).await
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_certificates_of_broker_and_clients_are_taken_into_use_while_clients_talk() -> Result<()> {
    // It lets nobody in without a certificate.
    let options = ["ssl_options", "management.ssl"]
        .map(|which| [format!("{which}.verify = verify_peer"), format!("{which}.fail_if_no_peer_cert = true")]);
    let options: Vec<&str> = options.iter().flatten().flat_map(|line| ["--conf", line]).collect();
    let broker = PrivateBroker::start("renewed", &options).await?;
    let world = World::on_broker(&broker).await?;
    let theirs = broker.tls_ca.clone().context("the broker has no TLS")?;
    let ours = |name: &str| world.setup.dir().join(name);
    let renew = || -> Result<()> {
        for name in ["ca.crt", "client.crt", "client.key"] {
            std::fs::copy(theirs.with_file_name(name), ours(name))?;
        }
        Ok(())
    };
    renew()?;
    let management = broker.tls_management.clone().context("its management API has no TLS")?;
    let file = |path: &Path| path.display().to_string();
    let operator = world
        .operator("one")
        .flag("amqp", world.setup.vhost().tls_amqp()?)
        .flag("management", &management)
        .flag("amqp-ca-file", file(&ours("ca.crt")))
        .flag("amqp-certificate-file", file(&ours("client.crt")))
        .flag("amqp-key-file", file(&ours("client.key")))
        .start()
        .await?;
    let address = world.cluster.address.context("WIREPOST_TEST_ADDRESS is not set")?;
    let edge = world
        .setup
        .edge("edge-1")
        .config_namespace(&world.system.name, &world.edge_account.kubeconfig)
        .flag("admin-listen", format!("{address}:0"))
        .flag("amqp", world.setup.vhost().tls_amqp()?)
        .flag("stream", world.setup.vhost().tls_stream()?)
        .flag("management", &management)
        .flag("amqp-ca-file", file(&ours("ca.crt")))
        .flag("amqp-certificate-file", file(&ours("client.crt")))
        .flag("amqp-key-file", file(&ours("client.key")))
        .start()
        .await?;
    world.endpoint("edge-1", edge.admin).await?;
    world.apply(&payments(&[("order.#", "orders")], "")).await?;
    world.condition("payments", "Ready", "True").await?;
    let secret = world.secret(SECRET).await?.context("no Secret")?;
    let mut sender = Sender::start(client(&edge, &secret, "alice", "app").await?);
    sender.next_ack(PATIENCE).await?;
    let pusher = Pusher::start(&world.setup, "payments", "alice");
    let unknown = || edge.metric("wirepost_broker_alarms_unknown");
    ensure!(unknown().await? < 0.5, "its management API is not asked");

    broker.renew_ca().await?;
    edge.await_metric("wirepost_broker_connect_failures", 1.0).await?;
    eventually("the operator notices", PATIENCE, || async {
        Ok(operator.metric("wirepost_operator_broker_failures_total").await? > 0.0)
    })
    .await?;
    renew()?;
    sender.next_ack(PATIENCE).await?;
    eventually("alarms are known again", PATIENCE, || async { Ok(unknown().await? < 0.5) }).await?;
    world.apply(&payments(&[("order.#", "orders"), ("refund", "refunds")], "")).await?;
    world.condition("payments", "Ready", "True").await?;
    let count = pusher.stop().await?;
    let (mut client, outcomes) = sender.stop().await?;
    ensure!(outcomes.iter().any(|outcome| !outcome.acked()), "nothing was noticed");
    // The stream is read: every confirmed push reaches the client, whose socket was open all the time.
    all_pushed(&mut client, count).await?;
    ensure!(operator.running() && edge.running(), "one of them needed a restart");
    // Nobody gets in without a certificate.
    let stranger = world
        .setup
        .edge("stranger")
        .flag("amqp", world.setup.vhost().tls_amqp()?)
        .flag("amqp-ca-file", file(&ours("ca.crt")))
        .start()
        .await?;
    stranger.await_metric("wirepost_broker_connect_failures", 1.0).await?;
    ensure!(
        stranger.metric("wirepost_edge_broker_up").await? < 0.5,
        "a broker that wants certificates takes an edge without one"
    );
    Ok(())
}
