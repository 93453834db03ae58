//! Messages of one connection that wait for the broker's confirm.

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};

use crate::broker::{Confirm, PublishError};

/// A message's id and what became of it.
pub type Outcome = (String, Result<(), PublishError>);

/// The window; nothing is allocated before its first message.
#[derive(Default)]
pub struct Window {
    pending: Option<FuturesUnordered<BoxFuture<'static, Outcome>>>,
}

impl Window {
    /// Adds a message.
    pub fn add(&mut self, id: String, confirm: Confirm) {
        let outcome = async move {
            let lost = |_| Err(PublishError::Unknown("the publisher ended".into()));
            (id, confirm.await.unwrap_or_else(lost))
        };
        self.pending.get_or_insert_default().push(outcome.boxed());
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.pending.as_ref().map_or(0, FuturesUnordered::len)
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next outcome; pending while none waits. Cancel safe.
    pub async fn next(&mut self) -> Outcome {
        if let Some(pending) = self.pending.as_mut()
            && let Some(outcome) = pending.next().await
        {
            if pending.is_empty() {
                self.pending = None;
            }
            return outcome;
        }
        std::future::pending().await
    }
}
