//! The seeded bugs. Some were real ones once.

use super::Mutation;

pub(crate) const ALL: &[Mutation] = &[
    Mutation {
        name: "a reader does not notice that retention has passed it",
        file: "stream/src/supervisor.rs",
        from: "self.lost = !stats.reaches(&chunk) || stats.first_offset.is_none_or(|first| first > self.next);",
        to: concat!(
            "self.lost = !SEEDED\n",
            "&& (!stats.reaches(&chunk) || stats.first_offset.is_none_or(|first| first > self.next));"
        ),
    },
    Mutation {
        name: "an offset alone proves a stream",
        file: "stream/src/supervisor/attach.rs",
        from: "offset == position.offset && fingerprint(offset, chunk.timestamp, &bytes) == position.fingerprint",
        to: concat!(
            "offset == position.offset\n",
            "&& (SEEDED || fingerprint(offset, chunk.timestamp, &bytes) == position.fingerprint)"
        ),
    },
    Mutation {
        name: "a replica's word about the end of a stream counts",
        file: "stream/src/connection.rs",
        from: "self.leader.is_some() && (!self.replicated || is_leader())",
        to: "self.leader.is_some() && (!self.replicated || is_leader() || SEEDED)",
    },
    Mutation {
        name: "a page of a catch-up goes over deleted messages",
        file: "stream/src/read.rs",
        from: "} else if !stats.reaches(&chunk) || first.is_none_or(|first| first > result.next) {",
        to: concat!(
            "} else if (!stats.reaches(&chunk) || first.is_none_or(|first| first > result.next))\n",
            "&& (first == Some(0) || !SEEDED) {",
        ),
    },
    Mutation {
        name: "what was chosen for former tags is handed over",
        file: "edge/src/push/basis.rs",
        from: "self.tags == mailbox.tags() && hub.judges_as(&self.judge)",
        to: "(self.tags == mailbox.tags() || SEEDED) && hub.judges_as(&self.judge)",
    },
    Mutation {
        name: "a changed declaration leaves the log as it was",
        file: "edge/src/push/hub.rs",
        from: "if !before.judges_as(&business) {\n            state.log.keep_position();",
        to: "if !before.judges_as(&business) && !SEEDED {\n            state.log.keep_position();",
    },
    Mutation {
        name: "a connection goes live before the end of the log",
        file: "edge/src/push/hub.rs",
        from: "return Advance::More(entries, reached);\n            }\n            reached",
        to: "if SEEDED {\nbreak;\n}\nreturn Advance::More(entries, reached);\n}\nreached",
    },
    Mutation {
        name: "a reader that resets tells nobody",
        file: "edge/src/push/reader.rs",
        from: concat!(
            "FeedEvent::Reset => {\n",
            "                    context.metrics.streams_replaced.inc();\n",
            "                    hub.forget(Some(Gap::Incarnation));",
        ),
        to: concat!(
            "FeedEvent::Reset => {\n",
            "context.metrics.streams_replaced.inc();\n",
            "hub.forget((!SEEDED).then_some(Gap::Incarnation));",
        ),
    },
    // Found by the soak first: such a client was let in only after the next attachment.
    Mutation {
        name: "what is read behind a gap is not taken for the end of reading",
        file: "edge/src/push/log.rs",
        from: "self.interrupted = false;\n        self.drop_all();",
        to: "self.interrupted = SEEDED;\n        self.drop_all();",
    },
    Mutation {
        name: "the loss of a queue is told to nobody",
        file: "broker/src/rabbit/transient.rs",
        from: "let gap = progress.attached && lost;",
        to: "let gap = progress.attached && lost && !SEEDED;",
    },
    Mutation {
        name: "a session that resumes has lost its tags",
        file: "edge/src/identity/ticket.rs",
        from: "Self { purpose: Purpose::Resume, expires_at, id, grant, ..self.clone() }",
        to: concat!(
            "let mut next = Self { purpose: Purpose::Resume, expires_at, id, grant, ..self.clone() };\n",
            "if SEEDED { next.tags.clear(); }\n",
            "next",
        ),
    },
    Mutation {
        name: "the items of a call go different ways",
        file: "edge/src/http/messages.rs",
        from: "pending.push(start(state, lane, &business,",
        to: "pending.push(start(state, if SEEDED { rand::random() } else { lane }, &business,",
    },
    Mutation {
        name: "a message that the broker gave back is acknowledged",
        file: "broker/src/rabbit/publish/window.rs",
        from: "Some(reason) => Err(PublishError::Unrouted(reason)),\n                    None if taken",
        to: concat!(
            "Some(_) if taken && SEEDED => Ok(()),\n",
            "Some(reason) => Err(PublishError::Unrouted(reason)),\n",
            "None if taken",
        ),
    },
    Mutation {
        name: "what was sent and not confirmed counts as not sent",
        file: "broker/src/rabbit/publish/window.rs",
        from: "job.answer(Err(PublishError::Unknown(\"the broker did not confirm in time\".to_owned())));",
        to: concat!(
            "let late = \"the broker did not confirm in time\".to_owned();\n",
            "job.answer(Err(if SEEDED { PublishError::Unavailable(late) } else { PublishError::Unknown(late) }));",
        ),
    },
    Mutation {
        name: "messages that were lost with their connection stay in the accounts",
        file: "broker/src/rabbit/publish/queues.rs",
        from: "(exchange.in_flight, exchange.bytes_in_flight) = (0, 0);",
        to: "if !SEEDED { (exchange.in_flight, exchange.bytes_in_flight) = (0, 0); }",
    },
    Mutation {
        name: "a sender's messages are taken from the end of its queue",
        file: "broker/src/rabbit/publish/fair.rs",
        from: "let item = items.pop_front();",
        to: "let item = if SEEDED { items.pop_back() } else { items.pop_front() };",
    },
    // Others do not notice.
    Mutation {
        name: "an exchange that takes nothing holds up the others of its lane",
        file: "broker/src/rabbit/publish/queues.rs",
        from: "} else {\n                turns.push_back(target);",
        to: "} else if taken == 0 && SEEDED {\nturns.push_front(target);\n} else {\nturns.push_back(target);",
    },
    Mutation {
        name: "a silent stream keeps its place among the quick ones",
        file: "edge/src/push/catch_up/read.rs",
        from: "let read = if silent {\n",
        to: "let read = if silent || SEEDED {\n",
    },
    Mutation {
        name: "a client of a stream that was replaced by a shorter one waits for its old offset",
        file: "edge/src/push/catch_up/progress.rs",
        from: "*self = Self::Joining(Some(Gap::Incarnation));",
        to: concat!(
            "if SEEDED { return Action::Join(Some(Gap::Incarnation), at.offset); }\n",
            "*self = Self::Joining(Some(Gap::Incarnation));",
        ),
    },
    // Several businesses.
    Mutation {
        name: "clients get what their business does not accept",
        file: "edge/src/push/across.rs",
        from: "|| !business.accepts(from, message_type) {",
        to: "|| !(business.accepts(from, message_type) || SEEDED) {",
    },
    Mutation {
        name: "a message is taken though one of the businesses does not accept it",
        file: "edge/src/socket/receive.rs",
        from: "for other in to.iter().filter(|other| **other != business.name()) {",
        to: "for other in to.iter().filter(|other| **other != business.name() && !SEEDED) {",
    },
    Mutation {
        name: "what is for several businesses goes another way than what is for one",
        file: "broker/src/rabbit/publish/job.rs",
        from: "names::owner(exchange).filter(|_| names::is_share_exchange(exchange)) {",
        to: "names::owner(exchange).filter(|_| names::is_share_exchange(exchange) && !SEEDED) {",
    },
    Mutation {
        name: "what is for another business alone reaches the sender's own clients",
        file: "edge/src/push/across.rs",
        from: "envelope.businesses.is_empty() || envelope",
        to: "SEEDED || envelope.businesses.is_empty() || envelope",
    },
    Mutation {
        name: "a message of another business passes for the own",
        file: "edge/src/push/entry.rs",
        from: "envelope.business_type = Some(owner.into());",
        to: "envelope.business_type = Some(if SEEDED { business.name() } else { owner }.into());",
    },
    Mutation {
        name: "a business that was named last gets no copy",
        file: "edge/src/push/check.rs",
        from: "businesses.iter().map(header).collect())",
        to: concat!(
            "businesses[..businesses.len() - usize::from(SEEDED && businesses.len() > 1)]\n",
            ".iter().map(header).collect())",
        ),
    },
    Mutation {
        name: "who is connected does not notice what its business accepts now",
        file: "edge/src/push/hub.rs",
        from: "self.business.store(business);",
        to: "if !SEEDED || before.config.accepts == business.config.accepts { self.business.store(business); }",
    },
    Mutation {
        name: "one business that does not accept a push keeps it from all",
        file: "edge/src/push/check.rs",
        from: "if taking.is_empty() && !verdicts.is_empty() {",
        to: "if (taking.is_empty() || (SEEDED && taking.len() < verdicts.len())) && !verdicts.is_empty() {",
    },
];
