//! The failure of one object on the broker delays only the routes that need it: keys, issuers, limits and the other routes of the same
//! generation go to the edges.
//!
//! **What a client sees.** A route that waits stays as the edges have it: messages still go to its former queue. A new route is left out
//! until its queue exists: its messages are refused as unknown, as before the change, and none is acknowledged without a queue. Other routes
//! are not affected.

use std::collections::BTreeSet;

use wirepost_core::{
    SendType,
    compile::MAX_CONFIG_BYTES,
    contract::edge_config::{BusinessConfig, RouteConfig},
    names,
};
use wirepost_topology::{Affected, Report};

/// What has to wait for the broker.
#[expect(clippy::struct_excessive_bools, reason = "independent parts, any of which may wait")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    /// Queues of routes, and exchanges for the clients of several businesses.
    queues: BTreeSet<String>,
    /// Every route to a queue.
    intake: bool,
    /// Every route to clients, and how pushes travel.
    pushes: bool,
    /// Every route whose receipts are judged.
    receipts: bool,
    /// The Secret, because its user does not work.
    pub(super) secret: bool,
    /// Queues that are no longer declared but still exist.
    pub(super) kept: BTreeSet<String>,
}

impl Waiting {
    /// What has to wait because of this report.
    pub(super) fn new(business: &str, report: &Report) -> Self {
        let mut waiting = Self { kept: report.kept().map(str::to_owned).collect(), ..Self::default() };
        let receive = [
            names::receive_exchange(business),
            names::unrouted(business),
            names::dead_letter_exchange(business),
            names::dead_queue(business),
        ];
        let push = [names::push_exchange(business), names::push_unrouted(business), names::stream(business)];
        let receipts =
            [names::receipts_stream(business), names::judge_exchange(business), names::events_exchange(business)];
        for problem in &report.problems {
            match problem.affected() {
                Affected::Nothing => {}
                Affected::User(_) => waiting.secret = true,
                Affected::Object(name) if receive.iter().any(|object| object == name) => waiting.intake = true,
                Affected::Object(name) if push.iter().any(|object| object == name) => waiting.pushes = true,
                Affected::Object(name) if receipts.iter().any(|object| object == name) => waiting.receipts = true,
                // No other route needs events or `replay`, and nothing waits for a name that is not a queue's.
                Affected::Object(name) => drop(waiting.queues.insert(name.to_owned())),
            }
        }
        waiting
    }

    fn concerns(&self, route: &RouteConfig) -> bool {
        match route.send_type {
            SendType::ClientToServer => {
                self.intake || route.queue.as_ref().is_some_and(|queue| self.queues.contains(queue))
            }
            SendType::ServerToClient | SendType::ClientToClient => {
                self.pushes || (self.receipts && route.receipts_within_seconds.is_some())
            }
        }
    }

    /// What the edges may run of `new`. `old`: what they have.
    pub(super) fn permitted(&self, new: &BusinessConfig, old: Option<&BusinessConfig>) -> BusinessConfig {
        let mut config = new.clone();
        if let Some(old) = old.filter(|_| self.pushes) {
            (config.delivery, config.retention) = (old.delivery, old.retention);
        }
        if self.queues.contains(&names::share_exchange(&new.business_type)) {
            config.accepted_by.clear();
        }
        config.accepted_by.retain(|business| !self.queues.contains(&names::push_exchange(business)));
        if !new.routes.iter().any(|route| self.concerns(route)) {
            return config;
        }
        config.routes.clear();
        let ready: Vec<&RouteConfig> = new.routes.iter().filter(|route| !self.concerns(route)).collect();
        for route in &new.routes {
            if !self.concerns(route) {
                config.routes.push(route.clone());
                continue;
            }
            // The predecessors of a route that waits stay.
            let before = old.into_iter().flat_map(|old| &old.routes).filter(|before| precedes(before, route));
            for before in before {
                let is_there = ready.iter().any(|other| is_same(other, before))
                    || config.routes.iter().any(|other| is_same(other, before));
                if !is_there {
                    config.routes.push(before.clone());
                }
            }
        }
        // Two declarations together may be too large for a ConfigMap.
        let size = serde_json::to_vec(&config).map_or(0, |json| json.len());
        if let Some(old) = old.filter(|_| size > MAX_CONFIG_BYTES) {
            config.routes.clone_from(&old.routes);
        }
        config
    }

    /// Message types of the routes that are not as declared, for people.
    pub(super) fn held_back<'a>(&'a self, new: &'a BusinessConfig, permitted: &BusinessConfig) -> Vec<&'a str> {
        let waits = |route: &&RouteConfig| self.concerns(route) && !permitted.routes.contains(route);
        new.routes.iter().filter(waits).map(|route| route.message_type.as_str()).collect()
    }
}

/// Whether a former route does what `route` should do: for the same messages, or with the same queue.
fn precedes(before: &RouteConfig, route: &RouteConfig) -> bool {
    before.send_type == route.send_type
        && (before.message_type == route.message_type || (route.queue.is_some() && before.queue == route.queue))
}

fn is_same(a: &RouteConfig, b: &RouteConfig) -> bool {
    (a.send_type, &a.message_type, &a.queue) == (b.send_type, &b.message_type, &b.queue)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wirepost_core::{business::WsBusiness, compile::compile_one};
    use wirepost_topology::{Problem, Step};

    use super::*;

    fn config(routes: &serde_json::Value) -> BusinessConfig {
        let business: WsBusiness = serde_json::from_value(json!({
            "apiVersion": "wirepost.dev/v1alpha1", "kind": "WsBusiness",
            "metadata": {"name": "pay", "namespace": "shop"},
            "spec": {"clientTypes": ["app"], "routes": routes},
        }))
        .unwrap();
        compile_one(&business).unwrap().config
    }

    fn to_queue(message_type: &str, queue: &str) -> serde_json::Value {
        json!({"messageType": message_type, "sendType": "ClientToServer", "queue": {"name": queue}})
    }

    fn missing(queue: &str) -> Report {
        reported(Problem::MissingQueue { queue: names::route_queue("pay", queue) })
    }

    fn reported(problem: Problem) -> Report {
        Report { problems: vec![problem], ..Report::default() }
    }

    /// Message type and queue of each route.
    fn shown(config: &BusinessConfig) -> Vec<(&str, &str)> {
        fn short(queue: Option<&str>) -> &str {
            queue.and_then(|name| name.strip_prefix("wirepost.pay.q.")).unwrap_or_default()
        }
        config.routes.iter().map(|route| (&*route.message_type, short(route.queue.as_deref()))).collect()
    }

    #[test]
    fn routes_without_trouble_go_on_and_the_others_stay_as_they_were() {
        let push = json!({"messageType": "done", "sendType": "ServerToClient", "to": ["app"]});
        let old = config(&json!([to_queue("order.#", "orders"), to_queue("refund", "refunds"), push]));
        let new = config(&json!([
            to_queue("order.#", "moved"),
            to_queue("extra", "moved"),
            to_queue("refund", "refunds"),
            to_queue("new", "other"),
        ]));
        let moved = Waiting::new("pay", &missing("moved"));
        let permitted = moved.permitted(&new, Some(&old));
        assert_eq!(shown(&permitted), [("order.#", "orders"), ("refund", "refunds"), ("new", "other")]);
        assert_eq!(moved.held_back(&new, &permitted), ["order.#", "extra"]);
        assert_eq!(moved.permitted(&new, Some(&permitted)), permitted, "the next run finds its own result");
        assert_eq!(shown(&moved.permitted(&new, None)), [("refund", "refunds"), ("new", "other")]);
        // Its queue and its route existed before.
        let refunds = Waiting::new("pay", &missing("refunds"));
        let permitted = refunds.permitted(&new, Some(&old));
        assert_eq!((permitted == new, refunds.held_back(&new, &permitted).len()), (true, 0));
        assert_eq!(Waiting::new("pay", &Report::default()).permitted(&new, Some(&old)), new);
    }

    #[test]
    fn trouble_of_the_stream_concerns_pushes_alone_and_how_they_travel() {
        let push = json!({"messageType": "done", "sendType": "ServerToClient", "to": ["app"]});
        let new = config(&json!([to_queue("order.#", "orders"), push]));
        let mut old = new.clone();
        old.delivery = wirepost_core::contract::edge_config::Delivery::Transient;
        old.routes.remove(0);
        let stream = Waiting::new("pay", &reported(Problem::MissingQueue { queue: names::stream("pay") }));
        let permitted = stream.permitted(&new, Some(&old));
        assert_eq!((permitted.delivery, permitted.routes.len()), (old.delivery, 2));
        let receive = Waiting::new("pay", &reported(Problem::MissingQueue { queue: names::receive_exchange("pay") }));
        assert_eq!(shown(&receive.permitted(&new, None)), [("done", "")]);
    }

    #[test]
    fn a_route_waits_for_what_its_receipts_are_judged_with_and_no_other_does() {
        let push = |within: Option<u32>| {
            let mut route =
                json!({"messageType": "done", "sendType": "ServerToClient", "to": ["app"], "receipts": true});
            if let Some(seconds) = within {
                route["receiptsWithinSeconds"] = seconds.into();
            }
            route
        };
        let news = json!({"messageType": "news", "sendType": "ServerToClient", "to": ["app"], "receipts": true});
        let (old, new) = (config(&json!([push(None), news])), config(&json!([push(Some(60)), news])));
        for object in [names::receipts_stream("pay"), names::judge_exchange("pay"), names::events_exchange("pay")] {
            let waiting = Waiting::new("pay", &reported(Problem::MissingQueue { queue: object }));
            let permitted = waiting.permitted(&new, Some(&old));
            assert_eq!(permitted.routes, old.routes, "as the edges have it");
            assert_eq!(waiting.held_back(&new, &permitted), ["done"]);
            assert_eq!(shown(&waiting.permitted(&new, None)), [("news", "")], "left out until it can be judged");
            assert_eq!(waiting.permitted(&old, None), old);
        }
    }

    #[test]
    fn a_user_that_does_not_work_holds_back_the_secret_alone() {
        let taken = Problem::UserTaken { user: "wirepost.pay.1".to_owned(), tag: "t".to_owned() };
        assert_eq!(Waiting::new("pay", &reported(taken)), Waiting { secret: true, ..Waiting::default() });
    }

    #[test]
    fn a_queue_whose_deletion_was_not_tried_exists_still() {
        let left = vec![Step::DeleteQueue("wirepost.pay.q.old".to_owned()), Step::DeletePolicy("p".to_owned())];
        let waiting = Waiting::new("pay", &Report { left, ..Report::default() });
        assert_eq!(waiting.kept, BTreeSet::from(["wirepost.pay.q.old".to_owned()]));
    }
}
