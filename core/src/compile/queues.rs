//! The queues that routes name.

use std::collections::BTreeMap;

use crate::{
    business::{Queue, Route},
    problem::Problem,
};

/// The queues of all routes by name. Routes that share a queue may each give some of its settings.
///
/// # Errors
/// Where two routes contradict each other.
pub(crate) fn merge(routes: &[Route]) -> Result<BTreeMap<&str, Queue>, Vec<Problem>> {
    let mut queues: BTreeMap<&str, Queue> = BTreeMap::new();
    let mut problems = Vec::new();
    for (i, queue) in routes.iter().enumerate().filter_map(with_queue) {
        let Some(known) = queues.get_mut(queue.name.as_str()) else {
            queues.insert(&queue.name, queue.clone());
            continue;
        };
        let mut conflict = |setting: &str| {
            problems.push(Problem::at(
                format!("spec.routes[{i}].queue.{setting}"),
                format!("another route gives queue {} another {setting}", queue.name),
                "give the setting once, or the same on each route that names the queue",
            ));
        };
        if known.existing != queue.existing {
            conflict("existing");
        }
        match (&known.max_length_bytes, &queue.max_length_bytes) {
            (Some(a), Some(b)) if a != b => conflict("maxLengthBytes"),
            (None, Some(_)) => known.max_length_bytes.clone_from(&queue.max_length_bytes),
            _ => {}
        }
        for (setting, known, new) in [
            ("maxLength", &mut known.max_length, queue.max_length),
            ("messageTtlSeconds", &mut known.message_ttl_seconds, queue.message_ttl_seconds),
            ("deliveryLimit", &mut known.delivery_limit, queue.delivery_limit),
        ] {
            match (*known, new) {
                (Some(a), Some(b)) if a != b => conflict(setting),
                (None, Some(_)) => *known = new,
                _ => {}
            }
        }
    }
    if problems.is_empty() { Ok(queues) } else { Err(problems) }
}

fn with_queue((i, route): (usize, &Route)) -> Option<(usize, &Queue)> {
    Some((i, route.queue.as_ref()?))
}
