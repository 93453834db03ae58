//! Reads records into entries, and judges the content of those whose route says `validate: Always`: AMQP does not ask
//! anybody before a service publishes. A refused push becomes an entry without a push, at its place, so entries keep
//! their order, and whoever reads them waits for the verdicts.
//!
//! What is light to check is checked here, with pauses for other tasks; the rest in the [`CheckPool`], off the threads
//! that serve sockets. Other businesses' readers do not wait.
//!
//! [`CheckPool`]: crate::business::check_pool::CheckPool

use std::sync::Arc;

use tokio::time::Instant;
use wirepost_core::Envelope;
use wirepost_runtime::tasks;

use super::{
    entry::{Entry, Rejected},
    hub::Hub,
    rejection::Rejection,
};
use crate::{broker::Record, business::Business, turn};

/// An entry for each record, in order, with the reasons where it has no valid recipients or content, or where another
/// business that it names does not take it.
pub(super) async fn read(hub: &Hub, business: &Arc<Business>, records: &[Record]) -> Vec<(Entry, Vec<Rejected>)> {
    let mut entries = Vec::with_capacity(records.len());
    let mut begun = Instant::now();
    for record in records {
        // Reading one takes its time as well: a page has thousands.
        turn::charge(begun).await;
        begun = Instant::now();
        let (entry, mut rejected) = Entry::read(business, record, &hub.backlog);
        let Some(route) = entry.push.as_ref().and_then(|push| push.judge) else {
            entries.push((entry, rejected));
            continue;
        };
        entries.push(match unfit(hub, business, usize::from(route), record).await {
            None => (entry, rejected),
            Some(why) => {
                let id = Envelope::readable_id(&record.body).map(Into::into);
                rejected.push(Rejected::by_this(business, record, id, why));
                (Entry::mark(record.position), rejected)
            }
        });
    }
    entries
}

async fn unfit(hub: &Hub, business: &Arc<Business>, route: usize, record: &Record) -> Option<Rejection> {
    if let Some(verdict) = judge(business, route, &record.body, false) {
        return verdict.err();
    }
    let (of_job, body) = (Arc::clone(business), record.body.clone());
    // Its own turn among those of all businesses: a crowd of its clients' large messages does not delay it.
    let judged = hub.context.checks.run_patiently(&hub.name, move || {
        tasks::catch(|| judge(&of_job, route, &body, true)).unwrap_or_else(|cause| {
            tracing::error!(business = of_job.name(), %cause, "checking a push panicked");
            Some(Err(Rejection::SchemaMismatch("it can't be checked; this is a bug of wirepost".into())))
        })
    });
    judged.await?.err()
}

/// Whether the content of a push fits its route's schema. `None`: that takes too long to be checked here; never with `all`.
fn judge(business: &Business, route: usize, body: &[u8], all: bool) -> Option<Result<(), Rejection>> {
    let route = business.routes.get(route)?;
    let envelope = Envelope::parse(body).ok()?;
    if !all && route.is_heavy(envelope.content) {
        return None;
    }
    Some(route.check_content(envelope.content).map_err(Rejection::from))
}
