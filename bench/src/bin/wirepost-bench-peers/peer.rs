//! The servers under test. Each run gets a fresh one, on a core of its own; what stands behind it runs on the others.

mod centrifugo;
mod wirepost;

pub(crate) use wirepost::envelope;

use std::{path::PathBuf, rc::Rc};

use anyhow::Result;
use wirepost_testing::{
    process::Process,
    service::Service,
    setup::Setup,
    usage::{self, Usage},
};

use crate::protocol::Protocol;

/// The core of the server under test.
const CORE: &str = "0";

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Keeps everything in its memory.
    Centrifugo,
    /// Keeps the history of channels in Redis.
    CentrifugoRedis,
    /// Keeps messages in RabbitMQ.
    Wirepost,
}

/// Programs of others.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) centrifugo: PathBuf,
    pub(crate) redis: Option<PathBuf>,
}

/// A running server.
pub(crate) struct Peer {
    pub(crate) protocol: Rc<dyn Protocol>,
    /// Its own way to publish, where that is not HTTP.
    pub(crate) service: Option<Service>,
    server: u32,
    behind: Option<u32>,
    _running: Running,
}

/// What ends with the peer.
enum Running {
    Centrifugo { _processes: Vec<Process>, _folder: tempfile::TempDir },
    Wirepost { _edge: wirepost_testing::edge::Edge, _setup: Setup },
}

/// CPU and memory so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    pub(crate) server: Usage,
    pub(crate) behind: Option<Usage>,
}

impl Kind {
    /// Starts it, with room for so many clients.
    pub(crate) async fn start(self, programs: &Programs, clients: usize, listening: bool) -> Result<Peer> {
        match self {
            Self::Centrifugo => centrifugo::start(programs, None, listening).await,
            Self::CentrifugoRedis => centrifugo::start(programs, programs.redis.as_ref(), listening).await,
            Self::Wirepost => wirepost::start(clients).await,
        }
    }
}

impl Peer {
    pub(crate) fn reading(&self) -> Result<Reading> {
        let behind = self.behind.map(usage::of).transpose()?;
        Ok(Reading { server: usage::of(self.server)?, behind })
    }
}
