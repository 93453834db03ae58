use wirepost_core::topology::Binding;

use super::*;

pub(crate) fn business(name: &str) -> Topology {
    Topology {
        exchanges: vec![
            Exchange { name: names::dead_letter_exchange(name), kind: ExchangeKind::Fanout, alternate: None },
            Exchange {
                name: names::receive_exchange(name),
                kind: ExchangeKind::Topic,
                alternate: Some(names::unrouted(name)),
            },
            Exchange { name: names::unrouted(name), kind: ExchangeKind::Fanout, alternate: None },
        ],
        queues: vec![
            queue(&names::dead_queue(name), None),
            queue(&names::route_queue(name, "orders"), Some(names::dead_letter_exchange(name))),
            queue(&names::unrouted(name), None),
        ],
        existing_queues: Vec::new(),
        open_queues: Vec::new(),
        bounded: Vec::new(),
        intake: Vec::new(),
        bindings: vec![
            bind(&names::dead_letter_exchange(name), &names::dead_queue(name), ""),
            bind(&names::receive_exchange(name), &names::route_queue(name, "orders"), "order.*"),
            bind(&names::unrouted(name), &names::unrouted(name), ""),
        ],
        links: Vec::new(),
        policies: vec![policy(&names::route_queue(name, "orders"))],
    }
}

fn queue(name: &str, dead_letter: Option<String>) -> Queue {
    Queue { name: name.to_owned(), kind: QueueKind::Quorum, dead_letter }
}

fn bind(exchange: &str, queue: &str, key: &str) -> Binding {
    Binding { exchange: exchange.to_owned(), queue: queue.to_owned(), routing_key: key.to_owned() }
}

fn policy(queue: &str) -> Policy {
    Policy {
        name: queue.to_owned(),
        pattern: names::exact_pattern(queue),
        apply_to: "quorum_queues",
        priority: 500,
        definition: Map::from_iter([("delivery-limit".to_owned(), json!(20))]),
    }
}

/// A vhost that has exactly this, and what all businesses share.
pub(crate) fn has(topology: &Topology) -> Actual {
    Actual {
        exchanges: topology
            .exchanges
            .iter()
            .map(|e| actual::Exchange {
                name: e.name.clone(),
                kind: exchange_kind(e.kind).to_owned(),
                durable: true,
                auto_delete: false,
                arguments: exchange_arguments(e),
            })
            .chain([actual::Exchange {
                name: names::CONTROL.to_owned(),
                kind: "fanout".to_owned(),
                durable: true,
                auto_delete: false,
                arguments: Map::new(),
            }])
            .collect(),
        queues: topology
            .queues
            .iter()
            .chain([&Queue { name: names::CONTROL.to_owned(), kind: QueueKind::Stream, dead_letter: None }])
            .map(|q| actual::Queue {
                name: q.name.clone(),
                durable: true,
                auto_delete: false,
                arguments: queue_arguments(q),
            })
            .collect(),
        bindings: topology
            .bindings
            .iter()
            .map(|b| actual::Binding {
                source: b.exchange.clone(),
                destination: b.queue.clone(),
                destination_type: "queue".to_owned(),
                routing_key: b.routing_key.clone(),
                arguments: Map::new(),
            })
            .chain(topology.links.iter().map(|link| actual::Binding {
                source: link.from.clone(),
                destination: link.to.clone(),
                destination_type: "exchange".to_owned(),
                routing_key: String::new(),
                arguments: link_arguments(link),
            }))
            .chain([actual::Binding {
                source: names::CONTROL.to_owned(),
                destination: names::CONTROL.to_owned(),
                destination_type: "queue".to_owned(),
                routing_key: String::new(),
                arguments: Map::new(),
            }])
            .collect(),
        policies: topology
            .policies
            .iter()
            .chain(shared_policies())
            .map(|p| actual::Policy {
                name: p.name.clone(),
                pattern: p.pattern.clone(),
                apply_to: p.apply_to.to_owned(),
                priority: p.priority,
                definition: p.definition.clone(),
            })
            .collect(),
    }
}

fn steps(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(ToString::to_string).collect()
}

#[test]
fn a_link_to_another_business_belongs_to_its_source_and_waits_for_its_target() {
    let link = |from: &str, to: &str| Link {
        from: names::share_exchange(from),
        to: names::push_exchange(to),
        header: format!("to-business-{to}"),
        value: "true".to_owned(),
    };
    let share = |name: &str| Exchange {
        name: names::share_exchange(name),
        kind: ExchangeKind::Headers,
        alternate: Some(names::push_exchange(name)),
    };
    let push = |name: &str| Exchange { name: names::push_exchange(name), kind: ExchangeKind::Fanout, alternate: None };
    let pay = Topology {
        exchanges: vec![push("pay"), share("pay")],
        links: vec![link("pay", "chat"), link("pay", "pay")],
        ..Topology::default()
    };
    let chat = Topology { exchanges: vec![push("chat")], ..Topology::default() };
    let alone = plan(&pay, &Actual::default(), Scope::Business("pay"));
    assert_eq!(alone.problems, [Problem::NoTarget { link: link("pay", "chat") }]);
    let steps: Vec<_> = alone.steps.iter().map(Step::to_string).collect();
    assert_eq!(
        steps,
        [
            "create exchange wirepost.pay.push",
            "create exchange wirepost.pay.share",
            "bind exchange wirepost.pay.push to exchange wirepost.pay.share with the header to-business-pay",
        ]
    );
    let both = has(&merge([&pay, &chat]));
    assert!(plan(&pay, &both, Scope::Business("pay")).is_empty());
    assert!(plan(&chat, &both, Scope::Business("chat")).is_empty(), "what leads into its exchange is not its own");
    let refused = Topology { links: vec![link("pay", "pay")], ..pay.clone() };
    let steps = plan(&refused, &both, Scope::Business("pay")).steps;
    assert!(matches!(&steps[..], [Step::Unbind(gone)] if gone.destination == "wirepost.chat.push"), "{steps:?}");
    let mut other = both;
    other.bindings[0].arguments.insert("to-business-chat".to_owned(), json!("yes"));
    let steps = plan(&pay, &other, Scope::Business("pay")).steps;
    assert!(matches!(&steps[..], [Step::Link(_), Step::Unbind(_)]), "{steps:?}");
}

#[test]
fn nothing_is_done_if_all_is_as_declared() {
    let topology = merge([&business("pay"), &business("payments")]);
    assert_eq!(plan(&topology, &has(&topology), Scope::Everything), Plan::default());
}

#[test]
fn an_exchange_is_created_after_its_alternate_is_bound_and_a_queue_after_its_policy() {
    let plan = plan(&business("pay"), &Actual::default(), Scope::Business("pay"));
    assert_eq!(
        steps(&plan),
        [
            "set policy wirepost.pay.q.orders",
            "set policy wirepost.keepers",
            "set policy wirepost.queues",
            "set policy wirepost.streams",
            "set policy wirepost.receipts",
            "set policy wirepost.events",
            "set policy wirepost.events-quorum",
            "set policy wirepost.control",
            "create queue wirepost.pay.dead",
            "create queue wirepost.pay.q.orders",
            "create queue wirepost.pay.unrouted",
            "create queue wirepost.control",
            "create exchange wirepost.pay.dlx",
            "create exchange wirepost.pay.unrouted",
            "create exchange wirepost.control",
            "bind queue wirepost.pay.dead to exchange wirepost.pay.dlx with ''",
            "bind queue wirepost.pay.unrouted to exchange wirepost.pay.unrouted with ''",
            "bind queue wirepost.control to exchange wirepost.control with ''",
            "create exchange wirepost.pay.receive",
            "bind queue wirepost.pay.q.orders to exchange wirepost.pay.receive with 'order.*'",
        ]
    );
}

#[test]
fn undeclared_objects_are_deleted_and_targets_of_dead_letters_last() {
    let plan = plan(&Topology::default(), &has(&business("pay")), Scope::Everything);
    assert_eq!(
        steps(&plan),
        [
            "unbind wirepost.pay.q.orders from exchange wirepost.pay.receive with 'order.*'",
            "unbind wirepost.pay.unrouted from exchange wirepost.pay.unrouted with ''",
            "delete queue wirepost.pay.q.orders",
            "delete queue wirepost.pay.unrouted",
            "unbind wirepost.pay.dead from exchange wirepost.pay.dlx with ''",
            "delete queue wirepost.pay.dead",
            "delete exchange wirepost.pay.dlx",
            "delete exchange wirepost.pay.receive",
            "delete exchange wirepost.pay.unrouted",
            "delete policy wirepost.pay.q.orders",
        ]
    );
}

#[test]
fn the_plan_of_one_business_ignores_others_even_with_a_common_prefix() {
    let there = has(&merge([&business("pay"), &business("payments")]));
    assert_eq!(plan(&business("pay"), &there, Scope::Business("pay")), Plan::default());
    let gone = plan(&Topology::default(), &there, Scope::Business("pay"));
    assert!(steps(&gone).iter().all(|step| !step.contains("payments")), "{gone:?}");
}

#[test]
fn foreign_objects_and_those_of_edges_and_listeners_are_left_alone() {
    let topology = business("pay");
    let mut there = has(&topology);
    let foreign = |source: &str, destination: &str| actual::Binding {
        source: source.to_owned(),
        destination: destination.to_owned(),
        destination_type: "queue".to_owned(),
        routing_key: String::new(),
        arguments: Map::new(),
    };
    let (edge, events) = (names::edge_queue("pay", "e1"), names::events_queue("pay", "audit"));
    for name in ["orders", "wirepost", "wirepost.pay", "mine.wirepost.pay.q.x", &edge, &events] {
        there.queues.push(actual::Queue {
            name: name.to_owned(),
            durable: true,
            auto_delete: false,
            arguments: Map::new(),
        });
    }
    there.bindings.push(foreign("amq.topic", "orders"));
    there.bindings.push(foreign("amq.topic", &events));
    there.bindings.push(foreign("amq.topic", &names::route_queue("pay", "orders")));
    there.bindings.push(foreign(&names::events_exchange("pay"), "orders"));
    there.bindings.push(foreign(&names::events_exchange("pay"), &events));
    there.bindings.push(foreign(&names::push_exchange("pay"), &names::edge_queue("pay", "e1")));
    assert_eq!(plan(&topology, &there, Scope::Everything), Plan::default());
    // But a binding of ours to a queue that is not: a route that names no existing queue any more.
    there.bindings.push(foreign(&names::receive_exchange("pay"), "orders"));
    assert_eq!(
        steps(&plan(&topology, &there, Scope::Everything)),
        ["unbind orders from exchange wirepost.pay.receive with ''"]
    );
}

#[test]
fn a_listener_that_leads_events_back_through_another_is_unbound() {
    let topology = business("pay");
    let mut there = has(&topology);
    let listener = |name: &str, to: &str| actual::Exchange {
        name: names::events_queue("pay", name),
        kind: "fanout".to_owned(),
        durable: true,
        auto_delete: false,
        arguments: Map::from_iter([("alternate-exchange".to_owned(), json!(to))]),
    };
    there.exchanges.push(listener("one", &names::events_queue("pay", "two")));
    there.exchanges.push(listener("two", &names::push_exchange("pay")));
    there.exchanges.push(listener("apart", "elsewhere"));
    for name in ["one", "apart"] {
        there.bindings.push(actual::Binding {
            source: names::events_exchange("pay"),
            destination: names::events_queue("pay", name),
            destination_type: "exchange".to_owned(),
            routing_key: String::new(),
            arguments: Map::new(),
        });
    }
    let plan = plan(&topology, &there, Scope::Everything);
    let unbound = "unbind wirepost.pay.events.one from exchange wirepost.pay.events with ''";
    assert_eq!(steps(&plan), [unbound]);
}

#[test]
fn an_object_that_differs_is_reported_with_both_sides_and_not_touched() {
    let topology = business("pay");
    let mut there = has(&topology);
    there.exchanges[1].kind = "direct".to_owned();
    there.exchanges[1].arguments = Map::new();
    there.queues[1].arguments = Map::from_iter([("x-max-length".to_owned(), json!(5))]);
    let plan = plan(&topology, &there, Scope::Everything);
    assert_eq!(steps(&plan), Vec::<String>::new());
    let problems: Vec<String> = plan.problems.iter().map(ToString::to_string).collect();
    assert!(problems[0].starts_with(
        "exchange wirepost.pay.receive is durable direct and should be \
         durable topic with alternate-exchange=\"wirepost.pay.unrouted\""
    ));
    assert!(problems[1].starts_with(
        "queue wirepost.pay.q.orders is durable classic with x-max-length=5 and should be durable quorum"
    ));
}

#[test]
fn a_missing_existing_queue_is_reported_and_not_bound() {
    let mut topology = business("pay");
    topology.existing_queues.push("theirs".to_owned());
    topology.bindings.push(bind(&names::receive_exchange("pay"), "theirs", "a"));
    let mut there = has(&business("pay"));
    let missing = plan(&topology, &there, Scope::Everything);
    assert_eq!((steps(&missing).len(), missing.problems.len()), (0, 1));
    let bound = ["bind queue theirs to exchange wirepost.pay.receive with 'a'"];
    let mut with = |arguments: Map<String, Value>| {
        there.queues.retain(|queue| queue.name != "theirs");
        there.queues.push(actual::Queue { name: "theirs".to_owned(), durable: true, auto_delete: false, arguments });
        there.clone()
    };
    // Its owner has to open it, or the platform team.
    let closed = plan(&topology, &with(Map::new()), Scope::Everything);
    assert_eq!(steps(&closed), Vec::<String>::new());
    assert!(closed.problems[0].to_string().contains("x-wirepost-accept: pay"), "{:?}", closed.problems);
    let there = with(Map::from_iter([("x-wirepost-accept".to_owned(), json!("shop,pay"))]));
    let open = plan(&topology, &there, Scope::Everything);
    assert_eq!((steps(&open), open.problems.len()), (bound.map(str::to_owned).to_vec(), 0));
    topology.open_queues.push("theirs".to_owned());
    assert_eq!(steps(&plan(&topology, &with(Map::new()), Scope::Everything)), bound);
}

/// A business's own user may declare these: it reads `events` and writes `push`.
#[test]
fn events_lead_to_listeners_and_never_back() {
    let topology = business("pay");
    let (events, push) = (names::events_exchange("pay"), names::push_exchange("pay"));
    let listener = names::events_queue("pay", "mine");
    let to = |source: &str, destination: &str, kind: &str| actual::Binding {
        source: source.to_owned(),
        destination: destination.to_owned(),
        destination_type: kind.to_owned(),
        routing_key: "#".to_owned(),
        arguments: Map::new(),
    };
    let unbound = |there: &Actual| steps(&plan(&topology, there, Scope::Business("pay")));
    for (source, destination, kind) in [
        (events.as_str(), push.as_str(), "exchange"),
        (&listener, &push, "exchange"),
        ("wirepost.other.events", &listener, "queue"),
        ("wirepost.other.events", &push, "exchange"),
        (&push, &listener, "queue"),
        (&events, "wirepost.pay.edge.e1", "queue"),
    ] {
        let mut there = has(&topology);
        there.bindings.push(to(source, destination, kind));
        assert_eq!(unbound(&there), [format!("unbind {destination} from exchange {source} with '#'")]);
    }
    let mut there = has(&topology);
    let passes_on = |argument: &str| Map::from_iter([(argument.to_owned(), json!(push))]);
    there.queues.push(actual::Queue {
        name: listener.clone(),
        durable: true,
        auto_delete: false,
        arguments: passes_on("x-dead-letter-exchange"),
    });
    there.exchanges.push(actual::Exchange {
        name: format!("{listener}.2"),
        kind: "fanout".to_owned(),
        durable: true,
        auto_delete: false,
        arguments: passes_on("alternate-exchange"),
    });
    for to_listener in [to(&events, &listener, "queue"), to(&events, &format!("{listener}.2"), "exchange")] {
        there.bindings.push(to_listener);
    }
    assert_eq!(unbound(&there).len(), 2);
    assert_eq!(plan(&topology, &there, Scope::Everything).problems.len(), 2);
}

#[test]
fn a_changed_policy_is_set_and_a_foreign_one_of_equal_priority_may_win() {
    let topology = business("pay");
    let mut there = has(&topology);
    there.policies[0].definition.insert("delivery-limit".to_owned(), json!(5));
    there.policies.push(actual::Policy {
        name: "everything".to_owned(),
        pattern: ".*".to_owned(),
        apply_to: "all".to_owned(),
        priority: 399,
        definition: Map::new(),
    });
    let changed = plan(&topology, &there, Scope::Everything);
    assert_eq!(steps(&changed), ["set policy wirepost.pay.q.orders"]);
    assert!(!changed.foreign_policies_may_win);
    there.policies.last_mut().unwrap().priority = 400;
    assert!(plan(&topology, &there, Scope::Everything).foreign_policies_may_win);
}

#[test]
fn the_alternate_of_push_is_bound_before_push_exists_and_unbound_before_its_stream() {
    let (push, aside, stream) = (names::push_exchange("pay"), names::push_unrouted("pay"), names::stream("pay"));
    let mut durable = business("pay");
    durable.exchanges.push(Exchange { name: push.clone(), kind: ExchangeKind::Fanout, alternate: Some(aside.clone()) });
    durable.exchanges.push(Exchange { name: aside.clone(), kind: ExchangeKind::Fanout, alternate: None });
    let transient = durable.clone();
    durable.queues.push(Queue { name: stream.clone(), kind: QueueKind::Stream, dead_letter: None });
    durable.bindings.push(bind(&push, &stream, ""));
    durable.bindings.push(bind(&aside, &names::unrouted("pay"), ""));
    durable.policies.push(Policy { apply_to: "streams", ..policy(&stream) });
    assert_eq!(
        steps(&plan(&durable, &has(&transient), Scope::Business("pay"))),
        [
            "set policy wirepost.pay.stream",
            "create queue wirepost.pay.stream",
            "bind queue wirepost.pay.unrouted to exchange wirepost.pay.push.unrouted with ''",
            "bind queue wirepost.pay.stream to exchange wirepost.pay.push with ''",
        ]
    );
    assert_eq!(
        steps(&plan(&transient, &has(&durable), Scope::Business("pay"))),
        [
            "unbind wirepost.pay.unrouted from exchange wirepost.pay.push.unrouted with ''",
            "unbind wirepost.pay.stream from exchange wirepost.pay.push with ''",
            "delete stream wirepost.pay.stream",
            "delete policy wirepost.pay.stream",
        ]
    );
    let new = steps(&plan(&durable, &Actual::default(), Scope::Business("pay")));
    let at = |step: &str| new.iter().position(|s| s == step).unwrap();
    let bound = at("bind queue wirepost.pay.unrouted to exchange wirepost.pay.push.unrouted with ''");
    assert!(bound < at("create exchange wirepost.pay.push"));
}

#[test]
fn an_altered_shared_policy_is_set_again_and_never_deleted() {
    let topology = business("pay");
    let mut there = has(&topology);
    there.policies.iter_mut().find(|p| p.name == "wirepost.queues").unwrap().pattern = ".*".to_owned();
    assert_eq!(steps(&plan(&topology, &there, Scope::Business("pay"))), ["set policy wirepost.queues"]);
    let removed = plan(&Topology::default(), &has(&topology), Scope::Everything);
    assert!(steps(&removed).iter().all(|step| !step.contains("policy wirepost.queues")));
}
