//! Messages of one connection that wait for the broker's confirm.

use std::{
    collections::VecDeque,
    future::poll_fn,
    task::{Context, Poll, ready},
};

use futures_util::FutureExt;

use crate::broker::{Confirm, PublishError};

/// A message's id and the broker's answer.
pub type Outcome = (String, Result<(), PublishError>);

/// The window, in the order of the messages; no memory while none waits. Of several messages that have been answered, the
/// first one comes first, so that answers keep the order of the messages wherever the broker does. Few wait at a time, so
/// all of them are polled.
#[derive(Default)]
pub struct Window {
    pending: VecDeque<Pending>,
}

/// A message for one queue or several, each by its own publish.
struct Pending {
    id: String,
    /// Of the publishes that have not been answered.
    confirms: Vec<Confirm>,
    several: bool,
    error: Option<PublishError>,
    arrived: bool,
}

impl Window {
    /// Adds a message with the confirms of its publishes, at least one.
    pub fn add(&mut self, id: String, confirms: Vec<Confirm>) {
        let several = confirms.len() > 1;
        self.pending.push_back(Pending { id, confirms, several, error: None, arrived: false });
    }

    /// The next outcome; pending while no message waits. Cancel safe.
    pub async fn next(&mut self) -> Outcome {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        for index in 0..self.pending.len() {
            let Poll::Ready(outcome) = self.pending[index].poll(cx) else { continue };
            let Some(Pending { id, .. }) = self.pending.remove(index) else { continue };
            if self.pending.is_empty() {
                self.pending = VecDeque::new();
            }
            return Poll::Ready((id, outcome));
        }
        Poll::Pending
    }
}

impl Pending {
    /// If not every queue confirmed it, it must be sent again, and some queues may have it.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PublishError>> {
        while let Some(confirm) = self.confirms.last_mut() {
            let answer = ready!(confirm.poll_unpin(cx));
            self.confirms.pop();
            match answer.unwrap_or_else(|_| Err(PublishError::Unknown("the publisher ended".into()))) {
                Ok(()) => self.arrived = true,
                Err(error) => {
                    self.arrived |= matches!(error, PublishError::Unknown(_));
                    self.error.get_or_insert(error);
                }
            }
        }
        Poll::Ready(match self.error.take() {
            None => Ok(()),
            Some(error) if self.several && self.arrived => {
                Err(PublishError::Unknown(format!("not every queue that it is for has it: {error}")))
            }
            Some(error) => Err(error),
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn of_several_answers_that_of_the_first_message_comes_first() {
        let mut window = Window::default();
        let mut senders = Vec::new();
        for id in ["1", "2", "3"] {
            let (sender, confirm) = oneshot::channel();
            window.add(id.into(), vec![confirm]);
            senders.push(sender);
        }
        assert!(window.next().now_or_never().is_none());
        for sender in senders.split_off(1).into_iter().rev() {
            sender.send(Ok(())).unwrap();
        }
        assert_eq!(window.next().await.0, "2", "the first one is not waited for");
        senders.remove(0).send(Ok(())).unwrap();
        assert_eq!((window.next().await.0, window.next().await.0), ("1".into(), "3".into()));
    }

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
