//! The scenarios.

mod closes;
mod drain;
mod gaps;
mod handlers;
mod leak;
mod liveness;
mod queue;
mod receipts;
mod reconnect;
mod requests;
mod resume;
mod sending;
mod session;
mod strange;
mod tokens;

use anyhow::Result;
use futures_util::future::BoxFuture;

use crate::world::World;

/// One scenario.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// What a driver must support.
    pub(crate) needs: &'static [&'static str],
    /// It gets a driver of its own, because it changes more than its clients.
    pub(crate) alone: bool,
    /// Fields of `limits` in the declaration; empty: limits that nobody meets.
    pub(crate) limits: &'static str,
    /// Further lines of the declaration.
    pub(crate) more: &'static str,
    /// Declarations of other businesses.
    pub(crate) others: &'static [&'static str],
    pub(crate) run: for<'w> fn(&'w World) -> BoxFuture<'w, Result<()>>,
}

macro_rules! scenarios {
    ($($name:literal $needs:tt $run:path $(, $field:ident: $value:expr)*;)*) => {
        &[$(Scenario { $($field: $value,)* ..Scenario { name: $name, needs: &$needs, alone: false, limits: "", more: "", others: &[], run: |world| Box::pin($run(world)) } }),*]
    };
}

/// All of them; the long ones first.
pub(crate) static SCENARIOS: &[Scenario] = scenarios![
    "leak: a thousand reconnects leave nothing behind" ["timing", "stats"] leak::reconnects, alone: true;
    "liveness: by default a dead network is noticed after 35 s" [] liveness::by_default;
    "session: a refresh keeps the connection beyond its end" [] session::refresh, more: "  session: {maxSeconds: 6}\n";
    "session: without a refresh it ends with 3000, and a new token continues it" [] session::no_refresh, more: "  session: {maxSeconds: 5}\n";
    "drain: messages and sends pass from one edge to the next" ["timing"] drain::real;
    "drain: two connections deliver, and nothing is handed over twice" ["timing"] drain::both_deliver;
    "drain: what the old connection does not answer is repeated on the new one" ["timing"] drain::unanswered;
    "drain: both connections are cut" ["timing"] drain::cut_meanwhile;
    "drain: close ends both connections" ["timing"] drain::closed_meanwhile;
    "drain: 4009 on the old connection stops nobody" ["timing"] drain::replaced_meanwhile;
    "drain: clients leave at different times" ["timing"] drain::spread;
    "reconnect: the first connection" [] reconnect::first;
    "reconnect: clients of a dead edge do not return in step" ["timing"] reconnect::spread;
    "reconnect: waits grow" ["timing"] reconnect::growth;
    "reconnect: neither a silent server nor a missing welcome holds a client" ["timing"] reconnect::silence;
    "reconnect: an upgrade refused with 503" ["timing"] reconnect::refused;
    "resume: with cursor and resume token, nothing missing and nothing twice" ["timing"] resume::cuts;
    "resume: a position replaces cursor and resume token" ["timing"] resume::position;
    "resume: a stored cursor continues in another process" ["timing"] resume::stored;
    "tokens: an expired ticket" ["timing"] tokens::expired;
    "tokens: a call that is refused, fails or hangs" ["timing"] tokens::failing;
    "tokens: Retry-After" ["timing"] tokens::retry_after;
    "closes: codes that ask for a fast return with the resume token" ["timing"] closes::fast;
    "closes: 1009 rejects the largest message" ["timing"] closes::too_large;
    "closes: 3000 asks for a new token" ["timing"] closes::session_over;
    "closes: 3003 and 4010 ask for a slow return" ["timing"] closes::slow;
    "closes: 4009 asks for the user" ["timing"] closes::replaced, limits: "messagesPerSecond: 1000, burst: 1000, connectionsPerId: 1";
    "closes: 4008 after a jam" ["timing"] closes::too_slow;
    "sending: lost acks" ["timing"] sending::lost_acks;
    "sending: lost messages" ["timing"] sending::lost_messages;
    "sending: in order through cuts" ["timing"] sending::order;
    "sending: what is refused for good is not repeated" [] sending::refused;
    "sending: rate_limited waits" ["timing"] sending::rate_limited;
    "sending: a nack without a hint waits, longer each time" ["timing"] sending::no_hint;
    "sending: at most 64 messages without an answer" ["timing"] sending::window;
    "sending: pace after a reconnect" ["timing"] sending::pace, limits: "messagesPerSecond: 50, burst: 20";
    "sending: a megabyte, and more than is allowed" [] sending::large;
    "sending: close settles every send" ["timing"] sending::close;
    "queue: is bounded while there is no connection" ["timing", "queue"] queue::bound;
    "queue: an aborted send is not sent" ["timing", "abort"] queue::abort;
    "requests: answers, also after a cut, and no answer" ["timing", "request"] requests::answers;
    "receipts: what has no answer is given again, and nothing is handed over twice" ["timing", "receipts"] receipts::lost;
    "receipts: what is refused for now is given again on the same connection" ["timing", "receipts"] receipts::later;
    "gaps: one signal for a cursor that can't be continued" ["timing"] gaps::unknown_cursor;
    "gaps: an edge that learns its position later" ["timing"] gaps::later;
    "gaps: delivery Transient" ["timing"] gaps::transient, more: "  push: {delivery: Transient}\n";
    "liveness: a dead network is noticed" ["timing"] liveness::dead;
    "liveness: a quiet connection stays" ["timing"] liveness::quiet;
    "liveness: hints end a wait and test a connection" ["timing", "hints"] liveness::hints;
    "handlers: slow ones lose nothing" ["timing"] handlers::slow;
    "handlers: a cursor is written after the handler" ["timing"] handlers::cursor;
    "handlers: a failed one is called again" [] handlers::failing;
    "handlers: a message that was pushed twice is handed over once" ["timing"] handlers::twice;
    "handlers: the id of another sender is no repeat" [] handlers::same_id;
    "handlers: the id of another business is no repeat" [] handlers::other_business, more: handlers::ACCEPTS, others: &[handlers::PARTNER];
    "strange: unknown frames and fields" [] strange::unknown;
    "strange: jumps of the clock" ["timing", "clock"] strange::clock, alone: true;
];
