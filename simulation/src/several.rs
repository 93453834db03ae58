//! Messages to the clients of several businesses, as their senders write them and are answered.

use rand::{random_bool, random_range};
use serde_json::Value;

use crate::{declaration::other_than, oracle::Answer};

/// The result for a business that does not accept a message.
const NOT_ACCEPTED: u64 = 40_302;

/// The businesses that a message of `business` names; mostly none.
pub(crate) fn businesses(sharing: &[String], business: &str) -> Vec<String> {
    if !sharing.iter().any(|of| of == business) || !random_bool(0.3) {
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

/// The result of one message of a call that names these businesses, and those of them that do not take it. An error: what
/// a result can't say.
pub(crate) fn answer(result: &Value, named: &[String]) -> Result<(Answer, Vec<String>), String> {
    let of = |result: &Value| match (result["result"].as_u64(), result["mayHaveArrived"].as_bool()) {
        (Some(0), _) => Answer::Ok,
        (_, Some(true)) => Answer::Unknown,
        _ => Answer::Refused,
    };
    let Some(each) = result["businesses"].as_array() else { return Ok((of(result), Vec::new())) };
    let name = |one: &Value| one["business"].as_str().unwrap_or_default().to_owned();
    let mut taking = each.iter().map(of).filter(|answer| *answer != Answer::Refused);
    let answer = taking.next().unwrap_or(Answer::Refused);
    // Those that take it have one answer.
    if !each.iter().map(name).eq(named.iter().cloned()) || taking.any(|other| other != answer) {
        return Err(format!("answers for {named:?}: {result}"));
    }
    let refused = |one: &&Value| match answer {
        // Those that take it may have failed all the same.
        Answer::Refused => one["result"] == NOT_ACCEPTED,
        _ => of(one) == Answer::Refused,
    };
    Ok((answer, each.iter().filter(refused).map(name).collect()))
}
