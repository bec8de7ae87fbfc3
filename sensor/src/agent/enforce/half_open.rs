//! Floods of half-open connections: which services and addresses ask clients to repeat themselves
//! (`policy.half_open_limit`).
//!
//! Only where the kernel's SYN cookies do not do the work: for addresses that are not this host's (it forwards to
//! them), and for its own if `net.ipv4.tcp_syncookies` is 0. A queue that overflows on a host with cookies loses
//! nobody, and no answer of ours is as good.

use std::collections::HashMap;
use std::time::Duration;

use sensor_common::verdict::{Action, Origin};

use super::super::poll::Poller;
use crate::config::OriginName;
use crate::verdicts::scope::{Scope, Service};
use crate::verdicts::{Evidence, Moment, Order, Rate};

/// How long a limit of half-open connections holds after the last second in which it was needed.
const HALF_OPEN_FOR: Duration = Duration::from_secs(60);
/// Share of the SYNs to a service that stay without a connection, from which on there is a flood and not a busy
/// service.
const HALF_OPEN_SHARE: f64 = 0.5;
/// Services and addresses that are limited at most at the same time by this rule.
const HALF_OPEN_SERVICES: usize = 64;

impl Poller {
    /// What a new value of `policy.half_open_limit` needs, and what it means here.
    pub(in crate::agent) fn follow_half_open_limit(&mut self) {
        let most = self.config.policy.half_open_limit;
        self.kernel.verdicts.set_note_known(most > 0);
        self.enforcer.left_to_cookies = false;
        if most == 0 {
            self.withdraw_limits("policy.half_open_limit is 0", |_| true);
        }
        match (most, self.enforcer.syn_cookies) {
            (0, _) => {}
            (most, true) => tracing::info!(
                "policy.half_open_limit = {most}: for services that this host forwards to; its own are left to the kernel's SYN cookies \
                 (net.ipv4.tcp_syncookies is on)"
            ),
            (most, false) => tracing::warn!(
                "policy.half_open_limit = {most}: for this host's own services, too, because the kernel has no SYN cookies for them; \
                 `sysctl -w net.ipv4.tcp_syncookies=1` is the better answer"
            ),
        }
        if most > 0 && self.follower.is_none() {
            tracing::warn!("policy.half_open_limit = {most} has no effect: it needs [context]");
        }
    }

    /// Asks clients to repeat themselves where a flood of SYNs is.
    pub(super) fn watch_half_open(&mut self, now: Moment) {
        let most = self.config.policy.half_open_limit;
        let Some(follower) = self.follower.as_ref().filter(|_| most > 0) else { return };
        let mut flooded: Vec<(Service, String)> = Vec::new();
        let mut left = None;
        for flood in follower.half_open(now.ns, f64::from(most)) {
            if flood.share < HALF_OPEN_SHARE || flooded.len() >= HALF_OPEN_SERVICES {
                continue;
            }
            if self.has_cookies(&flood.service) {
                left = Some(flood);
                continue;
            }
            let note =
                format!("{:.0} SYNs a second that lead to nothing, {:.0} % of all", flood.rate, flood.share * 100.0);
            flooded.push((flood.service, note));
        }
        if let Some(flood) = left
            && !std::mem::replace(&mut self.enforcer.left_to_cookies, true)
        {
            tracing::warn!(
                "{:.0} SYNs a second to {} lead to nothing: this host's own services are left to the kernel's SYN cookies, and \
                 policy.half_open_limit sets no limit (said once)",
                flood.rate,
                flood.service
            );
        }
        if self.enforcer.syn_cookies {
            let own = self.enforcer.allow.own().clone();
            self.withdraw_limits("the kernel answers by SYN cookies", |service| own.contains(&service.address));
        }
        if !self.still_needed(&mut flooded) {
            return;
        }
        for (service, note) in flooded {
            self.ask_to_repeat(service, note, now);
        }
    }

    /// Takes back limits that this rule has set.
    fn withdraw_limits(&mut self, why: &str, of: impl Fn(&Service) -> bool) {
        if self.enforcer.book.held()[2] == 0 {
            return;
        }
        let set = self.enforcer.book.iter().filter(|verdict| {
            verdict.origin == OriginName::Rule && matches!(&verdict.scope, Scope::Service(service) if of(service))
        });
        for id in set.map(|verdict| verdict.id).collect::<Vec<_>>() {
            self.withdraw(id, why.to_owned());
        }
    }

    /// Whether the kernel answers floods of SYNs to this service by cookies.
    fn has_cookies(&self, service: &Service) -> bool {
        self.enforcer.syn_cookies && self.enforcer.allow.own().contains(&service.address)
    }

    /// Adds the limits that still drop. While one works, what it stops is in no record: the entry says whether it is
    /// needed. False if the kernel does not say.
    fn still_needed(&mut self, flooded: &mut Vec<(Service, String)>) -> bool {
        if self.enforcer.book.held()[2] == 0 {
            return true;
        }
        let counts: HashMap<u64, u64> = match self.kernel.verdicts.services() {
            Ok(entries) => entries.into_iter().map(|(_, entry)| (entry.id, entry.packets)).collect(),
            Err(error) => {
                tracing::error!("{error:#}");
                return false;
            }
        };
        let own = self.enforcer.book.iter().filter(|verdict| verdict.origin == OriginName::Rule);
        let own: Vec<_> = own.map(|verdict| (verdict.id, verdict.scope)).collect();
        for (id, scope) in own {
            let Scope::Service(service) = scope else { continue };
            let packets = counts.get(&id).copied().unwrap_or_default();
            let before = self.enforcer.limited.insert(id, packets).unwrap_or_default();
            let known = flooded.iter().any(|(known, _)| *known == service);
            if packets > before && !known {
                flooded.push((service, String::new()));
            }
        }
        true
    }

    fn ask_to_repeat(&mut self, service: Service, note: String, now: Moment) {
        let most = self.config.policy.half_open_limit;
        let scope = Scope::Service(service);
        let half = HALF_OPEN_FOR.as_nanos() as u64 / 2;
        if self.enforcer.pardons.holds(&scope, now.ns) {
            return;
        }
        let held = self.enforcer.book.of(&scope);
        let lasts = held.is_some_and(|verdict| {
            verdict.origin != OriginName::Rule || verdict.until_ns > now.ns.saturating_add(half)
        });
        if lasts {
            return;
        }
        let order = Order {
            scope,
            action: Action::Limit,
            rate: Rate { packets: u64::from(most), bytes: 0 },
            // No model is asked: neither its breaker nor drift takes this answer to floods away.
            origin: Origin::Rule,
            for_ms: HALF_OPEN_FOR.as_millis() as u64,
            evidence: Evidence { who: "half-open rule".to_owned(), note: note.clone(), ..Evidence::default() },
        };
        match self.enter(order) {
            Ok((id, true)) => tracing::warn!(
                "while more than {most} SYNs a second come to {service}, clients that are not known have to repeat theirs \
                 (verdict {id}): {note}"
            ),
            Ok((_, false)) => {}
            Err(reason) => self.refused(&reason),
        }
    }
}
