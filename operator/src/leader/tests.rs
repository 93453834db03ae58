//! Replicas and an API server in memory, with the clock in the test's hands. A request that its sender has given up may still be carried
//! out later, as on a real network.

use std::sync::{Arc, Mutex};

use hyper::{Method, Request, Response};
use kube::client::Body;
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{sync::oneshot, task::JoinHandle};
use tower::{BoxError, service_fn};

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(15);
/// Of the random test.
const SEEDS: u64 = 10;
const STEPS: usize = 6_000;
const STEP: Duration = Duration::from_millis(100);

/// The one Lease, and how requests travel.
struct Server {
    lease: Option<Value>,
    version: u64,
    random: StdRng,
    /// Longest time of a request on its way there, and of an answer on its way back.
    delay: Duration,
}

type Shared = Arc<Mutex<Server>>;

fn server() -> Shared {
    Arc::new(Mutex::new(Server { lease: None, version: 0, random: StdRng::seed_from_u64(1), delay: Duration::ZERO }))
}

impl Server {
    fn answer(&mut self, method: &Method, body: &[u8]) -> Result<Value, u16> {
        let new: Option<Value> = serde_json::from_slice(body).ok();
        match (method, &self.lease, new) {
            (&Method::GET, Some(lease), _) => return Ok(lease.clone()),
            (&Method::POST, None, Some(new)) => self.lease = Some(new),
            (&Method::POST, Some(_), _) => return Err(409),
            (&Method::PUT, Some(is), Some(new)) => {
                if new["metadata"]["resourceVersion"] != is["metadata"]["resourceVersion"] {
                    return Err(409);
                }
                self.lease = Some(new);
            }
            _ => return Err(404),
        }
        self.version += 1;
        let lease = self.lease.as_mut().unwrap();
        lease["metadata"]["resourceVersion"] = json!(self.version.to_string());
        Ok(lease.clone())
    }

    fn delay(&mut self) -> Duration {
        let most = self.delay;
        // Mostly quick; sometimes so late that the sender has given up.
        if self.random.random_ratio(1, 4) { most.mul_f64(self.random.random()) } else { most / 1000 }
    }

    fn holder(&self) -> Option<&str> {
        self.lease.as_ref()?["spec"]["holderIdentity"].as_str()
    }
}

/// One process.
struct Replica {
    leadership: Leadership,
    /// Whether its requests arrive.
    connected: watch::Sender<bool>,
    cancel: CancellationToken,
    run: JoinHandle<Result<(), LeadershipLost>>,
}

impl Replica {
    fn start(server: &Shared, identity: &str, duration: Duration) -> Self {
        let (connected, link) = watch::channel(true);
        let settings =
            Settings { namespace: "system".into(), name: "lease".into(), identity: identity.into(), duration };
        let (elector, leadership) = Elector::new(client(Arc::clone(server), link), settings);
        let cancel = CancellationToken::new();
        let run = tokio::spawn(elector.run(cancel.clone()));
        Self { leadership, connected, cancel, run }
    }

    fn leads(&self) -> bool {
        self.leadership.is_leader()
    }

    async fn led(&self) {
        until(|| self.leads()).await;
    }
}

fn client(server: Shared, link: watch::Receiver<bool>) -> Client {
    let service = service_fn(move |request: Request<Body>| {
        let (server, mut link) = (Arc::clone(&server), link.clone());
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await?;
            let (reply, answer) = oneshot::channel();
            tokio::spawn(async move {
                let (there, back) = {
                    let mut server = server.lock().unwrap();
                    (server.delay(), server.delay())
                };
                sleep(there).await;
                let _ = link.wait_for(|open| *open).await;
                let answer = server.lock().unwrap().answer(&parts.method, &body);
                sleep(back).await;
                let _ = link.wait_for(|open| *open).await;
                let _ = reply.send(answer);
            });
            let (code, value) = match answer.await? {
                Ok(value) => (200, value),
                Err(code) => {
                    let reason = if code == 404 { "NotFound" } else { "Conflict" };
                    (
                        code,
                        json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": ""}),
                    )
                }
            };
            Ok::<_, BoxError>(Response::builder().status(code).body(Body::from(value.to_string().into_bytes()))?)
        }
    });
    Client::new(service, "system")
}

/// The clock is moved on by the runtime whenever nothing can run.
async fn until(mut is: impl FnMut() -> bool) {
    let end = Instant::now() + SECOND * 600;
    while !is() {
        assert!(Instant::now() < end, "not within ten minutes");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_stops_well_before_another_begins() {
    let server = server();
    let one = Replica::start(&server, "one", LEASE);
    one.led().await;
    let two = Replica::start(&server, "two", LEASE);
    sleep(SECOND * 30).await;
    assert!(one.leads() && !two.leads());

    one.connected.send_replace(false);
    let cut = Instant::now();
    until(|| !one.leads()).await;
    assert!(cut.elapsed() <= LEASE * 2 / 3);
    let stopped = Instant::now();
    two.led().await;
    assert!(stopped.elapsed() >= LEASE / 4, "{:?}", stopped.elapsed());
    assert!(one.run.await.unwrap().is_err());
    assert!(!one.leadership.is_leader());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_given_up_is_taken_within_two_seconds_however_long_it_is() {
    let server = server();
    let one = Replica::start(&server, "one", SECOND * 300);
    one.led().await;
    let two = Replica::start(&server, "two", SECOND * 300);
    sleep(SECOND * 60).await;
    one.cancel.cancel();
    one.run.await.unwrap().unwrap();
    assert!(!one.leadership.is_leader());
    let given_up = Instant::now();
    two.led().await;
    assert!(given_up.elapsed() <= MAX_RETRY + SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_deleted_stays_with_its_holder() {
    let server = server();
    let one = Replica::start(&server, "one", LEASE);
    one.led().await;
    let two = Replica::start(&server, "two", LEASE);
    sleep(SECOND * 30).await;
    server.lock().unwrap().lease = None;
    for _ in 0..60 {
        sleep(SECOND).await;
        assert!(one.leads() && !two.leads());
    }
    // Its holder has gone as well.
    one.connected.send_replace(false);
    server.lock().unwrap().lease = None;
    until(|| !one.leads()).await;
    assert!(!two.leads());
    two.led().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_another_took_by_hand_ends_the_leader_at_its_next_renewal() {
    let server = server();
    let one = Replica::start(&server, "one", LEASE);
    one.led().await;
    let mut lease = server.lock().unwrap().lease.clone().unwrap();
    lease["spec"]["holderIdentity"] = json!("a person");
    server.lock().unwrap().answer(&Method::PUT, lease.to_string().as_bytes()).unwrap();
    let taken = Instant::now();
    let lost = one.run.await.unwrap().unwrap_err();
    assert!(lost.to_string().contains("'a person'"), "{lost}");
    assert!(taken.elapsed() <= LEASE / 8 + SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_taken_without_an_answer_is_one_s_own() {
    let server = server();
    let one = Replica::start(&server, "one", LEASE);
    // The first look, and the attempt to make the Lease: it arrives, its answer does not.
    until(|| server.lock().unwrap().holder().is_some()).await;
    one.connected.send_replace(false);
    sleep(LEASE / 2).await;
    let leads = one.leads();
    one.connected.send_replace(true);
    let back = Instant::now();
    one.led().await;
    assert!(leads || back.elapsed() < LEASE, "{:?}", back.elapsed());
}

/// Requests and answers that arrive late or never, replicas that end and start again: never do two lead.
#[tokio::test(start_paused = true)]
async fn however_late_requests_arrive_no_two_lead_at_once() {
    let mut led = 0;
    for seed in 0..SEEDS {
        let server = server();
        {
            let mut server = server.lock().unwrap();
            server.random = StdRng::seed_from_u64(seed);
            server.delay = LEASE * 2;
        }
        let mut random = StdRng::seed_from_u64(seed + 1000);
        let mut count = 0;
        let mut start = || {
            count += 1;
            Replica::start(&server, &format!("replica-{count}"), LEASE)
        };
        let mut replicas = [start(), start(), start()];
        for _ in 0..STEPS {
            sleep(STEP).await;
            let leading = replicas.iter().filter(|replica| replica.leads()).count();
            assert!(leading <= 1, "seed {seed}: {leading} lead");
            led += leading;
            let i = random.random_range(0..replicas.len());
            match random.next_u32() % 1000 {
                0 => replicas[i].cancel.cancel(),
                1 => replicas[i].run.abort(),
                2..6 => drop(replicas[i].connected.send_replace(false)),
                6..30 => drop(replicas[i].connected.send_replace(true)),
                _ => {}
            }
            for replica in replicas.iter_mut().filter(|replica| replica.run.is_finished()) {
                // A process that has ended, whatever its clock would say.
                *replica = start();
            }
        }
    }
    assert!(led > SEEDS as usize * STEPS / 4, "hardly anybody led: {led}");
}
