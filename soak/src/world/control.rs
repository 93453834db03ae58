//! Who keeps broker and edges as declared: files and the soak itself, or an operator with an API server, which is then among what is broken.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use wirepost_core::contract::config_map::CONFIG_KEY;
use wirepost_core::edge_config::BusinessConfig;
use wirepost_core::names;
use wirepost_testing::broker::{Vhost, depth};
use wirepost_testing::cluster::Cluster;
use wirepost_testing::edge::EdgeBuilder;
use wirepost_testing::operator::{Operator, World as Installation};
use wirepost_testing::setup::Setup;

use super::Fleet;
use crate::plan::{CHANGED_KIND, CHANGED_TYPE, Changed, PLANS, Plan};

/// What must be over before everybody listens is tried again for so long.
const REPAIR: Duration = Duration::from_mins(3);
const RETRY: Duration = Duration::from_millis(500);
/// An edge reads its files every second; one that was just started may be about to.
const READ_AGAIN: Duration = Duration::from_millis(1500);
/// Messages may still be on their way to `unrouted` when the binding is there again.
const STRAGGLERS: Duration = Duration::from_secs(3);

/// See the module.
pub enum Control {
    Files,
    Operator(Box<Operators>),
}

/// An installation with one operator, which may be killed.
pub struct Operators {
    installation: Installation,
    operator: Mutex<Option<Operator>>,
    /// The key of each business's services.
    keys: Vec<String>,
}

impl Control {
    /// Declares all businesses in this vhost; what is in force then.
    pub(super) async fn start(vhost: Vhost, operator: bool) -> Result<(Self, Setup)> {
        let declarations = PLANS.map(|plan| plan.declaration(Changed::NOT));
        if !operator {
            let setup = Setup::on(vhost, &declarations.each_ref().map(String::as_str)).await?;
            return Ok((Self::Files, setup));
        }
        let installation = Installation::on(Cluster::connect().await?, vhost).await?;
        let operator = started(&installation).await?;
        for declaration in &declarations {
            installation.apply(declaration).await?;
        }
        let mut keys = Vec::new();
        for plan in PLANS {
            // Without edges nothing is programmed yet.
            installation.condition(plan.name, "Provisioned", "True").await?;
            let secret = installation.secret(&plan.secret()).await?.context("no access Secret")?;
            keys.push(secret.get("api-key").context("the access Secret has no api-key")?.clone());
        }
        let setup = installation.setup.clone();
        let operator = Mutex::new(Some(operator));
        Ok((Self::Operator(Box::new(Operators { installation, operator, keys })), setup))
    }

    /// The key of a business's services.
    pub fn key<'a>(&'a self, setup: &'a Setup, business: usize) -> &'a str {
        match self {
            Self::Files => setup.api_key(),
            Self::Operator(operators) => &operators.keys[business],
        }
    }

    /// Where an edge finds its configurations.
    pub(super) fn configures(&self, edge: EdgeBuilder) -> Result<EdgeBuilder> {
        let Self::Operator(operators) = self else { return Ok(edge) };
        let Installation { cluster, system, edge_account, .. } = &operators.installation;
        let kubeconfig: &PathBuf = &edge_account.kubeconfig;
        let address = cluster.address.context("WIREPOST_TEST_ADDRESS is not set")?;
        Ok(edge.config_namespace(&system.name, kubeconfig).flag("admin-listen", format!("{address}:0")))
    }

    /// An edge is there.
    pub(super) async fn came(&self, name: &str, admin: std::net::SocketAddr) -> Result<()> {
        match self {
            Self::Files => Ok(()),
            Self::Operator(operators) => operators.installation.endpoint(name, admin).await,
        }
    }

    /// An edge is gone.
    pub async fn left(&self, name: &str) -> Result<()> {
        match self {
            Self::Files => Ok(()),
            Self::Operator(operators) => operators.installation.leave(name).await,
        }
    }

    /// Changes a declaration; returns when every edge has it.
    pub async fn change(&self, setup: &Setup, fleet: &Fleet, plan: Plan, changed: Changed) -> Result<()> {
        let Changed { rate, allowed, accepts } = changed;
        match self {
            Self::Files => {
                for other in PLANS.into_iter().filter(|other| plan.accepts(other)) {
                    let mut hash = String::new();
                    setup.reconfigure(other.name, |config| {
                        config.accepted_by.retain(|by| accepts || by != plan.name);
                        hash = config.hash();
                    })?;
                    repaired(|| all_have(fleet, other.name, &hash)).await?;
                }
                let mut hash = String::new();
                setup.reconfigure(plan.name, |config| {
                    config.limits.messages_per_second = rate;
                    config.accepts.retain(|_| accepts);
                    let changed = |message_type: &str| message_type == CHANGED_KIND && !allowed;
                    if let Some(route) = config.routes.iter_mut().find(|route| changed(&route.message_type)) {
                        route.to.retain(|to| to != CHANGED_TYPE);
                    }
                    hash = config.hash();
                })?;
                repaired(|| all_have(fleet, plan.name, &hash)).await?;
            }
            Self::Operator(operators) => {
                let declaration = plan.declaration(changed);
                operators.installation.apply(&declaration).await?;
                let ready = || async { operators.installation.condition(plan.name, "Ready", "True").await.map(drop) };
                repaired(ready).await?;
                for sender in PLANS.into_iter().filter(|other| plan.accepts(other)) {
                    repaired(|| operators.told(fleet, sender, plan, accepts)).await?;
                }
            }
        }
        sleep(READ_AGAIN).await;
        Ok(())
    }

    /// Returns when every edge knows whose messages are for whose clients.
    pub(super) async fn settled(&self, fleet: &Fleet) -> Result<()> {
        let Self::Operator(operators) = self else { return Ok(()) };
        for (sender, to) in PLANS.into_iter().flat_map(|sender| PLANS.map(|to| (sender, to))) {
            if to.accepts(&sender) {
                repaired(|| operators.told(fleet, sender, to, true)).await?;
            }
        }
        Ok(())
    }

    /// Restores a binding that was deleted by hand, or waits until the operator did; nothing is left in `unrouted` then.
    pub async fn repair(&self, setup: &Setup, plan: Plan, exchange: &str, queue: &str) -> Result<()> {
        let bound = || async {
            if matches!(self, Self::Files) {
                return setup.repair().await.map(drop);
            }
            let bindings = setup.ask(&["bindings", &setup.vhost().name, "e", exchange, "q", queue]).await?;
            ensure!(bindings.as_array().is_some_and(|bindings| !bindings.is_empty()), "{queue} is not bound yet");
            Ok(())
        };
        repaired(bound).await?;
        sleep(STRAGGLERS).await;
        self.move_back(setup, plan).await
    }

    /// Nothing is left in `unrouted`.
    pub async fn move_back(&self, setup: &Setup, plan: Plan) -> Result<()> {
        let moved = || async {
            if matches!(self, Self::Files) {
                let moved = setup.move_back(plan.name).await?;
                ensure!(moved.stopped.is_none() && moved.strays == 0, "not all was moved back: {moved:?}");
                return Ok(());
            }
            let (_connection, channel) = setup.vhost().channel().await?;
            let waiting = depth(&channel, &names::unrouted(plan.name)).await?;
            ensure!(waiting == 0, "{waiting} messages are in unrouted");
            Ok(())
        };
        repaired(moved).await.with_context(|| format!("moving back what {} has in unrouted", plan.name))
    }

    /// Kills the operator, if there is one, and starts another after a pause.
    pub async fn kill_operator(&self, pause: Duration) -> Result<()> {
        let Self::Operator(operators) = self else { return Ok(()) };
        let mut operator = operators.operator.lock().await;
        if let Some(operator) = operator.take() {
            operator.kill9()?;
        }
        sleep(pause).await;
        *operator = Some(started(&operators.installation).await?);
        Ok(())
    }

    /// Whether there is an operator.
    pub fn has_operator(&self) -> bool {
        matches!(self, Self::Operator(_))
    }
}

impl Operators {
    /// Errors while an edge does not know that messages of `sender` are for clients of `to`, or are no longer. Nothing of
    /// the sender's own was changed, so its conditions tell nothing.
    async fn told(&self, fleet: &Fleet, sender: Plan, to: Plan, accepted: bool) -> Result<()> {
        let (sender, to) = (sender.name, to.name);
        let data = self.installation.config_map(sender).await?.and_then(|map| map.data);
        let text = data.as_ref().and_then(|data| data.get(CONFIG_KEY)).with_context(|| format!("{sender} has none"))?;
        let config: BusinessConfig = serde_json::from_str(text)?;
        let is = config.accepted_by.iter().any(|by| by == to);
        ensure!(is == accepted, "that {to} accepts messages of {sender} is {is} in its configuration");
        all_have(fleet, sender, &config.hash()).await
    }
}

async fn started(installation: &Installation) -> Result<Operator> {
    let operator = installation.operator("operator").start().await?;
    operator.be_quiet();
    Ok(operator)
}

/// Errors while an edge runs another configuration.
async fn all_have(fleet: &Fleet, business: &str, hash: &str) -> Result<()> {
    for place in fleet.places() {
        let (_, text) = place.edge.admin("/configz").await?;
        let configz: Value = serde_json::from_str(&text)?;
        ensure!(configz["businesses"][business] == hash, "{} has not got it yet: {text}", place.edge.name);
    }
    Ok(())
}

/// Repeats a repair until it succeeds, as its own broker may be away.
pub async fn repaired<T, F: Future<Output = Result<T>>>(mut repair: impl FnMut() -> F) -> Result<T> {
    let end = Instant::now() + REPAIR;
    loop {
        match repair().await {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => sleep(RETRY).await,
        }
    }
}
