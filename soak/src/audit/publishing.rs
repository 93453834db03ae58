//! The answer to a publisher, and what is in the stream, in that of each business that the message names and that takes it: confirmed is
//! stored, refused never appears, and each sender's messages are in order.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::facts::Facts;
use super::{Extent, Kind, Violation};
use crate::record::{MessageNo, To};

pub(super) fn check(facts: &Facts<'_>, extent: Extent) -> Vec<Violation> {
    let mut found = Vec::new();
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
            let declined = facts.declined.get(&(number, business)).map_or(&[][..], Vec::as_slice);
            let accepted = |from, to| facts.accepted(business, message.business, from, to) == BTreeSet::from([true]);
            for (at, _) in declined.iter().filter(|(at, refused)| *refused && accepted(fate.begun(), *at)) {
                let what = format!("{} was refused for {}, which accepts it", facts.name(number), of.name);
                found.push(violation(Kind::Broken, *at, what));
            }
            let possible = fate.possible().saturating_sub(declined.len());
            if let Some(confirmed) = fate.confirmed
                && there == 0
                && declined.is_empty()
                && accepted(fate.begun(), confirmed)
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
                    declined.len()
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
