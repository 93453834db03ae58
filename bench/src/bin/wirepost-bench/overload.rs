//! More messages than the broker takes: does it still get as many as it can, how long do answers take, and does each client get its part?

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use tokio::{
    task::JoinSet,
    time::{sleep_until, timeout},
};
use tokio_tungstenite::tungstenite::Message;
use wirepost_testing::{setup::Setup, usage};

use crate::{
    clients::{self, Socket},
    receive::body,
};

const CLIENTS: usize = 500;
/// Unanswered messages of a client: what the edge allows.
const WINDOW: usize = 64;
/// Not counted, counted.
const SECONDS: (u64, u64) = (2, 6);
/// Parts of what the broker takes.
const OFFERED: [f64; 5] = [0.5, 1.0, 2.0, 5.0, 10.0];

/// What one client has seen.
#[derive(Default)]
struct Seen {
    acks: usize,
    nacks: usize,
    /// Messages that could not be sent when they were due: its window was full, or its socket took nothing.
    withheld: usize,
    answers: Vec<Duration>,
}

pub(crate) async fn run(setup: impl AsyncFn() -> Result<Setup>) -> Result<()> {
    // Without pauses: as much as windows allow.
    let (peak, _) = measure(&setup().await?, None).await?;
    println!("overload: the broker takes {peak:.0}/s of {CLIENTS} clients");
    for part in OFFERED {
        let (goodput, line) = measure(&setup().await?, Some(peak * part)).await?;
        println!("overload, {part} x offered: {goodput:.0} acks/s, {:.2} of the most; {line}", goodput / peak);
    }
    Ok(())
}

/// Acknowledged messages a second, and the rest in words. `rate`: of all clients together.
async fn measure(setup: &Setup, rate: Option<f64>) -> Result<(f64, String)> {
    let edge = setup.edge("overload").quiet().start().await?;
    let mut clients = JoinSet::new();
    let begun = Instant::now();
    let (from, end) = (begun + Duration::from_secs(SECONDS.0), begun + Duration::from_secs(SECONDS.0 + SECONDS.1));
    for socket in clients::connect(setup, &edge, CLIENTS, None).await? {
        let pause = rate.map(|rate| Duration::from_secs_f64(CLIENTS as f64 / rate));
        clients.spawn(client(socket, pause, from, end));
    }
    sleep_until(from.into()).await;
    let before = usage::of(edge.pid)?;
    let mut all = Seen::default();
    let mut each = Vec::new();
    while let Some(seen) = clients.join_next().await {
        let Seen { acks, nacks, withheld, answers } = seen??;
        each.push(acks);
        all.acks += acks;
        all.nacks += nacks;
        all.withheld += withheld;
        all.answers.extend(answers);
    }
    let after = usage::of(edge.pid)?;
    each.sort_unstable();
    all.answers.sort_unstable();
    let ms = |part| usage::percentile(&all.answers, part).as_millis();
    let line = format!(
        "answers p50 {} ms, p99 {} ms, longest {} ms; a client had {} to {} acks, the median {}; {} nacks, {} withheld, {:.1} us of CPU an ack",
        ms(0.5),
        ms(0.99),
        ms(1.0),
        each[0],
        each[each.len() - 1],
        each[each.len() / 2],
        all.nacks,
        all.withheld,
        usage::each(before, after, all.acks.max(1)),
    );
    Ok((all.acks as f64 / SECONDS.1 as f64, line))
}

/// Sends a message in each `pause`, whatever the edge does, within the window; a refused one is sent again when the edge says.
async fn client(mut socket: Socket, pause: Option<Duration>, from: Instant, end: Instant) -> Result<Seen> {
    let mut seen = Seen::default();
    let mut sent: HashMap<usize, Instant> = HashMap::new();
    let mut again: VecDeque<(Instant, usize)> = VecDeque::new();
    let (mut id, mut due) = (0, Instant::now());
    loop {
        let now = Instant::now();
        if now >= end {
            return Ok(seen);
        }
        let repeat = again.front().filter(|(at, _)| *at <= now).map(|(_, id)| *id);
        if sent.len() < WINDOW && (due <= now || repeat.is_some()) {
            let number = if let Some(number) = repeat {
                again.pop_front();
                number
            } else {
                id += 1;
                due = pause.map_or(now, |pause| due + pause);
                id
            };
            sent.insert(number, now);
            // While the socket takes nothing, answers must still be read.
            let (mut sink, mut stream) = (&mut socket).split();
            let mut sending = std::pin::pin!(sink.send(Message::text(body(number))));
            loop {
                tokio::select! {
                    result = &mut sending => break result?,
                    answer = stream.next() => note(answer, &mut seen, &mut sent, &mut again, from)?,
                    () = sleep_until(end.into()) => return Ok(seen),
                }
            }
            continue;
        }
        if sent.len() >= WINDOW
            && let Some(pause) = pause
        {
            while due <= now {
                due += pause;
                seen.withheld += 1;
            }
        }
        let next = if sent.len() < WINDOW { due.min(end) } else { end };
        let next = again.front().map_or(next, |(at, _)| next.min(*at));
        if let Ok(answer) = timeout(next.saturating_duration_since(Instant::now()), socket.next()).await {
            note(answer, &mut seen, &mut sent, &mut again, from)?;
        }
    }
}

fn note(
    answer: Option<Result<Message, tokio_tungstenite::tungstenite::Error>>,
    seen: &mut Seen,
    sent: &mut HashMap<usize, Instant>,
    again: &mut VecDeque<(Instant, usize)>,
    from: Instant,
) -> Result<()> {
    let message = answer.context("the edge closed")??;
    let Ok(frame) = serde_json::from_str::<serde_json::Value>(message.to_text()?) else { return Ok(()) };
    let Some(id) = frame["id"].as_str().and_then(|id| id.parse().ok()) else { return Ok(()) };
    let now = Instant::now();
    let Some(at) = sent.remove(&id) else { return Ok(()) };
    match frame["op"].as_str() {
        Some("ack") if now >= from => {
            seen.acks += 1;
            seen.answers.push(now - at);
        }
        Some("ack") => {}
        Some("nack") if frame["retryable"] == true => {
            seen.nacks += 1;
            let wait = frame["retryAfterMs"].as_u64().unwrap_or(0);
            again.push_back((now + Duration::from_millis(wait), id));
        }
        _ => bail!("{frame}"),
    }
    Ok(())
}
