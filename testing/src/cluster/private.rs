//! API servers of one test alone, which it may freeze and kill.

use std::collections::HashMap;
use std::ops::Deref;
use std::process::Command;

use anyhow::{Result, bail};

use super::{Cluster, unique};
use crate::permits::{Kind, Permit};

/// Removed, with its data, when dropped.
pub struct PrivateCluster {
    cluster: Cluster,
    name: String,
    _permit: Permit,
}

impl PrivateCluster {
    /// Starts one with the CRD installed, once it has a permit; takes about three seconds. `options` as `tests/services/kubernetes start` takes them:
    /// `--controllers`, so that deleted namespaces go away and objects without an owner are collected.
    pub async fn start(name: &str, options: &[&str]) -> Result<Self> {
        let permit = Permit::take(Kind::ApiServer).await?;
        let name = unique(name);
        let exports = services(&["start", &name, "--own"]).await?;
        let variables: HashMap<_, _> = exports
            .lines()
            .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
            .collect();
        let cluster = Cluster::from_variables(|name| variables.get(name).cloned()).await?;
        let private = Self { cluster, name, _permit: permit };
        private.install_crd().await?;
        if !options.is_empty() {
            // After the CRD: the garbage collector asks only every 30 s which kinds there are.
            services(&[&["start", &private.name, "--own"], options].concat()).await?;
        }
        Ok(private)
    }

    /// Kills all of its processes.
    pub async fn kill9(&self) -> Result<()> {
        self.command("kill9").await
    }

    /// Ends it in order.
    pub async fn stop(&self) -> Result<()> {
        self.command("stop").await
    }

    /// Brings it back after `kill9` or `stop`: same address, same data. Returns when it is ready.
    pub async fn start_again(&self) -> Result<()> {
        services(&["start", &self.name, "--own"]).await.map(drop)
    }

    /// Freezes the API server: connections stay open, nothing answers.
    pub async fn pause(&self) -> Result<()> {
        self.command("pause").await
    }

    /// Thaws it.
    pub async fn resume(&self) -> Result<()> {
        self.command("resume").await
    }

    async fn command(&self, command: &str) -> Result<()> {
        services(&[command, &self.name]).await.map(drop)
    }
}

impl Deref for PrivateCluster {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Drop for PrivateCluster {
    fn drop(&mut self) {
        let _ = Command::new(SERVICES).args(["remove", &self.name]).output();
    }
}

const SERVICES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/services/kubernetes");

async fn services(arguments: &[&str]) -> Result<String> {
    let arguments: Vec<String> = arguments.iter().map(|&a| a.to_owned()).collect();
    let what = arguments.join(" ");
    let output = tokio::task::spawn_blocking(move || Command::new(SERVICES).args(arguments).output()).await??;
    if !output.status.success() {
        bail!("tests/services/kubernetes {what}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}
