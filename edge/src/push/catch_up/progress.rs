//! The progress of a connection that catches up, as a state machine without I/O: what was found, and what to do next.

use std::{sync::Arc, time::Duration};

use super::read::StreamRead;
use crate::{
    broker::{Position, ReadError},
    push::{entry::Entry, gap::Gap, hub::Advance},
};

/// Delay between attempts to read while the broker is unreachable.
const RETRY: Duration = Duration::from_millis(500);
/// The longest of them for a connection that is ahead of the edge's reader, and has seen that nothing follows: the reader
/// comes nearer with each push, and none of them is a reason to read again.
const LONGEST_RETRY: Duration = Duration::from_secs(8);
/// A replica may lag behind the edge that the client comes from: only after these attempts does a position beyond the
/// end belong to another stream.
const BEYOND_END_ATTEMPTS: u32 = 4;
/// Delay between them.
const BEYOND_END_WAIT: Duration = Duration::from_millis(150);

/// Where a connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// From now on.
    Now,
    /// After this message.
    After(Position),
    /// With a cursor that can't belong to this business's stream.
    UnknownCursor,
}

/// What was found.
#[derive(Debug)]
pub(super) enum Input {
    /// The hub's answer to [`Action::Advance`].
    Advanced(Advance),
    /// Whether [`Action::Join`] made the connection live; otherwise the reader is not attached, or not as far.
    Joined(bool),
    /// What [`Action::Read`] brought.
    Read(Result<StreamRead, ReadError>),
    /// The position up to which [`Action::Deliver`] is done; what follows is to be chosen anew. `None`: it had not begun.
    Delivered(Option<Position>),
    /// [`Action::AwaitLog`], [`Action::AwaitReader`] or [`Action::Wait`] is done.
    Done,
}

/// What to do next.
#[derive(Debug)]
pub(super) enum Action {
    /// Ask the hub for what follows this position; the connection goes live if that is everything.
    Advance(Position),
    /// Go live at the log's end, if that is not before this offset, and report the gap.
    Join(Option<Gap>, u64),
    /// Read the stream from this position on.
    Read {
        /// The position.
        at: Position,
        /// Whether a page will do that ended there a moment ago.
        ahead: bool,
    },
    /// Queue these, and then this position.
    Deliver(Vec<Arc<Entry>>, Position),
    /// Wait until the log changes.
    AwaitLog,
    /// Wait until the log has changed and has this offset, or is another one; not longer than this.
    AwaitReader(u64, Duration),
    /// Wait for this time.
    Wait(Duration),
    /// The connection is live.
    End,
}

/// See the module.
#[derive(Debug)]
pub(super) enum Progress {
    /// The client has seen everything up to `at`.
    Resuming {
        at: Position,
        /// Reads that found the stream ending before it.
        beyond_end: u32,
        /// The log has not reached it, or is of another stream; otherwise the log has what is missing, or had it.
        ahead_of_log: bool,
        /// Reads in a row that brought nothing while it was ahead of the log.
        in_vain: u32,
    },
    /// It starts from now.
    Joining(Option<Gap>),
}

impl Progress {
    /// Where a connection begins.
    pub(super) fn new(start: StartAt) -> Self {
        match start {
            StartAt::Now => Self::Joining(None),
            StartAt::UnknownCursor => Self::Joining(Some(Gap::Cursor)),
            StartAt::After(at) => Self::Resuming { at, beyond_end: 0, ahead_of_log: false, in_vain: 0 },
        }
    }

    /// The next attempt to go live.
    pub(super) fn attempt(&self) -> Action {
        match self {
            Self::Resuming { at, .. } => Action::Advance(*at),
            Self::Joining(gap) => Action::Join(*gap, 0),
        }
    }

    /// The next action after what was found.
    pub(super) fn next(&mut self, input: Input) -> Action {
        let Self::Resuming { at, beyond_end, ahead_of_log, in_vain } = self else {
            return match input {
                Input::Joined(true) => Action::End,
                Input::Joined(false) => Action::AwaitLog,
                _ => self.attempt(),
            };
        };
        match input {
            Input::Delivered(Some(reached)) => {
                *at = reached;
                *in_vain = 0;
                self.attempt()
            }
            Input::Delivered(None) | Input::Done => self.attempt(),
            Input::Advanced(Advance::Live) | Input::Joined(true) => Action::End,
            Input::Advanced(Advance::More(entries, reached)) => Action::Deliver(entries, reached),
            Input::Advanced(Advance::Unattached) => Action::AwaitLog,
            Input::Joined(false) => await_reader(*at, in_vain),
            Input::Advanced(Advance::Older) => {
                *ahead_of_log = false;
                Action::Read { at: *at, ahead: false }
            }
            // Which of the two streams is the one that is there now, only reading shows: the reader may not have noticed
            // yet that its own is gone.
            Input::Advanced(Advance::Newer | Advance::OtherStream) => {
                *ahead_of_log = true;
                Action::Read { at: *at, ahead: true }
            }
            Input::Read(Ok(StreamRead::Continues { entries, reached: Some(reached) })) => {
                *beyond_end = 0;
                Action::Deliver(entries, reached)
            }
            Input::Read(Ok(StreamRead::Continues { reached: None, .. })) => {
                *beyond_end = 0;
                // A replica that is behind the log may have answered: the log has what is missing, and may not change
                // for a long time.
                if *ahead_of_log { await_reader(*at, in_vain) } else { Action::Wait(RETRY) }
            }
            Input::Read(Ok(StreamRead::BeyondEnd)) if *beyond_end < BEYOND_END_ATTEMPTS => {
                *beyond_end += 1;
                Action::Wait(BEYOND_END_WAIT)
            }
            // The leader has said where the stream ends: it is another one, and shorter. Whoever waited for its own offset
            // would wait until this one is as long. Where the reader has not noticed yet, the log may end in the former
            // stream, even before the client's position: then another gap follows, and nothing is missing unsaid.
            Input::Read(Ok(StreamRead::BeyondEnd)) => {
                *self = Self::Joining(Some(Gap::Incarnation));
                self.attempt()
            }
            // The stream has the client's offset, or has had it. A log that ends before it has a reader that is slow, and
            // may lose the same soon: whoever joined there would be back before its own position.
            Input::Read(Ok(StreamRead::Gap(gap))) => Action::Join(Some(gap), at.offset),
            Input::Read(Err(_)) => Action::Wait(RETRY),
        }
    }
}

/// The wait of a connection that knows its stream, and is ahead of the edge's reader.
fn await_reader(at: Position, in_vain: &mut u32) -> Action {
    let longest = RETRY.saturating_mul(2_u32.saturating_pow(*in_vain)).min(LONGEST_RETRY);
    *in_vain = in_vain.saturating_add(1);
    Action::AwaitReader(at.offset, longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: u64) -> Position {
        Position { offset, fingerprint: offset }
    }

    fn resuming() -> Progress {
        Progress::new(StartAt::After(at(7)))
    }

    fn read(reached: Option<u64>) -> Input {
        Input::Read(Ok(StreamRead::Continues { entries: vec![], reached: reached.map(at) }))
    }

    /// The next actions, in words.
    fn actions(progress: &mut Progress, inputs: Vec<Input>) -> Vec<String> {
        inputs
            .into_iter()
            .map(|input| match progress.next(input) {
                Action::Advance(at) => format!("advance {}", at.offset),
                Action::Join(gap, 0) => format!("join {}", gap.map_or("", Gap::label)),
                Action::Join(gap, offset) => format!("join {} from {offset}", gap.map_or("", Gap::label)),
                Action::Read { at, .. } => format!("read {}", at.offset),
                Action::Deliver(_, at) => format!("deliver {}", at.offset),
                Action::AwaitLog => "await log".into(),
                Action::AwaitReader(offset, longest) => format!("await {offset} for {}", longest.as_millis()),
                Action::Wait(time) => format!("wait {}", time.as_millis()),
                Action::End => "end".into(),
            })
            .collect()
    }

    #[test]
    fn a_client_without_a_cursor_goes_live_when_the_reader_is_attached() {
        let mut progress = Progress::new(StartAt::Now);
        assert!(matches!(progress.attempt(), Action::Join(None, 0)));
        let inputs = vec![Input::Joined(false), Input::Done, Input::Joined(true)];
        assert_eq!(actions(&mut progress, inputs), ["await log", "join ", "end"]);
    }

    #[test]
    fn an_unknown_cursor_is_a_gap() {
        assert!(matches!(Progress::new(StartAt::UnknownCursor).attempt(), Action::Join(Some(Gap::Cursor), 0)));
    }

    #[test]
    fn what_was_missed_comes_from_the_stream_and_then_from_the_log() {
        let inputs = vec![
            Input::Advanced(Advance::Unattached),
            Input::Done,
            Input::Advanced(Advance::Older),
            read(Some(20)),
            Input::Delivered(Some(at(20))),
            Input::Advanced(Advance::More(vec![], at(30))),
            Input::Delivered(Some(at(30))),
            Input::Advanced(Advance::Live),
        ];
        let expected =
            ["await log", "advance 7", "read 7", "deliver 20", "advance 20", "deliver 30", "advance 30", "end"];
        assert_eq!(actions(&mut resuming(), inputs), expected);
    }

    #[test]
    fn what_was_not_delivered_is_chosen_anew() {
        let inputs = vec![read(Some(20)), Input::Delivered(Some(at(15))), read(Some(20)), Input::Delivered(None)];
        assert_eq!(actions(&mut resuming(), inputs), ["deliver 20", "advance 15", "deliver 20", "advance 15"]);
    }

    #[test]
    fn a_stream_that_ends_before_the_cursor_is_asked_again_and_then_a_gap() {
        let mut progress = resuming();
        for _ in 0..BEYOND_END_ATTEMPTS {
            let inputs = vec![Input::Advanced(Advance::Newer), Input::Read(Ok(StreamRead::BeyondEnd)), Input::Done];
            assert_eq!(actions(&mut progress, inputs), ["read 7", "wait 150", "advance 7"]);
        }
        let inputs = vec![Input::Advanced(Advance::Newer), Input::Read(Ok(StreamRead::BeyondEnd)), Input::Joined(true)];
        assert_eq!(actions(&mut progress, inputs), ["read 7", "join incarnation", "end"]);
    }

    #[test]
    fn a_successful_read_resets_the_attempts() {
        let mut progress = resuming();
        for _ in 0..3 * BEYOND_END_ATTEMPTS {
            let inputs = vec![Input::Read(Ok(StreamRead::BeyondEnd)), read(None)];
            assert_eq!(actions(&mut progress, inputs)[0], "wait 150");
        }
    }

    #[test]
    fn a_lagging_replica_is_asked_again_and_a_log_that_is_behind_is_awaited() {
        for (step, expected) in [
            (Advance::Older, "wait 500"),
            (Advance::Newer, "await 7 for 500"),
            (Advance::OtherStream, "await 7 for 500"),
        ] {
            let inputs = vec![Input::Advanced(step), read(None), Input::Done];
            assert_eq!(actions(&mut resuming(), inputs), ["read 7", expected, "advance 7"]);
        }
    }

    #[test]
    fn unproven_continuity_is_a_gap_and_an_unreachable_broker_is_not() {
        for (input, expected) in [
            (Input::Read(Ok(StreamRead::Gap(Gap::Incarnation))), "join incarnation from 7"),
            (Input::Read(Ok(StreamRead::Gap(Gap::Retention))), "join retention from 7"),
            (Input::Read(Err(ReadError("away".into()))), "wait 500"),
        ] {
            assert_eq!(actions(&mut resuming(), vec![input]), [expected]);
        }
    }

    #[test]
    fn who_is_ahead_of_the_reader_waits_longer_each_time_and_begins_anew_after_progress() {
        let mut progress = resuming();
        let waits = |progress: &mut Progress| {
            let mut wait =
                || actions(progress, vec![Input::Advanced(Advance::Newer), read(None), Input::Done])[1].clone();
            [wait(), wait(), wait(), wait(), wait(), wait()].map(|wait| wait.rsplit(' ').next().unwrap().to_owned())
        };
        assert_eq!(waits(&mut progress), ["500", "1000", "2000", "4000", "8000", "8000"]);
        actions(&mut progress, vec![read(Some(9)), Input::Delivered(Some(at(9)))]);
        assert_eq!(waits(&mut progress)[..2], ["500", "1000"]);
    }

    #[test]
    fn a_gap_is_read_again_when_the_log_was_not_as_far() {
        let lost = || Input::Read(Ok(StreamRead::Gap(Gap::Retention)));
        let inputs = vec![
            lost(),
            Input::Joined(false),
            Input::Done,
            Input::Advanced(Advance::Newer),
            lost(),
            Input::Joined(true),
        ];
        let expected =
            ["join retention from 7", "await 7 for 500", "advance 7", "read 7", "join retention from 7", "end"];
        assert_eq!(actions(&mut resuming(), inputs), expected);
    }
}
