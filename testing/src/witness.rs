//! Sees every state that a business's conditions pass through, also the short ones.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail};
use futures_util::{StreamExt, pin_mut};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::watcher;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wirepost_core::business::WsBusiness;

use crate::broker::eventually;
use crate::cluster::PATIENCE;
use crate::operator::World;

/// Watches one business of the team until it is dropped.
pub struct Witness {
    seen: Arc<Mutex<Vec<Condition>>>,
    task: JoinHandle<()>,
}

impl Witness {
    /// From now on.
    pub async fn of(world: &World, name: &str) -> Result<Self> {
        let api = world.cluster.api::<WsBusiness>(&world.team.name);
        let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let seen = Arc::<Mutex<Vec<Condition>>>::default();
        let (ready, started) = oneshot::channel();
        let notes = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut ready = Some(ready);
            let events = watcher(api, only);
            pin_mut!(events);
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::Apply(wsb) | watcher::Event::InitApply(wsb)) => note(&notes, wsb),
                    Ok(watcher::Event::InitDone) => drop(ready.take().map(|ready| ready.send(()))),
                    Ok(_) => {}
                    Err(error) => eprintln!("the watch of a business: {error}"),
                }
            }
        });
        started.await?;
        Ok(Self { seen, task })
    }

    /// What was seen since the last call, or since the beginning.
    pub fn take(&self) -> Vec<Condition> {
        std::mem::take(&mut *self.lock())
    }

    /// Waits until a condition was seen with this reason and this text in its message.
    pub async fn sees(&self, condition: &str, reason: &str, text: &str) -> Result<()> {
        let seen = || async {
            Ok(self.lock().iter().any(|c| c.type_ == condition && c.reason == reason && c.message.contains(text)))
        };
        if eventually("seen", PATIENCE, seen).await.is_err() {
            bail!("{condition} was never {reason} with {text:?} in {:#?}", self.take());
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Condition>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn note(notes: &Mutex<Vec<Condition>>, wsb: WsBusiness) {
    let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
    for condition in wsb.status.into_iter().flat_map(|status| status.conditions) {
        // The newest of its kind, if that is another.
        let last = notes.iter().rev().find(|c| c.type_ == condition.type_);
        if last.is_none_or(|last| last.reason != condition.reason || last.message != condition.message) {
            notes.push(condition);
        }
    }
}
