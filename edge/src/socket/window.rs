//! Messages of one connection that wait for the broker's confirm.

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};

use crate::broker::{Confirm, PublishError};

/// A message's id and the broker's answer.
pub type Outcome = (String, Result<(), PublishError>);

/// The window; nothing is allocated before its first message.
#[derive(Default)]
pub struct Window {
    pending: Option<FuturesUnordered<BoxFuture<'static, Outcome>>>,
}

impl Window {
    /// Adds a message with the confirms of its publishes, at least one.
    pub fn add(&mut self, id: String, confirms: Vec<Confirm>) {
        let outcome = async move { (id, all(confirms).await) };
        self.pending.get_or_insert_default().push(outcome.boxed());
    }

    /// The next outcome; pending while no message waits. Cancel safe.
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

/// The outcome of a message that went to several queues, each by its own publish. If not every queue confirmed it, it
/// must be sent again, and some queues may have it.
async fn all(confirms: Vec<Confirm>) -> Result<(), PublishError> {
    let several = confirms.len() > 1;
    let (mut error, mut arrived) = (None, false);
    for confirm in confirms {
        match confirm.await.unwrap_or_else(|_| Err(PublishError::Unknown("the publisher ended".into()))) {
            Ok(()) => arrived = true,
            Err(new) => {
                arrived |= matches!(new, PublishError::Unknown(_));
                error = error.or(Some(new));
            }
        }
    }
    match error {
        None => Ok(()),
        Some(error) if several && arrived => {
            Err(PublishError::Unknown(format!("not every queue that it is for has it: {error}")))
        }
        Some(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_message_for_two_queues_is_acknowledged_when_both_have_it() {
        let unavailable = || Err(PublishError::Unavailable("away".into()));
        for (answers, expected, arrived) in [
            ([Ok(()), Ok(())], true, true),
            ([unavailable(), unavailable()], false, false),
            ([Ok(()), unavailable()], false, true),
            ([unavailable(), Err(PublishError::Unknown("late".into()))], false, true),
        ] {
            let confirms = answers.into_iter().map(|answer| {
                let (sender, confirm) = oneshot::channel();
                sender.send(answer).unwrap();
                confirm
            });
            let mut window = Window::default();
            window.add("m".into(), confirms.collect());
            let (_, outcome) = window.next().await;
            assert_eq!(outcome.is_ok(), expected);
            assert_eq!(matches!(outcome, Ok(()) | Err(PublishError::Unknown(_))), arrived, "{outcome:?}");
        }
    }
}
