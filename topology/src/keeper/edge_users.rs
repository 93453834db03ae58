//! The broker users of the edges. They belong to no business, so they are compared with each snapshot, and repaired like the policies that
//! all businesses share.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{
    BrokerFailure, Event,
    actor::{Actor, Finished},
};
use crate::{ApplyOptions, DesiredUser, Error, Report, Snapshot, apply_plan};

pub(super) type EdgeUsersReply = Result<(), BrokerFailure>;

/// See the module.
#[derive(Default)]
pub(super) struct EdgeUsers {
    /// `None`: nobody has said yet who they are, and nothing is done.
    desired: Option<Arc<[DesiredUser]>>,
    state: State,
    /// Callers; a handful, since each waits for its answer.
    waiting: Vec<oneshot::Sender<EdgeUsersReply>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Not compared yet, or something was changed.
    #[default]
    Unknown,
    /// They are being made.
    Setting,
    /// As desired, when last seen.
    Right,
}

impl EdgeUsers {
    /// Whether a snapshot is needed for the answer.
    fn want(&mut self, users: Vec<DesiredUser>, reply: oneshot::Sender<EdgeUsersReply>) -> bool {
        let same = self.desired.as_deref() == Some(&users);
        if same && self.state == State::Right {
            // It fails only when the caller does not wait any more; so do all answers here.
            let _ = reply.send(Ok(()));
            return false;
        }
        if !same {
            (self.desired, self.state) = (Some(users.into()), State::Unknown);
        }
        self.waiting.push(reply);
        true
    }

    pub(super) fn answer(&mut self, answer: &EdgeUsersReply) {
        for reply in self.waiting.drain(..) {
            let _ = reply.send(answer.clone());
        }
    }
}

impl Actor {
    pub(super) fn want_edge_users(&mut self, users: Vec<DesiredUser>, reply: oneshot::Sender<EdgeUsersReply>) {
        if self.edge_users.want(users, reply) {
            self.want_snapshot();
        }
    }

    /// Makes the users as they should be, where a snapshot shows that they are not.
    pub(super) fn make_edge_users(&mut self, snapshot: &Snapshot) {
        let Some(desired) = self.edge_users.desired.clone().filter(|_| self.edge_users.state != State::Setting) else {
            return;
        };
        let plan = snapshot.plan_edge_users(&desired);
        if plan.is_empty() {
            self.edge_users.state = State::Right;
            self.edge_users.answer(&Ok(()));
            return;
        }
        if !self.context.may_write() {
            self.edge_users.state = State::Unknown;
            self.edge_users.answer(&Err(BrokerFailure::stopped()));
            return;
        }
        self.edge_users.state = State::Setting;
        let context = Arc::clone(&self.context);
        self.tasks.spawn(async move {
            let gate = || context.may_write();
            let options = ApplyOptions { gate: Some(&gate), ..ApplyOptions::default() };
            let made = context.unless_stopped(apply_plan(&context.management, plan, options)).await;
            Finished::EdgeUsers(desired, made)
        });
    }

    pub(super) fn edge_users_made(&mut self, made: &Arc<[DesiredUser]>, result: Result<Report, Error>) {
        let answer = match result {
            Ok(report) => {
                for change in &report.changes {
                    tracing::info!(change, "the edges' user");
                }
                self.context.owner.report(Event::Changed { count: report.changes.len(), repair: false });
                BrokerFailure::edge_users(&report).map_or(Ok(()), Err)
            }
            Err(error) => Err(BrokerFailure::from(&error)),
        };
        if let Err(failure) = &answer {
            tracing::warn!(error = %failure, "the edges' broker user is not as it should be; trying again");
        }
        // One that is under way may have been read before.
        self.snapshots.discard();
        if !self.edge_users.desired.as_ref().is_some_and(|desired| Arc::ptr_eq(desired, made)) {
            // Others are wanted by now.
            self.edge_users.state = State::Unknown;
            self.want_snapshot();
            return;
        }
        self.edge_users.state = if answer.is_ok() { State::Right } else { State::Unknown };
        self.edge_users.answer(&answer);
    }
}
