//! Secrets that a platform team renews: pods take them into use without a restart, and clients stay.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;
use tokio::time::Instant;
use wirepost_testing::broker::TestBroker;
use wirepost_testing::node::faults::{Talk, answered_as_promised};
use wirepost_testing::node::{Node, RELEASE, SYSTEM};
use wirepost_testing::tls::{Authority, frame, send_acked};

/// The kubelet checks Secrets at most every minute and a half by default.
const KUBELET: Duration = Duration::from_mins(3);
const BROKER: &str = "wirepost-broker";
/// As tests/cluster/rabbitmq.yaml has it.
const USER: &str = "wirepost";
const PASSWORD: &str = "not-a-secret";
const NEW_USER: &str = "wirepost-rotated";
/// Of what the test of the certificate makes.
const NAME: &str = "rotation-tls";
/// Connections in a row: the Service chooses an edge for each.
const ROW: usize = 16;
const NEW_PASSWORD: &str = "not-a-secret-either";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster with nodes: make cluster-test"]
async fn a_new_user_of_the_broker_is_taken_into_use_by_running_pods() -> Result<()> {
    let node = Node::connect().await?;
    node.install(&[]).await?;
    let mut talk = Talk::start(&node, "rotation-broker").await?;
    let before = restarts(&node).await?;
    let rotated = async {
        rotate(&node, (USER, PASSWORD), (NEW_USER, NEW_PASSWORD)).await?;
        talk.recovers(KUBELET).await?;
        node.changes("rotation-broker", 9999).await
    };
    let rotated = rotated.await;
    // Back in any case: every other test's installation has the first user.
    rotate(&node, (NEW_USER, NEW_PASSWORD), (USER, PASSWORD)).await?;
    rotated?;
    talk.recovers(KUBELET).await?;
    node.changes("rotation-broker", 9998).await?;
    answered_as_promised(&talk.end().await?)?;
    ensure!(restarts(&node).await? == before, "a pod was restarted");
    Ok(())
}

/// Makes the new user, writes it into the Secret, and takes the old one away, which ends all of its connections.
async fn rotate(node: &Node, old: (&str, &str), new: (&str, &str)) -> Result<()> {
    let before = management(node, old).await?;
    let user = json!({"password": new.1, "tags": "administrator"}).to_string();
    before.call("PUT", &format!("/api/users/{}", new.0), &user).await?;
    let all = json!({"configure": ".*", "write": ".*", "read": ".*"}).to_string();
    for vhost in ["%2F", "wirepost"] {
        before.call("PUT", &format!("/api/permissions/{vhost}/{}", new.0), &all).await?;
    }
    renew(node, BROKER, &[("username", new.0), ("password", new.1)]).await?;
    management(node, new).await?.call("DELETE", &format!("/api/users/{}", old.0), "").await.map(drop)
}

async fn management(node: &Node, (user, password): (&str, &str)) -> Result<TestBroker> {
    let at = node.node_port(SYSTEM, "rabbitmq", "management").await?;
    let management = format!("http://{user}:{password}@{at}");
    let [amqp, stream] = [const { String::new() }; 2];
    Ok(TestBroker {
        amqp,
        stream,
        management,
        tls_amqp: None,
        tls_stream: None,
        tls_management: None,
        tls_ca: None,
        pid: None,
    })
}

/// Writes entries of a Secret.
async fn renew(node: &Node, name: &str, entries: &[(&str, &str)]) -> Result<()> {
    let patch = json!({"stringData": entries.iter().copied().collect::<BTreeMap<_, _>>()}).to_string();
    node.kubectl(&["patch", "secret", name, "--namespace", SYSTEM, "--patch", &patch]).await.map(drop)
}

/// How often each container of the chart was restarted.
async fn restarts(node: &Node) -> Result<BTreeMap<String, i32>> {
    let ours = ListParams::default().labels("app.kubernetes.io/name=wirepost");
    let mut restarts = BTreeMap::new();
    let pods = node.cluster.api::<Pod>(SYSTEM).list(&ours).await?;
    for pod in pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let name = pod.name_any();
        let containers = pod.status.and_then(|status| status.container_statuses).unwrap_or_default();
        restarts.insert(name, containers.iter().map(|container| container.restart_count).sum());
    }
    Ok(restarts)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster with nodes: make cluster-test"]
async fn a_new_certificate_is_shown_to_new_connections_and_old_ones_live_on() -> Result<()> {
    let node = Node::connect().await?;
    let renewed = certificate_is_renewed(&node).await;
    let cleared = async {
        node.install(&[]).await?;
        node.undeclare(NAME).await?;
        node.kubectl(&["delete", "secret", NAME, "--namespace", SYSTEM]).await.map(drop)
    };
    let cleared = cleared.await;
    renewed.and(cleared)
}

async fn row_of(authority: &Authority, edges: SocketAddr) -> bool {
    for _ in 0..ROW {
        if !authority.trusts(edges).await {
            return false;
        }
    }
    true
}

async fn certificate_is_renewed(node: &Node) -> Result<()> {
    let (old, new) = (Authority::new()?, Authority::new()?);
    node.namespace(SYSTEM).await?;
    let (certificate, key) = old.sign()?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": NAME, "namespace": SYSTEM},
        "stringData": {"tls.crt": certificate, "tls.key": key},
    });
    node.cluster.apply_yaml(&secret.to_string()).await?;
    node.install(&["tls.enabled=true", &format!("tls.secretName={NAME}")]).await?;
    node.declare(NAME).await?;
    let business = node.declared(NAME).await?;
    let edges = node.node_port(SYSTEM, RELEASE, "https").await?;
    let before = restarts(node).await?;
    let url = old.token(edges, NAME, &business.secret["api-key"]).await?;
    ensure!(url.starts_with("wss://"), "{url}");
    let mut alice = old.wss(edges, &url).await?;
    frame(&mut alice, |frame| frame["op"] == "welcome").await?;
    send_acked(&mut alice, "order-1").await?;
    ensure!(!new.trusts(edges).await, "the new certificate is shown before it is there");

    let (certificate, key) = new.sign()?;
    renew(node, NAME, &[("tls.crt", &certificate), ("tls.key", &key)]).await?;
    let end = Instant::now() + KUBELET;
    for n in 2.. {
        if row_of(&new, edges).await {
            break;
        }
        ensure!(Instant::now() < end, "not every edge shows the new certificate within {KUBELET:?}");
        send_acked(&mut alice, &format!("order-{n}")).await?;
    }
    ensure!(!old.trusts(edges).await, "the old certificate is shown as well");
    send_acked(&mut alice, "order-last").await?;
    let url = new.token(edges, NAME, &business.secret["api-key"]).await?;
    let mut again = new.wss(edges, &url).await?;
    send_acked(&mut again, "order-again").await?;
    ensure!(restarts(node).await? == before, "a pod was restarted");
    Ok(())
}
