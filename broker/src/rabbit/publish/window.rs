//! The unconfirmed messages of one channel, by their delivery tags. No I/O.
//!
//! A tag is the number of a publish on its channel, so a confirm names its messages exactly, even if it is late: a message whose deadline
//! has passed keeps its slot until the broker has answered it too.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::{fair::HasDeadline, job::Job};
use crate::PublishError;

/// A publish that the broker has not answered, or has answered before an earlier one.
#[derive(Debug)]
struct Slot {
    /// `None`: its caller was answered, by the broker or at the deadline, or it is an event, which has none.
    job: Option<Job>,
    /// The broker has not answered it.
    open: bool,
    /// Why the broker returned it.
    returned: Option<String>,
    sent: Instant,
    /// Where its bytes begin on the connection.
    position: u64,
    /// Of its body.
    bytes: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// The tag of the first slot, less one.
    before: u64,
    slots: VecDeque<Slot>,
    open: usize,
    open_bytes: u64,
}

/// The broker violated the protocol: it answered a message that was not sent, or answered one twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unasked;

impl Window {
    /// Messages that the broker has not answered.
    pub(super) fn len(&self) -> usize {
        self.open
    }

    /// Bytes of their bodies, without events.
    pub(super) fn bytes(&self) -> u64 {
        self.open_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open == 0
    }

    /// The tag of the next message.
    pub(super) fn next_tag(&self) -> u64 {
        self.before + self.slots.len() as u64 + 1
    }

    /// Adds the message with the tag [`Self::next_tag`]. `position`: where its bytes begin on the connection.
    pub(super) fn push(&mut self, mut job: Job, now: Instant, position: u64) {
        job.sent();
        self.add(Some(job), now, position);
    }

    /// Adds an event with the tag [`Self::next_tag`].
    pub(super) fn push_event(&mut self, now: Instant, position: u64) {
        self.add(None, now, position);
    }

    fn add(&mut self, job: Option<Job>, now: Instant, position: u64) {
        let bytes = job.as_ref().map_or(0, Job::bytes);
        self.slots.push_back(Slot { job, open: true, returned: None, sent: now, position, bytes });
        self.open += 1;
        self.open_bytes += bytes;
    }

    fn slot(&mut self, tag: u64) -> Result<&mut Slot, Unasked> {
        let index = tag.checked_sub(self.before + 1).ok_or(Unasked)?;
        self.slots.get_mut(usize::try_from(index).map_err(|_| Unasked)?).filter(|slot| slot.open).ok_or(Unasked)
    }

    /// Records that the broker returned this message; its confirm follows.
    pub(super) fn returned(&mut self, tag: u64, reason: String) -> Result<(), Unasked> {
        self.slot(tag)?.returned = Some(reason);
        Ok(())
    }

    /// Takes a confirm of this message, or of all up to it. Returns the number of messages that it answered.
    pub(super) fn settle(&mut self, tag: u64, multiple: bool, taken: bool) -> Result<u32, Unasked> {
        let last = usize::try_from(tag.checked_sub(self.before + 1).ok_or(Unasked)?).map_err(|_| Unasked)?;
        if last >= self.slots.len() {
            return Err(Unasked);
        }
        let first = if multiple { 0 } else { last };
        let mut answered = 0;
        for slot in self.slots.range_mut(first..=last).filter(|slot| slot.open) {
            slot.open = false;
            self.open_bytes -= slot.bytes;
            answered += 1;
            if let Some(job) = slot.job.take() {
                job.answer(match slot.returned.take() {
                    Some(reason) => Err(PublishError::Unrouted(reason)),
                    None if taken => Ok(()),
                    // One queue may have taken it, and another, which is full, may not.
                    None => Err(PublishError::Unknown("a queue did not take it; it may be full".to_owned())),
                });
            }
        }
        self.open -= answered as usize;
        while self.slots.front().is_some_and(|slot| !slot.open) {
            self.slots.pop_front();
            self.before += 1;
        }
        Ok(answered)
    }

    /// Answers the messages whose deadline has passed.
    pub(super) fn expire(&mut self, now: Instant) {
        for slot in &mut self.slots {
            if let Some(job) = slot.job.take_if(|job| job.deadline() <= now) {
                job.answer(Err(PublishError::Unknown("the broker did not confirm in time".to_owned())));
            }
        }
    }

    /// When the oldest message that the broker has not answered was sent.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.slots.front().map(|slot| slot.sent)
    }

    /// Whether a caller waits for an answer.
    pub(super) fn is_awaited(&self) -> bool {
        self.slots.iter().any(|slot| slot.job.is_some())
    }

    /// The channel has ended: answers all callers. A message that begins at `written` or after it was never sent.
    pub(super) fn lost(self, written: u64, error: &PublishError) {
        for slot in self.slots {
            let Some(job) = slot.job else { continue };
            job.answer(Err(match slot.returned {
                Some(reason) => PublishError::Unrouted(reason),
                None if slot.position >= written => PublishError::Unavailable(error.to_string()),
                None => error.clone(),
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use tokio::sync::oneshot;

    use super::*;
    use crate::{Confirm, Publication, rabbit::counters::Counters};

    fn job(counters: &Arc<Counters>) -> (Job, Confirm) {
        let (reply, confirm) = oneshot::channel();
        let publication = Publication {
            exchange: "e".into(),
            routing_key: "k".into(),
            queue: None,
            message_id: String::new(),
            body: bytes::Bytes::new(),
            timestamp: 0,
            headers: vec![],
        };
        (Job::new(publication, reply, counters.clone()), confirm)
    }

    fn fill(window: &mut Window, counters: &Arc<Counters>, count: u64) -> Vec<Confirm> {
        let mut confirms = Vec::new();
        for position in 0..count {
            let (job, confirm) = job(counters);
            window.push(job, Instant::now(), position * 100);
            confirms.push(confirm);
        }
        confirms
    }

    #[test]
    fn a_returned_message_inside_a_window_is_refused_and_the_others_are_confirmed() {
        let (mut window, counters) = (Window::default(), Arc::default());
        let mut confirms = fill(&mut window, &counters, 5);
        window.returned(3, "no route".into()).unwrap();
        assert_eq!(window.settle(2, false, true), Ok(1));
        assert_eq!(window.settle(5, true, true), Ok(4));
        let outcomes: Vec<_> = confirms.iter_mut().map(|confirm| confirm.try_recv().unwrap()).collect();
        let refused = |outcome: &Result<_, _>| matches!(outcome, Err(PublishError::Unrouted(_)));
        assert_eq!(outcomes.iter().map(refused).collect::<Vec<_>>(), [false, false, true, false, false]);
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 4);
        assert_eq!((window.len(), window.next_tag(), counters.in_flight.get()), (0, 6, 0));
        for tag in [0, 3, 6] {
            assert_eq!(window.settle(tag, false, true), Err(Unasked));
            assert_eq!(window.returned(tag, String::new()), Err(Unasked));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_confirm_is_not_taken_for_that_of_another_message() {
        let (mut window, counters) = (Window::default(), Arc::default());
        let mut late = fill(&mut window, &counters, 1);
        tokio::time::advance(std::time::Duration::from_secs(2)).await;
        window.expire(Instant::now());
        assert!(matches!(late[0].try_recv(), Ok(Err(PublishError::Unknown(_)))));
        assert!(!window.is_awaited() && !window.is_empty());
        let mut next = fill(&mut window, &counters, 1);
        assert_eq!(window.settle(1, false, true), Ok(1));
        assert!(next[0].try_recv().is_err(), "not answered yet");
        assert_eq!(window.settle(2, false, false), Ok(1));
        assert!(matches!(next[0].try_recv(), Ok(Err(PublishError::Unknown(_)))));
    }

    #[test]
    fn what_was_never_written_can_not_have_arrived() {
        let (mut window, counters) = (Window::default(), Arc::default());
        let mut confirms = fill(&mut window, &counters, 3);
        // The second one begins at 100, and one byte of it was written.
        window.lost(101, &PublishError::Unknown("cut".into()));
        let outcomes: Vec<_> = confirms.iter_mut().map(|confirm| confirm.try_recv().unwrap().unwrap_err()).collect();
        assert!(matches!(outcomes[0], PublishError::Unknown(_)) && matches!(outcomes[1], PublishError::Unknown(_)));
        assert!(matches!(outcomes[2], PublishError::Unavailable(_)), "{outcomes:?}");
    }

    proptest! {
        /// Every message gets the broker's answer to it, whatever the order and grouping of confirms.
        #[test]
        fn confirms_in_any_order_answer_each_message_once(
            steps in proptest::collection::vec((0u8..4, 1u64..40, any::<bool>()), 1..120),
        ) {
            let (mut window, counters) = (Window::default(), Arc::default());
            let mut confirms: Vec<(Confirm, Option<bool>)> = Vec::new();
            for (step, tag, flag) in steps {
                match step {
                    0 | 1 => confirms.extend(fill(&mut window, &counters, 1).into_iter().map(|confirm| (confirm, None))),
                    _ => {
                        let multiple = step == 3;
                        let open = |n: usize| confirms.get(n).is_some_and(|(_, answer)| answer.is_none());
                        let (last, first_open) = (tag as usize - 1, (0..confirms.len()).find(|n| open(*n)));
                        let valid = last < confirms.len() && first_open.is_some_and(|first| last >= first);
                        let result = window.settle(tag, multiple, flag);
                        prop_assert_eq!(result.is_ok(), valid);
                        if valid {
                            for n in if multiple { 0..=last } else { last..=last } {
                                if confirms[n].1.is_none() {
                                    confirms[n].1 = Some(flag);
                                }
                            }
                        }
                    }
                }
            }
            let open = confirms.iter().filter(|(_, answer)| answer.is_none()).count();
            prop_assert_eq!((window.len(), counters.in_flight.get()), (open, open as u64));
            for (confirm, answer) in &mut confirms {
                prop_assert_eq!(confirm.try_recv().ok().map(|outcome| outcome.is_ok()), *answer);
            }
        }
    }
}
