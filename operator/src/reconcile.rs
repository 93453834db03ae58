//! One business: from its resource to the broker, the edges, its Secret, and back to its status. Level-based and repeatable: each run looks
//! at what is, makes what is missing, and reports what it found.

mod context;
mod leftover;
mod remove;

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::controller::Action;
use serde_json::Value;
use tokio::time::Instant;
use wirepost_core::{
    Compiled, Problem, Rejection,
    contract::{
        condition::{ConditionType, Reason},
        edge_config::BusinessConfig,
    },
};
use wirepost_topology::{Problem as BrokerProblem, Report};

pub use context::{Context, Memories, Options};
pub use leftover::run as look_for_leftovers;

use crate::{
    access::{self, Access, Rotation},
    broker::{Desired, Trouble},
    config_map,
    edges::Standing,
    metrics::{Object, Outcome},
    status::{Facts, Findings, Verdict},
    stored::{ROTATE, Stored},
    writer::{self, SecretState},
};

/// A declaration that was accepted.
#[derive(Clone)]
struct Good {
    compiled: Arc<Compiled>,
    /// As it was declared.
    spec: Arc<Value>,
    /// Name of the access Secret.
    secret: Option<String>,
}

impl Good {
    fn new(stored: &Stored, compiled: Arc<Compiled>) -> Self {
        let spec = Arc::new(stored.spec.clone());
        Self { compiled, spec, secret: stored.secret_name().map(str::to_owned) }
    }
}

/// Between two looks at an access Secret, which can't be watched without a right to read all Secrets.
const SECRET_LOOK: Duration = Duration::from_secs(20);
/// Between two looks for a queue that its owner has yet to declare.
const QUEUE_LOOK: Duration = Duration::from_secs(10);
/// Reasons of a broker that can't be asked or written to.
const TROUBLE: [Reason; 2] = [Reason::BrokerUnavailable, Reason::BrokerRefused];
/// Problems that a message names; the rest is counted.
const NAMED: usize = 5;

/// Why a reconcile has to be repeated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server.
    #[error(transparent)]
    Write(#[from] writer::Error),
    /// The seed of all credentials.
    #[error("no credentials can be made: {0}")]
    Seed(String),
}

/// Looks at one business.
///
/// # Errors
/// It has to be repeated.
pub async fn reconcile(stored: Arc<Stored>, context: Arc<Context>) -> Result<Action, Error> {
    let begun = Instant::now();
    let _running = context.metrics.running();
    if !context.ready().await {
        return Ok(Action::await_change());
    }
    let result = if context.writer.gate().is_err() {
        // A standby computes, so that it can take over at once.
        let _ = context.compile(&stored);
        return Ok(Action::await_change());
    } else if stored.metadata.deletion_timestamp.is_some() {
        remove::run(&stored, &context).await
    } else {
        apply(&stored, &context).await
    };
    context.metrics.reconcile_seconds.observe(begun.elapsed().as_secs_f64());
    match &result {
        Ok((outcome, _)) => {
            context.metrics.reconciled(*outcome);
            if *outcome == Outcome::Ready {
                context.calm(&stored);
            }
        }
        Err(_) => context.metrics.reconciled(Outcome::Error),
    }
    result.map(|(_, action)| action)
}

/// When to try again after an error.
#[expect(clippy::needless_pass_by_value, reason = "the controller's signature")]
pub fn error_policy(stored: Arc<Stored>, error: &Error, context: Arc<Context>) -> Action {
    match error {
        Error::Write(writer::Error::NotLeader) => Action::await_change(),
        Error::Write(writer::Error::Api { cause, .. }) if writer::is_conflict(cause) => {
            Action::requeue(Duration::from_millis(100))
        }
        // Gone meanwhile.
        Error::Write(writer::Error::Api { cause, .. }) if writer::is_not_found(cause) => Action::await_change(),
        Error::Write(_) | Error::Seed(_) => {
            tracing::warn!(business = stored.owner(), %error, "not reconciled; trying again");
            Action::requeue(context.backoff(&stored))
        }
    }
}

async fn apply(stored: &Stored, context: &Context) -> Result<(Outcome, Action), Error> {
    let compiled = match judge(stored, context) {
        Ok(compiled) => compiled,
        Err(verdict) => return rejected(stored, context, verdict, None).await,
    };
    if !stored.is_held() {
        context.writer.hold(stored, true).await?;
    }
    let good = Good::new(stored, compiled);
    let compiled = &good.compiled;
    let access = access(stored, &good, context).await?;
    let mut facts = facts(compiled, stored, context);
    let mut findings = Findings {
        accepted: Verdict::good(Reason::Accepted, "the declaration is valid"),
        provisioned: Verdict::pending("the broker"),
        programmed: Verdict::pending("the broker"),
        facts: Some(facts.clone()),
        edges: None,
    };
    // Not between two failures to repair it, where each would be news to the other.
    let failing = stored
        .status()
        .conditions
        .iter()
        .any(|c| Reason::parse(&c.reason).is_some_and(|reason| TROUBLE.contains(&reason)));
    if let Some(drift) = context.broker.drift(&compiled.business).filter(|_| !failing) {
        let text = format!("changed by others and about to be repaired: {}", some(&drift));
        findings.provisioned = Verdict::bad(Reason::Drifted, text);
        findings.programmed = programmed(&context.standing(&compiled.business)).0;
        report(stored, context, &findings).await?;
    }
    let new = !compiled.topology.existing_queues.is_empty() && !ran_before(stored, context, compiled);
    let done = match ensure(stored, context, compiled, &access, new).await {
        Ok(done) => done,
        Err(trouble) => return away(stored, context, findings, compiled, &trouble).await,
    };
    if let Some(verdict) = unusable(&done).filter(|_| new) {
        return rejected(stored, context, verdict, Some(QUEUE_LOOK)).await;
    }
    (findings.accepted, findings.provisioned) = provisioned(&done, findings.accepted);
    let mut refused = false;
    if !done.problems.iter().any(blocks) {
        context.remember_good(stored, &good);
        match hand_out(stored, context, &good, access.clone()).await {
            Ok((there, obstacle)) => {
                facts.secret = there;
                findings.facts = Some(facts);
                if let Some(verdict) = obstacle {
                    findings.provisioned = verdict;
                }
            }
            // A quota, an admission policy, an immutable object: a person has to know.
            Err(Error::Write(error)) if error.is_refusal() => {
                refused = true;
                findings.provisioned = Verdict::bad(Reason::WriteRefused, format!("{error}; it is tried again"));
            }
            Err(error) => return Err(error),
        }
    }
    let (verdict, edges) = programmed(&context.standing(&compiled.business));
    (findings.programmed, findings.edges) = (verdict, Some(edges));
    if !findings.accepted.is_good() {
        findings.programmed = Verdict::not_accepted();
    }
    let ready = report(stored, context, &findings).await?;
    if refused {
        return Ok((Outcome::Error, Action::requeue(context.backoff(stored))));
    }
    let outcome = if ready { Outcome::Ready } else { Outcome::Waiting };
    Ok((outcome, Action::requeue_at(next_look(stored, context, &good, &access))))
}

/// Says why a generation is not accepted. What was accepted before goes on, and is kept as it was: what others changed on the broker is put
/// back, a lost Secret comes back, former credentials end. `look`: when to try again, where no change of the resource will tell.
async fn rejected(
    stored: &Stored,
    context: &Context,
    verdict: Verdict,
    look: Option<Duration>,
) -> Result<(Outcome, Action), Error> {
    report(stored, context, &Findings::rejected(verdict)).await?;
    let good = context.good(stored).or_else(|| running(stored, context));
    let good = good.filter(|_| stored.rival(&context.businesses).is_none() && of_another(stored, context).is_none());
    let Some(good) = good else { return Ok((Outcome::Waiting, Action::requeue_at(look))) };
    let access = access(stored, &good, context).await?;
    let Ok(done) = ensure(stored, context, &good.compiled, &access, false).await else {
        return Ok((Outcome::Error, Action::requeue(context.backoff(stored))));
    };
    if !done.problems.iter().any(blocks) {
        hand_out(stored, context, &good, access.clone()).await?;
    }
    let looks = next_look(stored, context, &good, &access).into_iter().chain(look);
    Ok((Outcome::Waiting, Action::requeue_at(looks.min())))
}

/// This generation, if it was accepted before something else stood in its way, such as an older definition or a rule that is newer than it.
fn running(stored: &Stored, context: &Context) -> Option<Good> {
    let compiled = stored.compile_accepted().filter(|compiled| ran_before(stored, context, compiled))?;
    Some(Good::new(stored, Arc::new(compiled)))
}

/// The edge configuration of the business type, if it was written for a resource of another name that is not seen here: between those that
/// are seen their age decides.
fn of_another(stored: &Stored, context: &Context) -> Option<Arc<ConfigMap>> {
    let map = context.config_map(stored.business_type())?;
    let uid = config_map::owner_uid(&map).filter(|uid| *uid != stored.uid())?;
    let claims = |other: &Stored| other.uid() == uid && other.business_type() == stored.business_type();
    let another =
        !["", &stored.owner()].contains(&config_map::owner(&map)) && context.businesses.state_filter(claims).is_empty();
    another.then_some(map)
}

/// What the edges and the business's services get. Once the Secret has new credentials the hour of the former ones begins, and not before.
async fn hand_out(
    stored: &Stored,
    context: &Context,
    good: &Good,
    access: Access,
) -> Result<(Option<String>, Option<Verdict>), Error> {
    program(stored, context, good, &access).await?;
    let (there, obstacle) = secret(stored, context, good, &access).await?;
    let delivered = access.rotation.as_ref().filter(|_| obstacle.is_none()).and_then(Rotation::delivered);
    if let Some(rotation) = delivered {
        context.remember_rotation(stored, &rotation);
        let seed = context.seed().await.map_err(|error| Error::Seed(format!("{error:#}")))?;
        let (place, business) = (&context.options.place, &good.compiled.business);
        let access = Access::new(&seed, &place.vhost, business, stored.uid(), rotation);
        program(stored, context, good, &access).await?;
    }
    Ok((there, obstacle))
}

/// Whether this generation was accepted once, by this process or another.
fn ran_before(stored: &Stored, context: &Context, compiled: &Compiled) -> bool {
    let there = context.config_map(&compiled.business).filter(|map| config_map::is_of(map, stored));
    there.and_then(|map| config_map::generation(&map)) == Some(compiled.config.generation)
}

/// The broker as it should be; tells when that put something back. `whole`: see [`Desired`].
async fn ensure(
    stored: &Stored,
    context: &Context,
    compiled: &Compiled,
    access: &Access,
    whole: bool,
) -> Result<Arc<Report>, Trouble> {
    let drifted = context.broker.drift(&compiled.business).is_some();
    let mut topology = compiled.topology.clone();
    context.options.open_queues.mark(&stored.owner(), &mut topology);
    let desired = Arc::new(Desired { topology, users: access.users.clone(), whole });
    // By what will be written for them, not by what was: they may all run what an older operator wrote.
    let Standing { total, programmed, .. } =
        context.edges.standing(&compiled.business, &edge_config(compiled, access).hash());
    let done = context.broker.ensure(&compiled.business, desired, programmed < total).await?;
    if drifted && !done.changes.is_empty() {
        context.notices.repaired(stored, &some(&done.changes)).await;
    }
    Ok(done)
}

/// What the declaration comes to, or why it is not accepted.
fn judge(stored: &Stored, context: &Context) -> Result<Arc<Compiled>, Verdict> {
    if let Some(missing) = context.outdated_definition() {
        return Err(Verdict::bad(Reason::CustomResourceDefinitionOutdated, missing));
    }
    if let Some(owner) = stored.rival(&context.businesses) {
        let problem = wirepost_core::compile::taken(stored.business_type(), &owner);
        return Err(Verdict::bad(Reason::BusinessTypeTaken, problem.to_string()));
    }
    // It has the broker's objects and the edges, though it may be gone or not selected here: two would overwrite each other.
    if let Some(map) = of_another(stored, context) {
        let text = format!(
            "business type {} still runs for {}, which is gone or not seen by this installation: delete that resource (one that is gone ends within {} s), or at once ConfigMap {}",
            stored.business_type(),
            config_map::owner(&map),
            context.options.orphan_grace.as_secs(),
            config_map::name(stored.business_type()),
        );
        return Err(Verdict::bad(Reason::BusinessTypeTaken, text));
    }
    context.compile(stored).map_err(|rejection: Rejection| {
        let problems: Vec<String> = rejection.problems.iter().map(Problem::to_string).collect();
        Verdict::bad(rejection.reason(), some(&problems))
    })
}

async fn access(stored: &Stored, good: &Good, context: &Context) -> Result<Access, Error> {
    if good.secret.is_none() {
        return Ok(Access::default());
    }
    let seed = context.seed().await.map_err(|error| Error::Seed(format!("{error:#}")))?;
    let rotation = Rotation::next(context.rotation(stored), stored.annotation(ROTATE).unwrap_or_default());
    context.remember_rotation(stored, &rotation);
    Ok(Access::new(&seed, &context.options.place.vhost, &good.compiled.business, stored.uid(), rotation))
}

fn facts(compiled: &Compiled, stored: &Stored, context: &Context) -> Facts {
    let business = compiled.business.clone();
    let consumed = |name: &&String| {
        name.starts_with(&wirepost_core::names::route_queue(&business, ""))
            || **name == wirepost_core::names::dead_queue(&business)
    };
    let own = compiled.topology.queues.iter().map(|queue| &queue.name).filter(consumed);
    Facts {
        token_url: context.options.place.endpoint.as_ref().map(|url| format!("{url}/{business}/websocket/token")),
        queues: own.chain(&compiled.topology.existing_queues).cloned().collect(),
        // As long as nothing else is known.
        secret: stored.status().binding.map(|binding| binding.name),
        business,
    }
}

/// What runs goes on; the status tells of the broker's trouble.
async fn away(
    stored: &Stored,
    context: &Context,
    mut findings: Findings,
    compiled: &Compiled,
    trouble: &Trouble,
) -> Result<(Outcome, Action), Error> {
    let reason = if trouble.retryable { Reason::BrokerUnavailable } else { Reason::BrokerRefused };
    findings.provisioned = Verdict::bad(reason, format!("{trouble}; clients stay connected, and it is tried again"));
    let (verdict, edges) = programmed(&context.standing(&compiled.business));
    (findings.programmed, findings.edges) = (verdict, Some(edges));
    report(stored, context, &findings).await?;
    Ok((Outcome::Error, Action::requeue(context.backoff(stored))))
}

/// The verdict on a declaration that names a queue which is not there, or not for it.
fn unusable(done: &Report) -> Option<Verdict> {
    let missing = texts(done, |problem| matches!(problem, BrokerProblem::MissingQueue { .. }));
    if !missing.is_empty() {
        return Some(Verdict::bad(Reason::QueueNotFound, some(&missing)));
    }
    let closed = texts(done, |problem| matches!(problem, BrokerProblem::QueueNotOpen { .. }));
    (!closed.is_empty()).then(|| Verdict::bad(Reason::QueueNotOpen, some(&closed)))
}

/// Accepted and Provisioned, as the broker sees it.
fn provisioned(done: &Report, accepted: Verdict) -> (Verdict, Verdict) {
    if let Some(verdict) = unusable(done) {
        return (verdict, Verdict::not_accepted());
    }
    let wrong = texts(done, |problem| !matches!(problem, BrokerProblem::Kept { .. }));
    let kept = texts(done, |problem| matches!(problem, BrokerProblem::Kept { .. }));
    let verdict = match (wrong.is_empty(), kept.is_empty()) {
        (false, _) => Verdict::bad(Reason::NotAsDeclared, some(&wrong)),
        (true, false) => Verdict::good(Reason::Provisioned, format!("the broker has the topology; {}", some(&kept))),
        (true, true) => Verdict::good(Reason::Provisioned, "the broker has exactly the topology"),
    };
    (accepted, verdict)
}

/// Problems with which the edges must not go on to this generation: messages would have no place.
fn blocks(problem: &BrokerProblem) -> bool {
    use BrokerProblem::{Kept, LeadsBack, PolicyLimited, PolicyOverruled, QueueNotOpen};
    // A queue that is no longer open was so once, and what is bound goes on.
    !matches!(
        problem,
        Kept { .. } | PolicyOverruled { .. } | PolicyLimited { .. } | LeadsBack { .. } | QueueNotOpen { .. }
    )
}

fn edge_config(compiled: &Compiled, access: &Access) -> BusinessConfig {
    let mut config = compiled.config.clone();
    config.auth.api_keys.clone_from(&access.api_keys);
    config
}

/// The edges' configuration, if it is not what they have.
async fn program(stored: &Stored, context: &Context, good: &Good, access: &Access) -> Result<(), Error> {
    let compiled = &good.compiled;
    let config = edge_config(compiled, access);
    let should = config_map::build(stored, &good.spec, &config, access.rotation.as_ref());
    context.expect_hash(&compiled.business, config.hash());
    let there = context.config_map(&compiled.business);
    if there.is_none_or(|is| !config_map::holds(&is, &should)) {
        context.writer.config_map(&should).await?;
        tracing::info!(business = compiled.business, generation = config.generation, "edge configuration written");
    }
    Ok(())
}

/// The access Secret, and then the end of a former one. The Secret that holds the credentials now, and what is in the way.
async fn secret(
    stored: &Stored,
    context: &Context,
    good: &Good,
    access: &Access,
) -> Result<(Option<String>, Option<Verdict>), Error> {
    // The status names it until it is gone: it is the only record.
    let former = stored.status().binding.map(|binding| binding.name).filter(|name| Some(name) != good.secret.as_ref());
    if let (Some(name), Some(credentials)) = (&good.secret, &access.current) {
        let entries = access::entries(&context.options.place, credentials, stored, &good.compiled.topology);
        if context.secret_is_due(stored, name, &entries) {
            match context.writer.secret(stored, name, &entries).await? {
                SecretState::Taken => {
                    let text = format!(
                        "Secret {name} exists and was not made by wirepost: choose another access.secretName, or delete it"
                    );
                    return Ok((former, Some(Verdict::bad(Reason::SecretTaken, text))));
                }
                SecretState::Written | SecretState::Current => context.secret_seen(stored, name, entries),
            }
        }
    }
    if let Some(former) = former {
        context.writer.delete_secret(stored, &former).await?;
    }
    Ok((good.secret.clone(), None))
}

fn programmed(standing: &Standing) -> (Verdict, (usize, usize)) {
    let Standing { total, programmed, behind, unreachable } = standing;
    let verdict = if *total == 0 {
        Verdict::bad(Reason::NoEdges, "no edge is ready: look at the edge Deployment's pods and their logs")
    } else if programmed == total {
        Verdict::good(Reason::Programmed, "every ready edge runs this generation")
    } else if let Some((edge, reason)) = unreachable.first() {
        let text = format!(
            "{} of {total} edges don't answer the operator, such as {edge}: {reason}; a NetworkPolicy must let it reach their admin port",
            unreachable.len()
        );
        Verdict::bad(Reason::EdgesUnreachable, text)
    } else {
        Verdict::bad(Reason::EdgesBehind, format!("waiting for {} of {total} edges: {}", behind.len(), some(behind)))
    };
    (verdict, (*programmed, *total))
}

/// Writes the status if it says something new. Whether the business is ready.
async fn report(stored: &Stored, context: &Context, findings: &Findings) -> Result<bool, Error> {
    let old = stored.status();
    let new = findings.status(stored.generation(), &old);
    let ready = new.conditions.iter().any(|c| c.type_ == ConditionType::Ready.as_str() && c.status == "True");
    if new != old && context.is_news(stored, &new) {
        if let Err(error) = context.writer.status(stored, &new).await {
            if error.is_invalid() {
                // The API server takes no write to an object with a field of another type than today's, not even of its status, until a
                // person corrects it. Events reach people all the same.
                let told = context.told(stored, &new).unwrap_or(old);
                context.notices.changed(stored, &told, &new).await;
            }
            return Err(error.into());
        }
        context.wrote_status(stored, new.clone());
        if context.notices.changed(stored, &old, &new).await > 0 {
            context.metrics.wrote(Object::Event);
        }
    }
    Ok(ready)
}

fn next_look(stored: &Stored, context: &Context, good: &Good, access: &Access) -> Option<Duration> {
    let rotation = access
        .changes_at()
        .map(|at| Duration::from_millis(u64::try_from(at - access::now_ms()).unwrap_or_default() + 1));
    let look = good.secret.as_ref().map(|_| context.next_secret_look(stored));
    rotation.into_iter().chain(look).min()
}

fn texts(done: &Report, which: impl Fn(&BrokerProblem) -> bool) -> Vec<String> {
    done.problems.iter().filter(|problem| which(problem)).map(ToString::to_string).collect()
}

/// The first of many sentences.
fn some(all: &[String]) -> String {
    let mut text = all.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    if all.len() > NAMED {
        text = format!("{text}; and {} more", all.len() - NAMED);
    }
    text
}

trait RequeueAt {
    fn requeue_at(after: Option<Duration>) -> Action;
}

impl RequeueAt for Action {
    fn requeue_at(after: Option<Duration>) -> Self {
        after.map_or_else(Self::await_change, Self::requeue)
    }
}
