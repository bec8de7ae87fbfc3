//! The breaker of flows that prove no source: UDP, ICMP, TCP without a whole handshake.
//!
//! Whoever forges addresses makes as many such sources as he likes, so they never open the breaker for all. But a model
//! that is wrong about a UDP service cuts off its clients like any others. So each service has a breaker of its own,
//! for its unproven flows alone: while it is open these are tagged, and all else goes on. Forging opens it for the
//! forged service; verdicts on forged tuples stop no flood anyway.
//!
//! Pure. Invariant: bounded in services and in sources of each.

use std::collections::HashMap;
use std::net::IpAddr;

use super::Share;
use super::crowd::Crowd;
use super::quiet::Quiet;
use crate::config::BreakerConfig;
use crate::verdicts::scope::Service;

/// Services that are followed at once; the one that was quiet for longest goes first.
const MOST: usize = 64;
/// Sources of each.
const SOURCES: usize = 512;

#[derive(Debug)]
struct Watched {
    crowd: Crowd,
    last: u64,
    /// For how long it has been quiet, while it is open.
    open: Option<Quiet>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Services {
    watched: HashMap<Service, Watched>,
}

impl Services {
    fn watched(&mut self, service: Service, now: u64) -> &mut Watched {
        if self.watched.len() >= MOST && !self.watched.contains_key(&service) {
            let rank = |(service, watched): (&Service, &Watched)| (watched.open.is_some(), watched.last, *service);
            if let Some((_, _, oldest)) = self.watched.iter().map(rank).min() {
                self.watched.remove(&oldest);
            }
        }
        let watched = self.watched.entry(service).or_insert_with(|| Watched {
            crowd: Crowd::new(SOURCES),
            last: now,
            open: None,
        });
        watched.last = now;
        watched
    }

    /// An unproven flow of `source` to `service` is let pass.
    pub(super) fn passed(&mut self, service: Service, source: IpAddr, now: u64) {
        self.watched(service, now).crowd.passed(source, now);
    }

    /// One would be dropped or limited; whether that opens the service's breaker.
    pub(super) fn accused(
        &mut self,
        service: Service,
        source: IpAddr,
        config: &BreakerConfig,
        now: u64,
    ) -> Option<Share> {
        let watched = self.watched(service, now);
        if !watched.crowd.accused(source, now) || watched.open.is_some() {
            return None;
        }
        let share = over(&watched.crowd, config, now)?;
        watched.open = Some(Quiet::default());
        Some(share)
    }

    /// Once a second: services whose breaker closes.
    pub(super) fn second(&mut self, config: &BreakerConfig, now: u64) -> Vec<Service> {
        let mut closed = Vec::new();
        for (service, watched) in &mut self.watched {
            watched.crowd.forget(now);
            let busy = over(&watched.crowd, config, now).is_some();
            if let Some(quiet) = &mut watched.open
                && quiet.second(busy, now, config.reset_after)
            {
                watched.open = None;
                closed.push(*service);
            }
        }
        self.watched.retain(|_, watched| watched.open.is_some() || !watched.crowd.is_empty());
        closed
    }

    /// Whether the breaker of this service is open.
    pub fn holds(&self, service: &Service) -> bool {
        self.watched.get(service).is_some_and(|watched| watched.open.is_some())
    }

    /// Services whose breaker is open, in order.
    pub fn open(&self) -> Vec<Service> {
        let mut open: Vec<_> =
            self.watched.iter().filter(|(_, watched)| watched.open.is_some()).map(|(service, _)| *service).collect();
        open.sort_unstable();
        open
    }

    /// Closes all by command; those that were open.
    pub(super) fn reset(&mut self) -> Vec<Service> {
        let open = self.open();
        for watched in self.watched.values_mut() {
            watched.open = None;
            watched.crowd.acquit();
        }
        open
    }

    pub(super) fn another_model(&mut self) {
        self.watched.values_mut().for_each(|watched| watched.crowd.another_model());
    }
}

fn over(crowd: &Crowd, config: &BreakerConfig, now: u64) -> Option<Share> {
    let share = crowd.share(now);
    super::is_over(share, config).then_some(share)
}
