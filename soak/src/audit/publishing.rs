//! The answer to a publisher, and what is in the stream, in that of each business that the message names and that takes it: confirmed is
//! stored, refused never appears, and each sender's messages are in order.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::facts::Facts;
use super::{Extent, Kind, Violation};
use crate::record::{MessageNo, To};

pub(super) fn check(facts: &Facts<'_>, extent: Extent) -> Vec<Violation> {
    let mut found = refusals(facts);
    for (business, stored) in facts.stored.iter().enumerate() {
        let of = &facts.record.businesses[business];
        if !of.durable {
            continue;
        }
        let mut copies: HashMap<MessageNo, Vec<u64>> = HashMap::new();
        for (&offset, stored) in stored {
            if let Some(message) = stored.message {
                copies.entry(message).or_default().push(offset);
            }
        }
        let mut senders: BTreeMap<&str, Vec<MessageNo>> = BTreeMap::new();
        for (number, message) in facts.record.messages.iter().enumerate() {
            if !message.is_for(business) || matches!(message.to, To::Queues(_)) {
                continue;
            }
            let fate = &facts.fates[number];
            let there = copies.get(&number).map_or(0, Vec::len);
            let violation = |kind, at, what| Violation { kind, at, message: Some(number), client: None, what };
            let accepted = |from, to| facts.accepted(business, message.business, from, to);
            let declined = facts.declined(number, business).iter().filter(|declined| declined.alone).count();
            let possible = fate.possible().saturating_sub(declined);
            if let Some(first) = copies.get(&number).and_then(|offsets| offsets.first()).map(|first| stored[first].at)
                && accepted(Duration::ZERO, first) == BTreeSet::from([false])
            {
                let what =
                    format!("{} is in the stream of {}, which has never accepted it", facts.name(number), of.name);
                found.push(violation(Kind::Leaked, first, what));
            }
            if let Some(confirmed) = fate.confirmed
                && there == 0
                && !facts.got_nothing(number, business)
                && accepted(fate.begun(), confirmed) == BTreeSet::from([true])
                && extent == Extent::Complete
                && !facts.was_unwitnessed(business, fate.begun(), confirmed)
            {
                let what = format!("{} was confirmed, and is not in the stream of {}", facts.name(number), of.name);
                found.push(violation(Kind::Lost, confirmed, what));
            }
            if there > possible {
                let at = copies[&number].last().map_or(fate.begun(), |last| stored[last].at);
                let kind = if possible == 0 { Kind::Refused } else { Kind::Doubled };
                let what = format!(
                    "{} is {there} times in the stream of {}, at {:?}; of {} attempts {} did not arrive, and {} not there",
                    facts.name(number),
                    of.name,
                    copies[&number],
                    fate.offered.len(),
                    fate.not_arrived,
                    declined
                );
                found.push(violation(kind, at, what));
            }
            if there > 0 && message.in_order && fate.confirmed.is_some() {
                senders.entry(&message.sender).or_default().push(number);
            }
        }
        for messages in senders.values() {
            found.extend(order(facts, business, messages, &copies));
        }
    }
    found
}

/// Whoever accepts a message is not said to refuse it.
fn refusals(facts: &Facts<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (number, message) in facts.record.messages.iter().enumerate() {
        for &business in &message.shared {
            for declined in facts.declined(number, business).iter().filter(|declined| declined.refused) {
                let accepted = facts.accepted(business, message.business, facts.fates[number].begun(), declined.at);
                if accepted == BTreeSet::from([true]) {
                    let by = &facts.record.businesses[business].name;
                    let what = format!("{} was refused for {by}, which accepts it", facts.name(number));
                    let (kind, at, message) = (Kind::Broken, declined.at, Some(number));
                    found.push(Violation { kind, at, message, client: None, what });
                }
            }
        }
    }
    found
}

/// The first copies of one sender's messages, each of which was confirmed before the next was offered.
fn order(
    facts: &Facts<'_>,
    business: usize,
    messages: &[MessageNo],
    copies: &HashMap<MessageNo, Vec<u64>>,
) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut former: Option<(MessageNo, u64)> = None;
    for &number in messages {
        let fate = &facts.fates[number];
        let first = copies[&number][0];
        // What lay in `unrouted` meanwhile comes later.
        if facts.was_unbound(business, fate.begun(), fate.confirmed.unwrap_or(fate.begun())) {
            continue;
        }
        if let Some((earlier, offset)) = former
            && first < offset
        {
            let what = format!(
                "{} is at {first}, before {} at {offset}, which was confirmed before it was offered",
                facts.name(number),
                facts.name(earlier)
            );
            let at = facts.stored[business][&first].at;
            found.push(Violation { kind: Kind::Swapped, at, message: Some(number), client: None, what });
        }
        former = former.filter(|(_, offset)| *offset > first).or(Some((number, first)));
    }
    found
}
