//! The end of a business: the edges first, then what it has on the broker, then its Secret and configuration, at last the resource itself.
//!
//! Works though nothing was ever applied. Ends within the deadline: what can't be removed until then stays on the broker, is named in an
//! event, and is removed later as unclaimed (queues only when they are empty).

use std::time::Duration;

use kube::runtime::controller::Action;
use wirepost_core::contract::condition::Reason;

use super::{Context, Error, of_another, report, some};
use crate::{
    access::now_ms,
    config_map,
    metrics::Outcome,
    status::{Findings, Verdict},
    stored::{DELETE_QUEUES, Stored},
};

/// How long edges may take to let a business's clients go; longer only an edge that is cut off from the API server does.
pub(super) const EDGE_WAIT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_millis(500);

pub(super) async fn run(stored: &Stored, context: &Context) -> Result<(Outcome, Action), Error> {
    if !stored.is_held() {
        context.forget(stored);
        return Ok((Outcome::Ready, Action::await_change()));
    }
    if stored.rival(&context.businesses).is_some() || of_another(stored, context).is_some() {
        // Never had anything: all belongs to another resource.
        return release(stored, context).await;
    }
    let business = stored.business_type();
    let age = age(stored);
    if let Some(holding) = tell_edges(stored, context).await?
        && age < EDGE_WAIT.min(context.options.deletion_deadline)
    {
        let text = format!("waiting for {} edges to let its clients go: {}", holding.len(), some(&holding));
        return waiting(stored, context, &text, SOON).await;
    }
    let obstacle = match context.broker.remove(business, deletes_messages(stored)).await {
        Ok(report) if report.is_clean() => None,
        Ok(report) => {
            let what: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
            Some(format!("{}; annotate {DELETE_QUEUES}=now to delete queues with their messages", some(&what)))
        }
        Err(trouble) => Some(format!("the broker can't be cleaned: {trouble}")),
    };
    if let Some(obstacle) = obstacle {
        let left = context.options.deletion_deadline.saturating_sub(age);
        if !left.is_zero() {
            let text = format!("{obstacle}; the resource goes in {} s at the latest", deadline_text(left));
            return waiting(stored, context, &text, LOOK.min(left)).await;
        }
        context.notices.not_cleaned(stored, &obstacle).await;
    }
    release(stored, context).await
}

/// Tells the edges that the business goes; those that still run it, if any.
async fn tell_edges(stored: &Stored, context: &Context) -> Result<Option<Vec<String>>, Error> {
    let business = stored.business_type();
    let Some(there) = context.config_map(business).filter(|map| config_map::owner(map) == stored.owner()) else {
        return Ok(None);
    };
    if !config_map::is_of(&there, stored) {
        // Of a resource of the same name: of one before this, or of one after it that is not seen yet. This changes nothing, and fails if
        // this one is gone.
        context.writer.hold(stored, true).await?;
    }
    if !config_map::is_tombstone(&there) {
        context.writer.config_map(&config_map::tombstone(&there)).await?;
    }
    let holding = context.edges.holding(business);
    Ok((!holding.is_empty()).then_some(holding))
}

async fn waiting(stored: &Stored, context: &Context, text: &str, look: Duration) -> Result<(Outcome, Action), Error> {
    let findings = Findings {
        accepted: Verdict::good(Reason::Accepted, "the resource is being deleted"),
        provisioned: Verdict::bad(Reason::Deleting, text),
        programmed: Verdict::bad(Reason::Deleting, "the edges take no more clients of it"),
        facts: None,
        edges: None,
    };
    report(stored, context, &findings).await?;
    Ok((Outcome::Waiting, Action::requeue(look)))
}

async fn release(stored: &Stored, context: &Context) -> Result<(Outcome, Action), Error> {
    let business = stored.business_type();
    if let Some(binding) = stored.status().binding
        && let Err(error) = context.writer.delete_secret(stored, &binding.name).await
    {
        // Such as in a namespace that is itself being deleted. It has an owner reference, so it goes with the resource.
        tracing::warn!(business, secret = binding.name, %error, "the Secret is left to the garbage collector");
    }
    if context.config_map(business).is_some_and(|map| config_map::owner(&map) == stored.owner()) {
        context.writer.delete_config_map(&config_map::name(business), None).await?;
    }
    context.writer.hold(stored, false).await?;
    context.forget(stored);
    tracing::info!(business, resource = stored.owner(), "removed");
    Ok((Outcome::Ready, Action::await_change()))
}

pub(super) fn deletes_messages(stored: &Stored) -> bool {
    stored.annotation(DELETE_QUEUES) == Some("now")
}

/// Since it was asked for.
pub(super) fn age(stored: &Stored) -> Duration {
    let asked = stored.metadata.deletion_timestamp.as_ref().map_or_else(now_ms, |time| time.0.as_millisecond());
    Duration::from_millis(u64::try_from(now_ms() - asked).unwrap_or_default())
}

/// In steps of a minute, so that the status does not change with every look.
fn deadline_text(left: Duration) -> u64 {
    left.as_secs().div_ceil(60) * 60
}
