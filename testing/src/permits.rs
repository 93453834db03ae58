//! Permits for what a machine has too little of when many tests run at the same time. They are locks of files, so they count for
//! all test processes of this user, whatever started them, and a process that dies returns its own.
//!
//! A test takes its permits through the helpers that need them. One that takes two kinds takes them in the order of [`Kind`], so
//! that two tests never wait for each other.

use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::{Instant, sleep};

/// What a test prints before it waits, and once it has its permit. The runner then starts another test meanwhile, and does not
/// count the wait as the test's time.
pub const WAITING: &str = "[permit] waiting: ";
/// See [`WAITING`].
pub const GRANTED: &str = "[permit] granted: ";

const POLL: Duration = Duration::from_millis(50);
/// Longer than any run.
const PATIENCE: Duration = Duration::from_hours(1);

/// What there is too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The cluster with nodes: its tests share one release of the chart.
    Cluster,
    /// API servers of one test alone: each starts etcd, kube-apiserver and takes 400 MB.
    ApiServer,
    /// Brokers of one test alone: each takes four seconds of a processor to start, and 150 MB.
    Broker,
    /// Brokers of three nodes of one test alone.
    BrokerCluster,
    /// The processor, for tests that load it to its limit.
    Processor,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::ApiServer => "api-server",
            Self::Broker => "broker",
            Self::BrokerCluster => "broker-cluster",
            Self::Processor => "processor",
        }
    }

    fn count(self) -> usize {
        match self {
            Self::Cluster | Self::Processor => 1,
            Self::BrokerCluster => 2,
            Self::ApiServer => 3,
            Self::Broker => 5,
        }
    }
}

/// One permit, returned when dropped.
#[derive(Debug)]
pub struct Permit {
    _lock: File,
}

impl Permit {
    /// Waits for one.
    pub async fn take(kind: Kind) -> Result<Self> {
        let folder = folder()?;
        let open = |slot| {
            let path = folder.join(format!("{}-{slot}", kind.name()));
            File::options().create(true).append(true).open(&path).with_context(|| path.display().to_string())
        };
        let slots = (0..kind.count()).map(open).collect::<Result<Vec<_>>>()?;
        let deadline = Instant::now() + PATIENCE;
        let mut waited = false;
        loop {
            for slot in &slots {
                match slot.try_lock() {
                    Ok(()) => {
                        if waited {
                            eprintln!("{GRANTED}{}", kind.name());
                        }
                        return Ok(Self { _lock: slot.try_clone()? });
                    }
                    Err(TryLockError::WouldBlock) => {}
                    Err(TryLockError::Error(error)) => return Err(error).context("locking a permit"),
                }
            }
            if !waited {
                eprintln!("{WAITING}{}", kind.name());
                waited = true;
            }
            if Instant::now() > deadline {
                bail!("no permit for a {} within {PATIENCE:?}", kind.name());
            }
            sleep(POLL).await;
        }
    }
}

fn folder() -> Result<PathBuf> {
    let cache = match std::env::var_os("WIREPOST_CACHE") {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache/wirepost"),
    };
    let folder = cache.join("run/permits");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}
