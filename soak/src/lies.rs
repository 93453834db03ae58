//! Proxies that break promises, each on the way of one client, so that the whole way of the auditor is tested: it has to find every lie, the
//! right one at the right client, and nothing else.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use wirepost_testing::ws_proxy::{Fate, From, WsProxy};

use crate::audit::Kind;
use crate::member::{Member, VICTIMS};
use crate::plan::PLANS;
use crate::world::World;

/// Frames of its kind that pass before a proxy lies.
const HONEST: usize = 5;

/// What a proxy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// From some time on no push passes, and nothing that says so.
    Loss,
    /// One push does not pass.
    SilentGap,
    /// One passes twice.
    Double,
    /// One passes after the next.
    Swap,
    /// One that is for another identity.
    Leak,
    /// One of another business does not pass.
    NoCopy,
    /// A message is acknowledged, and does not pass.
    Ack,
}

impl Lie {
    pub const ALL: [Self; 7] =
        [Self::Loss, Self::SilentGap, Self::Double, Self::Swap, Self::Leak, Self::NoCopy, Self::Ack];

    /// The client that is lied to.
    pub fn victim(self) -> String {
        format!("victim-of-{self:?}").to_lowercase()
    }

    /// What the auditor must say of it.
    pub fn kind(self) -> Kind {
        match self {
            Self::Loss | Self::Ack => Kind::Lost,
            Self::SilentGap | Self::NoCopy => Kind::SilentGap,
            Self::Double => Kind::Doubled,
            Self::Swap => Kind::Swapped,
            Self::Leak => Kind::Leaked,
        }
    }
}

/// The last push to another identity that some proxy saw.
type Others = Arc<Mutex<Option<Value>>>;

/// The proxies that lie, which live as long as this is kept.
#[derive(Default)]
pub struct Liars {
    proxies: Vec<Arc<WsProxy>>,
    told: Arc<AtomicUsize>,
}

impl Liars {
    /// Whether each has lied, and it shows.
    pub fn have_lied(&self) -> bool {
        self.told.load(Ordering::Relaxed) == self.proxies.len()
    }
}

/// Clients that are lied to, and who does it.
pub async fn victims(world: &Arc<World>, seed: u64) -> Result<(Vec<Member>, Liars)> {
    let place = world.fleet.place(0).context("no edge")?;
    let (mut members, mut liars, others) = (Vec::new(), Liars::default(), Others::default());
    for lie in Lie::ALL {
        let proxy = Arc::new(WsProxy::start(place.edge.public, &format!("http://{}", place.edge.public)).await?);
        let mut liar = Liar {
            lie,
            proxy: Arc::downgrade(&proxy),
            others: Arc::clone(&others),
            all: Arc::clone(&liars.told),
            seen: 0,
            told: false,
            counted: false,
            kept: None,
        };
        proxy.judge(move |from, _, frame| liar.judge(from, frame));
        let victim = lie.victim();
        members.push(Member::by_way_of(world, (&victim, "app"), &victim, place.clone(), proxy.address, seed));
        liars.proxies.push(proxy);
    }
    Ok((members, liars))
}

struct Liar {
    lie: Lie,
    proxy: Weak<WsProxy>,
    others: Others,
    /// How many have lied, and a message has passed behind that.
    all: Arc<AtomicUsize>,
    seen: usize,
    told: bool,
    counted: bool,
    kept: Option<Value>,
}

impl Liar {
    fn judge(&mut self, from: From, frame: &Value) -> Fate {
        let (is_message, by_edge) = (frame["op"].is_null(), from == From::Edge);
        if self.told && is_message && by_edge != (self.lie == Lie::Ack) && !std::mem::replace(&mut self.counted, true) {
            // What shows it has come behind it.
            self.all.fetch_add(1, Ordering::Relaxed);
        }
        if self.lie == Lie::Loss && self.told && by_edge && (is_message || frame["op"] == "position") {
            return Fate::Lost;
        }
        if !is_message || by_edge == (self.lie == Lie::Ack) {
            return Fate::Pass;
        }
        self.seen += 1;
        if let Some(kept) = self.kept.take() {
            self.say(kept);
        }
        let other = self.note(frame);
        if self.told || self.seen < HONEST {
            return Fate::Pass;
        }
        match self.lie {
            Lie::NoCopy if frame["businessType"] == PLANS[VICTIMS].name => Fate::Pass,
            Lie::Loss | Lie::SilentGap | Lie::NoCopy => {
                self.told = true;
                Fate::Lost
            }
            Lie::Double => {
                self.told = true;
                self.say(frame.clone());
                Fate::Pass
            }
            Lie::Swap => {
                self.told = true;
                self.kept = Some(frame.clone());
                Fate::Lost
            }
            Lie::Leak => {
                if let Some(other) = other {
                    self.told = true;
                    self.say(other);
                }
                Fate::Pass
            }
            Lie::Ack => {
                self.told = true;
                Fate::Answered(json!({"op": "ack", "id": frame["id"]}))
            }
        }
    }

    /// Remembers a push to this client, for the one that leaks; what that one may leak.
    fn note(&self, frame: &Value) -> Option<Value> {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if self.lie != Lie::Leak && frame["toUniqueId"].as_str() == Some(self.lie.victim().as_str()) {
            *others = Some(frame.clone());
        }
        others.clone()
    }

    /// Behind what is being judged.
    fn say(&self, frame: Value) {
        if let Some(proxy) = self.proxy.upgrade() {
            proxy.say(frame);
        }
    }
}
