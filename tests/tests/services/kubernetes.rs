//! The API servers that the other tests stand on: what they promise to a test.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use k8s_openapi::api::rbac::v1::PolicyRule;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use wirepost_core::business::WsBusiness;
use wirepost_testing::cluster::{Cluster, PrivateCluster, wait};
use wirepost_testing::proxy::{Network, Proxy};

const BUSINESS: &str = "
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: pay, namespace: default}
spec:
  clientTypes: [app]
  routes: [{messageType: m, sendType: ServerToClient, to: [app]}]
";

fn rule(group: &str, resource: &str, verbs: &[&str]) -> PolicyRule {
    PolicyRule {
        api_groups: Some(vec![group.to_owned()]),
        resources: Some(vec![resource.to_owned()]),
        verbs: verbs.iter().map(|&v| v.to_owned()).collect(),
        ..PolicyRule::default()
    }
}

/// The status with which a list is refused, if it is.
async fn refused<K>(api: Api<K>) -> Option<u16>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    match api.list(&ListParams::default()).await {
        Err(kube::Error::Api(status)) => Some(status.code),
        Err(error) => panic!("{error}"),
        Ok(_) => None,
    }
}

#[tokio::test]
async fn an_account_has_just_the_rights_that_it_was_given() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let namespace = cluster.namespace("account").await?;
    let account = cluster
        .service_account(
            &namespace.name,
            "operator",
            &[rule("wirepost.dev", "wsbusinesses", &["list"])],
            &[rule("", "configmaps", &["list"])],
        )
        .await?;

    let client = account.client().await?;
    assert_eq!(refused(Api::<WsBusiness>::all(client.clone())).await, None);
    assert_eq!(refused(Api::<ConfigMap>::namespaced(client.clone(), &namespace.name)).await, None);
    assert_eq!(refused(Api::<ConfigMap>::namespaced(client.clone(), "default")).await, Some(403));
    assert_eq!(refused(Api::<Secret>::namespaced(client, &namespace.name)).await, Some(403));
    Ok(())
}

#[tokio::test]
async fn an_account_can_be_cut_off_by_a_proxy() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let namespace = cluster.namespace("proxied").await?;
    let rules = [rule("wirepost.dev", "wsbusinesses", &["list"])];
    let account = cluster.service_account(&namespace.name, "operator", &rules, &[]).await?;
    let proxy = Proxy::start(cluster.server()?).await?;

    let file = kube::config::Kubeconfig::read_from(account.kubeconfig_through(proxy.address)?)?;
    let config = kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await?;
    let businesses: Api<WsBusiness> = Api::all(Client::try_from(config)?);
    assert_eq!(refused(businesses.clone()).await, None);
    proxy.set(Network::Stalled);
    let stalled = tokio::time::timeout(std::time::Duration::from_millis(300), refused(businesses)).await;
    assert!(stalled.is_err(), "an answer came through a line that carries nothing");
    Ok(())
}

#[tokio::test]
async fn a_namespace_takes_its_resources_with_it() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let namespace = cluster.namespace("short-lived").await?;
    let name = namespace.name.clone();
    namespace
        .apply_yaml(&BUSINESS.replace("namespace: default", "namespace: default, finalizers: [wirepost.dev/x]"))
        .await?;
    assert!(cluster.get(&name, "pay").await?.is_some());
    drop(namespace);
    assert!(cluster.get(&name, "pay").await?.is_none());
    Ok(())
}

#[tokio::test]
async fn a_private_cluster_comes_back_with_its_data() -> Result<()> {
    let cluster = PrivateCluster::start("back", &[]).await?;
    cluster.apply_yaml(BUSINESS).await?;
    cluster.kill9().await?;
    assert!(cluster.get("default", "pay").await.is_err());
    cluster.start_again().await?;
    cluster.wait_for("default", "pay", "come back", |_| true).await?;
    cluster.pause().await?;
    let api = cluster.api::<WsBusiness>("default");
    let frozen = tokio::time::timeout(std::time::Duration::from_millis(300), api.get("pay")).await;
    assert!(frozen.is_err(), "a frozen server answered");
    cluster.resume().await?;
    cluster.delete("default", "pay").await?;
    cluster.wait_gone("default", "pay").await
}

#[tokio::test]
async fn with_controllers_namespaces_go_away_and_what_lost_its_owner_too() -> Result<()> {
    let cluster = PrivateCluster::start("controlled", &["--controllers"]).await?;
    cluster.apply_yaml("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}").await?;
    cluster.apply_yaml(&BUSINESS.replace("default", "shop")).await?;
    let owner = cluster.get("shop", "pay").await?.context("not stored")?;
    let mut child = ConfigMap::default();
    child.metadata.name = Some("child".to_owned());
    child.metadata.owner_references = Some(vec![kube::Resource::owner_ref(&owner, &()).context("no uid")?]);
    let children: Api<ConfigMap> = cluster.api("shop");
    children.create(&PostParams::default(), &child).await?;

    cluster.delete("shop", "pay").await?;
    wait(&children, "child", "go with its owner", |found| found.is_none()).await?;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    namespaces.delete("shop", &DeleteParams::default()).await?;
    wait(&namespaces, "shop", "go", |found| found.is_none()).await?;
    Ok(())
}
