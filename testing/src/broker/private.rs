//! Brokers of one test alone.

use std::ops::Deref;

use anyhow::Result;

use super::TestBroker;
use crate::permits::{Kind, Permit};
use crate::private::{Private, Service};

/// A broker of one test alone, which it may freeze and kill. Removed, with its data, when dropped.
#[derive(Debug)]
pub struct PrivateBroker {
    broker: TestBroker,
    private: Private,
}

impl PrivateBroker {
    /// Starts one, once it has a permit; takes about four seconds. `options` as `tests/services/rabbitmq start` takes them, e.g. `--suite`,
    /// `trixie`.
    pub async fn start(name: &str, options: &[&str]) -> Result<Self> {
        let permit = Permit::take(Kind::Broker).await?;
        let name = format!("{name}-{}", std::process::id());
        let (private, variables) = Private::start(Service::RabbitMq, name, options, permit).await?;
        Ok(Self { broker: TestBroker::from_variables(|name| variables.get(name).cloned())?, private })
    }

    /// A node of a cluster: all nodes share one permit.
    pub(super) async fn node(name: String) -> Result<Self> {
        let (private, variables) = Private::of(Service::RabbitMq, name).await?;
        Ok(Self { broker: TestBroker::from_variables(|name| variables.get(name).cloned())?, private })
    }

    /// As `tests/services/rabbitmq list` shows it.
    pub fn name(&self) -> &str {
        &self.private.name
    }

    /// Ends it as a power cut would.
    pub async fn kill9(&self) -> Result<()> {
        self.private.command("kill9").await
    }

    /// Ends it in order.
    pub async fn stop(&self) -> Result<()> {
        self.private.command("stop").await
    }

    /// Brings it back after `kill9` or `stop`: same addresses, same data. Returns when it serves.
    pub async fn start_again(&self) -> Result<()> {
        self.private.start_again(&[]).await
    }

    /// Freezes it: connections stay open, nothing answers.
    pub async fn pause(&self) -> Result<()> {
        self.private.command("pause").await
    }

    /// Thaws it.
    pub async fn resume(&self) -> Result<()> {
        self.private.command("resume").await
    }

    /// Cuts it off from the other nodes of its cluster; clients reach it as before.
    pub async fn part(&self) -> Result<()> {
        self.private.command("part").await
    }

    /// Ends that.
    pub async fn rejoin(&self) -> Result<()> {
        self.private.command("rejoin").await
    }

    /// Restarts it with a certificate of a new CA, which `tls_ca` names from now on. Returns when it serves.
    pub async fn renew_ca(&self) -> Result<()> {
        self.private.command("renew-ca").await
    }

    /// Puts an empty disk under it and starts it again.
    pub async fn wipe(&self) -> Result<()> {
        self.private.command("wipe").await
    }

    /// `rabbitmqctl`; what it printed.
    pub async fn ctl(&self, arguments: &[&str]) -> Result<String> {
        Service::RabbitMq.run(&[&["ctl", self.name()], arguments].concat()).await
    }
}

impl Deref for PrivateBroker {
    type Target = TestBroker;

    fn deref(&self) -> &TestBroker {
        &self.broker
    }
}
