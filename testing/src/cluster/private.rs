//! API servers of one test alone, which it may freeze and kill.

use std::ops::Deref;

use anyhow::Result;

use super::{Cluster, unique};
use crate::permits::{Kind, Permit};
use crate::private::{Private, Service};

/// Removed, with its data, when dropped.
pub struct PrivateCluster {
    cluster: Cluster,
    private: Private,
}

impl PrivateCluster {
    /// Starts one with the CRD installed, once it has a permit; takes about three seconds. `options` as `tests/services/kubernetes start`
    /// takes them: `--controllers`, so that deleted namespaces go away and objects without an owner are collected.
    pub async fn start(name: &str, options: &[&str]) -> Result<Self> {
        let permit = Permit::take(Kind::ApiServer).await?;
        let (private, variables) = Private::start(Service::Kubernetes, unique(name), &[], permit).await?;
        let cluster = Cluster::from_variables(|name| variables.get(name).cloned()).await?;
        cluster.install_crd().await?;
        if !options.is_empty() {
            // After the CRD: the garbage collector asks only every 30 s which kinds there are.
            private.start_again(options).await?;
        }
        Ok(Self { cluster, private })
    }

    /// Kills all of its processes.
    pub async fn kill9(&self) -> Result<()> {
        self.private.command("kill9").await
    }

    /// Ends it in order.
    pub async fn stop(&self) -> Result<()> {
        self.private.command("stop").await
    }

    /// Brings it back after `kill9` or `stop`: same address, same data. Returns when it is ready.
    pub async fn start_again(&self) -> Result<()> {
        self.private.start_again(&[]).await
    }

    /// Freezes the API server: connections stay open, nothing answers.
    pub async fn pause(&self) -> Result<()> {
        self.private.command("pause").await
    }

    /// Thaws it.
    pub async fn resume(&self) -> Result<()> {
        self.private.command("resume").await
    }
}

impl Deref for PrivateCluster {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}
