//! Limits for each client address: connections, open handshakes, and failures.
//!
//! *To whom they apply*: to addresses that are known to be a client's. Where the edge was told nothing about proxies, an
//! address may stand for everybody behind an ingress, and is not limited; nor is a trusted proxy's own. *Failures* are
//! refused tokens and keys, handshakes that fail, and requests that do not come in time. They lock nobody out: an
//! address that has too many of them gets its further refusals late, and few handshakes at the same time. So an attacker
//! is slow, and a neighbour behind the same address still gets in.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::HeaderMap;
use tokio::time::Instant;

use super::{ClientAddress, Proxies, Site};
use crate::{
    bucket::{Bucket, Rate},
    metrics::{Metrics, label},
};

/// Addresses that are remembered beside those that have connections: for their failures.
const MAX_SITES: usize = 65_536;
/// Addresses without connections and failures are forgotten when as many as this are remembered, and again when their
/// number has doubled.
const FIRST_SWEEP: usize = 1024;
/// Least time between two sweeps.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);
/// Open handshakes of an address with too many failures.
const SUSPECT_HANDSHAKES: u32 = 16;
/// How late such an address gets a refusal.
pub const REFUSAL_PAUSE: Duration = Duration::from_secs(1);
/// The time in which an address may have its failures.
const WINDOW: Duration = Duration::from_mins(1);

/// The limits of one address; 0 stands for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sockets.
    pub connections: u32,
    /// Connections that have not been admitted, and requests that are being judged.
    pub handshakes: u32,
    /// Failures a minute.
    pub failures: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 4096, handshakes: 256, failures: 300 }
    }
}

/// The limits, and what each address uses of them.
#[derive(Debug)]
pub struct AddressLimits {
    proxies: Proxies,
    limits: Limits,
    metrics: Arc<Metrics>,
    sites: Mutex<Sites>,
}

#[derive(Debug)]
struct Sites {
    by_site: HashMap<Site, Used>,
    sweep_at: usize,
    next_sweep: Instant,
}

#[derive(Clone, Copy, Debug, Default)]
struct Used {
    connections: u32,
    handshakes: u32,
    failures: Bucket,
}

/// What an address has too many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooMany {
    /// Sockets.
    Connections,
    /// Handshakes.
    Handshakes,
}

impl TooMany {
    /// Label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Connections => "address_connections",
            Self::Handshakes => "address_handshakes",
        }
    }
}

/// One of an address's connections or handshakes; returned when dropped.
#[derive(Debug)]
pub struct AddressPermit {
    limits: Arc<AddressLimits>,
    site: Site,
    of: TooMany,
}

impl AddressLimits {
    /// Nothing is in use.
    pub fn new(proxies: Proxies, limits: Limits, metrics: Arc<Metrics>) -> Self {
        let sites = Sites { by_site: HashMap::new(), sweep_at: FIRST_SWEEP, next_sweep: Instant::now() };
        Self { proxies, limits, metrics, sites: Mutex::new(sites) }
    }

    /// Which proxies are believed.
    pub fn proxies(&self) -> &Proxies {
        &self.proxies
    }

    /// Whose request it is that came on a connection of `peer`.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> ClientAddress {
        self.proxies.client(peer, headers)
    }

    /// Whether limits apply to this address.
    fn applies(&self, address: ClientAddress) -> bool {
        self.proxies.are_known() && !self.proxies.trust(address.0)
    }

    /// Counts a socket. `Ok(None)`: nothing limits it.
    ///
    /// # Errors
    /// The address has as many as it may.
    pub fn connection(self: &Arc<Self>, address: ClientAddress) -> Result<Option<AddressPermit>, TooMany> {
        self.take(address, TooMany::Connections)
    }

    /// Counts a handshake. `Ok(None)`: nothing limits it.
    ///
    /// # Errors
    /// As above.
    pub fn handshake(self: &Arc<Self>, address: ClientAddress) -> Result<Option<AddressPermit>, TooMany> {
        self.take(address, TooMany::Handshakes)
    }

    fn take(self: &Arc<Self>, address: ClientAddress, of: TooMany) -> Result<Option<AddressPermit>, TooMany> {
        let Limits { connections, handshakes, .. } = self.limits;
        let max = match of {
            TooMany::Connections => connections,
            TooMany::Handshakes => handshakes,
        };
        if !self.applies(address) || (max == 0 && (of == TooMany::Connections || self.limits.failures == 0)) {
            return Ok(None);
        }
        let (site, now) = (address.site(), Instant::now());
        let mut sites = self.lock();
        let Some(used) = sites.entry(site, now) else { return Ok(None) };
        let mut max = if max == 0 { u32::MAX } else { max };
        let count = match of {
            TooMany::Connections => &mut used.connections,
            TooMany::Handshakes => {
                if self.limits.failures > 0 && used.failures.overflows(self.failures(), now) {
                    max = max.min(SUSPECT_HANDSHAKES);
                }
                &mut used.handshakes
            }
        };
        if *count >= max {
            return Err(of);
        }
        *count += 1;
        Ok(Some(AddressPermit { limits: Arc::clone(self), site, of }))
    }

    /// Charges an address for a failure. Some: its refusal is to be answered that much later.
    pub fn failed(&self, address: ClientAddress) -> Option<Duration> {
        if self.limits.failures == 0 || !self.applies(address) {
            return None;
        }
        let now = Instant::now();
        let mut sites = self.lock();
        let used = sites.entry(address.site(), now)?;
        // What is beyond the limit is forgotten: it must not be paid for all day.
        used.failures.add(1, self.failures(), REFUSAL_PAUSE, now)?;
        drop(sites);
        self.metrics.slowed.get_or_create(&label("failures")).inc();
        Some(REFUSAL_PAUSE)
    }

    fn failures(&self) -> Rate {
        Rate { per_unit: WINDOW / self.limits.failures.max(1), burst: self.limits.failures }
    }

    fn lock(&self) -> MutexGuard<'_, Sites> {
        self.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sites {
    /// `None`: too many are remembered.
    fn entry(&mut self, site: Site, now: Instant) -> Option<&mut Used> {
        if self.by_site.len() >= self.sweep_at && now >= self.next_sweep {
            self.by_site.retain(|_, used| used.is_needed(now));
            self.by_site.shrink_to(FIRST_SWEEP);
            self.next_sweep = now + SWEEP_INTERVAL;
            self.sweep_at = (self.by_site.len() * 2).max(FIRST_SWEEP);
        }
        // Those with connections are as many as there are connections at most.
        if self.by_site.len() >= MAX_SITES && !self.by_site.contains_key(&site) {
            return None;
        }
        Some(self.by_site.entry(site).or_default())
    }
}

impl Used {
    fn is_needed(&self, now: Instant) -> bool {
        self.connections > 0 || self.handshakes > 0 || !self.failures.is_empty(now)
    }
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        let mut sites = self.limits.lock();
        let Some(used) = sites.by_site.get_mut(&self.site) else { return };
        match self.of {
            TooMany::Connections => used.connections -= 1,
            TooMany::Handshakes => used.handshakes -= 1,
        }
        if !used.is_needed(Instant::now()) {
            sites.by_site.remove(&self.site);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::ForwardedHeader;

    fn limits(trusted: &str) -> Arc<AddressLimits> {
        let proxies = Proxies::new(&[trusted.to_owned()], ForwardedHeader::default(), false).unwrap();
        let limits = Limits { connections: 2, handshakes: 40, failures: 10 };
        Arc::new(AddressLimits::new(proxies, limits, Arc::default()))
    }

    fn address(text: &str) -> ClientAddress {
        ClientAddress(text.parse().unwrap())
    }

    #[tokio::test]
    async fn an_address_has_no_more_connections_than_it_may_and_others_notice_nothing() {
        let limits = limits("none");
        let (alice, bob) = (address("192.0.2.1"), address("192.0.2.2"));
        let taken = [limits.connection(alice).unwrap(), limits.connection(alice).unwrap()];
        assert_eq!(limits.connection(alice).unwrap_err(), TooMany::Connections);
        assert!(limits.connection(bob).unwrap().is_some());
        drop(taken);
        assert!(limits.connection(alice).is_ok());
        assert!(limits.lock().by_site.is_empty(), "nothing is remembered");
    }

    #[tokio::test]
    async fn an_address_that_may_be_everybodys_is_not_limited() {
        for (trusted, peer) in [("", "192.0.2.1"), ("10.0.0.0/8", "10.1.2.3")] {
            let limits = limits(trusted);
            let peer = address(peer);
            let taken: Vec<_> = (0..100).map(|_| limits.connection(peer).unwrap()).collect();
            assert!(taken.iter().all(Option::is_none));
            assert!((0..100).all(|_| limits.failed(peer).is_none()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_fails_too_often_is_slowed_and_not_locked_out() {
        let limits = limits("none");
        let (alice, bob) = (address("192.0.2.1"), address("192.0.2.2"));
        let slowed = (0..1000).filter(|_| limits.failed(alice).is_some()).count();
        assert_eq!(slowed, 990);
        let open: Vec<_> = (0..40).filter_map(|_| limits.handshake(alice).ok()).collect();
        assert_eq!(open.len(), SUSPECT_HANDSHAKES as usize);
        assert!(limits.connection(alice).is_ok(), "a valid token still opens a socket");
        assert!((0..40).all(|_| limits.handshake(bob).is_ok()));
        drop(open);
        tokio::time::advance(WINDOW + REFUSAL_PAUSE).await;
        assert!(limits.failed(alice).is_none(), "it is forgotten within a minute");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let limits = limits("none");
        let of = |n: u32| ClientAddress(IpAddr::V4(n.into()));
        for n in 0..MAX_SITES as u32 + 10 {
            limits.failed(of(n));
        }
        assert_eq!(limits.lock().by_site.len(), MAX_SITES);
        tokio::time::advance(WINDOW).await;
        limits.failed(of(0));
        assert_eq!(limits.lock().by_site.len(), 1);
    }
}
