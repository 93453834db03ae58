//! Every business's conditions, as a watch tells them: no question that would itself be work for the API server.

use std::collections::HashMap;

use anyhow::{Result, bail};
use futures_util::StreamExt;
use kube::{
    Api, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Duration, Instant, timeout},
};
use wirepost_core::business::WsBusiness;
use wirepost_testing::operator::{World, condition_of};

/// Nothing here takes that long.
const LIMIT: Duration = Duration::from_mins(15);

/// What is known of a business.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct State {
    /// Provisioned is True for this generation.
    pub(crate) provisioned: Option<i64>,
    /// Ready, and so Programmed, is True for this generation.
    pub(crate) ready: Option<i64>,
}

type States = HashMap<String, State>;

/// See the module.
pub(crate) struct Observer {
    states: watch::Receiver<States>,
    task: JoinHandle<()>,
}

impl Observer {
    pub(crate) fn start(world: &World) -> Self {
        let api: Api<WsBusiness> = Api::all(world.cluster.client.clone());
        let config = watcher::Config::default().labels(&world.selector());
        let (sender, states) = watch::channel(States::new());
        let task = tokio::spawn(async move {
            let mut events = Box::pin(watcher(api, config).default_backoff());
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::Apply(wsb) | watcher::Event::InitApply(wsb)) => sender.send_modify(|states| {
                        states.insert(wsb.name_any(), state(&wsb));
                    }),
                    Ok(watcher::Event::Delete(wsb)) => sender.send_modify(|states| {
                        states.remove(&wsb.name_any());
                    }),
                    Ok(_) => {}
                    Err(error) => eprintln!("watching: {error}"),
                }
            }
        });
        Self { states, task }
    }

    /// When `is` began to hold.
    pub(crate) async fn wait(&self, what: &str, is: impl FnMut(&States) -> bool) -> Result<Instant> {
        let mut states = self.states.clone();
        if timeout(LIMIT, states.wait_for(is)).await.is_err() {
            bail!("not within {LIMIT:?}: {what}");
        }
        Ok(Instant::now())
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn state(wsb: &WsBusiness) -> State {
    let holds = |condition: &str| {
        let condition = condition_of(wsb, condition)?;
        condition.observed_generation.filter(|_| condition.status == "True")
    };
    State { provisioned: holds("Provisioned"), ready: holds("Ready") }
}
