//! Messages to the clients of several businesses, as their senders write them and are answered.

use rand::{random_bool, random_range};
use serde_json::Value;

use crate::{declaration::other_than, oracle::Answer};

/// The businesses that a message of `business` names; mostly none.
pub(crate) fn businesses(sharing: &[String], business: &str) -> Vec<String> {
    if !sharing.iter().any(|sharing| sharing == business) || !random_bool(0.3) {
        return Vec::new();
    }
    let other = other_than(business);
    let names: &[&str] = match random_range(0..8) {
        0 => &[other],
        1 => &[business],
        2 => &[business, other, "nobody"],
        3 => &[other, business],
        _ => &[business, other],
    };
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// The businesses that the headers of a service name, which mostly are those of the envelope.
pub(crate) fn headers(businesses: &[String]) -> Vec<String> {
    let most = if random_bool(0.1) { random_range(0..=businesses.len()) } else { businesses.len() };
    businesses[..most].to_vec()
}

/// The result of one message of a call, and the businesses that do not take it though others do.
pub(crate) fn answer(result: &Value) -> (Answer, Vec<String>) {
    let of = |result: &Value| match (result["result"].as_u64(), result["mayHaveArrived"].as_bool()) {
        (Some(0), _) => Answer::Ok,
        (_, Some(true)) => Answer::Unknown,
        _ => Answer::Refused,
    };
    let Some(businesses) = result["businesses"].as_array() else { return (of(result), Vec::new()) };
    // Those that take it have one answer.
    let answer = businesses.iter().map(of).find(|answer| *answer != Answer::Refused).unwrap_or(Answer::Refused);
    let refused = businesses.iter().filter(|business| answer != Answer::Refused && of(business) == Answer::Refused);
    (answer, refused.filter_map(|business| business["business"].as_str()).map(str::to_owned).collect())
}
