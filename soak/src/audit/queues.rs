//! Clients' messages to services: confirmed is consumed, refused never is, and each sender's messages are in order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::facts::Facts;
use super::{Extent, Kind, Violation};
use crate::record::{MessageNo, To, What};

#[derive(Default)]
struct Copies {
    fresh: usize,
    redelivered: usize,
    first_fresh: Option<Duration>,
}

pub(super) fn check(facts: &Facts<'_>, extent: Extent) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut consumed: BTreeMap<(MessageNo, &str), Copies> = BTreeMap::new();
    // Of each queue and sender, the message that came last for the first time.
    let mut newest: BTreeMap<(&str, &str), MessageNo> = BTreeMap::new();
    for entry in &facts.record.entries {
        let What::Consumed { queue, message, redelivered } = &entry.what else { continue };
        let copies = consumed.entry((*message, queue)).or_default();
        if *redelivered {
            copies.redelivered += 1;
            continue;
        }
        copies.fresh += 1;
        if copies.first_fresh.is_some() || copies.redelivered > 0 {
            continue;
        }
        copies.first_fresh = Some(entry.at);
        let sent = &facts.record.messages[*message];
        let fate = &facts.fates[*message];
        let moved = facts.was_unbound(sent.business, fate.begun(), fate.confirmed.unwrap_or(Duration::MAX));
        if !sent.in_order || moved || fate.confirmed.is_none() {
            continue;
        }
        let newest = newest.entry((queue, &sent.sender)).or_insert(*message);
        if facts.record.messages[*newest].seq > sent.seq {
            let what = format!("{} came from {queue} behind {}", facts.name(*message), facts.name(*newest));
            let at = entry.at;
            found.push(Violation { kind: Kind::Swapped, at, message: Some(*message), client: None, what });
        } else {
            *newest = *message;
        }
    }
    for (number, message) in facts.record.messages.iter().enumerate() {
        let To::Queues(queues) = &message.to else { continue };
        let fate = &facts.fates[number];
        let mut violation = |kind, at, what| {
            found.push(Violation { kind, at, message: Some(number), client: None, what });
        };
        for queue in queues {
            let copies = consumed.get(&(number, queue.as_str()));
            let (fresh, redelivered) = copies.map_or((0, 0), |copies| (copies.fresh, copies.redelivered));
            if let Some(confirmed) = fate.confirmed
                && fresh + redelivered == 0
                && extent == Extent::Complete
            {
                let what = format!("{} was acknowledged, and never came from {queue}", facts.name(number));
                violation(Kind::Lost, confirmed, what);
            }
            if fresh > fate.possible() {
                let kind = if fate.possible() == 0 { Kind::Refused } else { Kind::Doubled };
                let what = format!(
                    "{} came {fresh} times from {queue}; of {} attempts {} did not arrive",
                    facts.name(number),
                    fate.offered.len(),
                    fate.not_arrived
                );
                violation(kind, copies.and_then(|copies| copies.first_fresh).unwrap_or_default(), what);
            }
        }
        let for_it: BTreeSet<&str> = queues.iter().map(String::as_str).collect();
        for ((_, queue), _) in consumed.range((number, "")..(number + 1, "")) {
            if !for_it.contains(queue) {
                violation(Kind::Leaked, fate.begun(), format!("{} came from {queue}", facts.name(number)));
            }
        }
    }
    found
}
