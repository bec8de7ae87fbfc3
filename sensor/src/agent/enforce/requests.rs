//! What the control socket asks of enforcement.

use std::collections::HashMap;
use std::net::IpAddr;

use sensor_common::flow::FlowKey;
use sensor_common::verdict::{Action, Origin};
use tokio::sync::oneshot;

use super::super::clock::now_ns;
use super::super::poll::Poller;
use super::moment;
use crate::allow::item::Item;
use crate::allow::{Entry, Why};
use crate::audit::Event;
use crate::host::Items;
use crate::verdicts::scope::Scope;
use crate::verdicts::{Evidence, Order, Rate, Verdict};
use crate::view::{
    BatchView, BreakerView, EnforceRequest, EnforcementView, MAX_BATCH, ModeView, NewAllow, NewVerdict, NewVerdicts,
    Peer, VerdictList, VerdictView, Which,
};

/// Longest verdict of an operator: ten years.
const LONGEST_SECONDS: u64 = 10 * 366 * 24 * 3600;

impl Poller {
    /// Answers; nobody waits any more where a reply cannot be sent.
    pub(in crate::agent) fn answer_enforce(&mut self, request: EnforceRequest) {
        match request {
            EnforceRequest::Verdicts { limit, reply } => drop(reply.send(Ok(self.list(limit)))),
            EnforceRequest::Verdict { id, reply } => {
                let found = self.enforcer.book.get(id).map(|verdict| self.view(verdict));
                drop(reply.send(found.ok_or_else(|| no_verdict(id))));
            }
            EnforceRequest::Add { new, by, sessions, reply } => drop(reply.send(self.add(new, by, sessions))),
            EnforceRequest::AddMany { new, by, sessions, reply } => drop(reply.send(self.add_many(new, by, sessions))),
            EnforceRequest::Remove { which, by, reply } => drop(reply.send(self.remove(which, by))),
            EnforceRequest::Allowed { reply } => {
                let entries = self.enforcer.allow.entries().into_iter().cloned().collect();
                drop(reply.send(Ok(entries)));
            }
            EnforceRequest::Allow { new, by, reply } => drop(reply.send(self.allow(new, by))),
            EnforceRequest::Disallow { item, by, reply } => drop(reply.send(self.disallow(item, by))),
            EnforceRequest::Mode { to, by, sessions, reply } => {
                if let Some(to) = to {
                    if let Err(error) = self.prepare_tagging(to) {
                        let stays = self.enforcer.mode;
                        drop(reply.send(Err(format!(
                            "the mode stays {stays}: {error:#} (tag.enabled = false does without)"
                        ))));
                        return;
                    }
                    self.take_sessions(sessions);
                    self.set_mode(to, format!("operator {by}"));
                }
                let (mode, ramp) = (self.enforcer.mode, self.enforcer.ramp);
                let doubt = self.enforcer.doubt.as_ref().map(|doubt| doubt.text.clone());
                drop(reply.send(Ok(ModeView { mode, configured: self.config.mode, ramp, doubt })));
            }
            EnforceRequest::Kept { reply } => {
                let kept = self.config.agent.state_dir.is_some().then(|| {
                    let (said, answer) = oneshot::channel();
                    self.enforcer.store.confirm(said);
                    answer
                });
                drop(reply.send(Ok(kept)));
            }
            EnforceRequest::Breaker { reset, by, reply } => {
                if reset {
                    let (trip, services) = self.enforcer.breaker.reset();
                    if let Some(trip) = trip {
                        self.closed(trip, format!("operator {by}"));
                    }
                    for service in services {
                        self.service_freed(service, format!("operator {by}"));
                    }
                }
                drop(reply.send(Ok(self.breaker_view())));
            }
        }
    }

    fn list(&mut self, limit: usize) -> VerdictList {
        let most = if limit == 0 { MAX_BATCH } else { limit.min(MAX_BATCH) };
        let newest: Vec<u64> = self.enforcer.book.newest().take(most).map(|verdict| verdict.id).collect();
        // Their map is read once, not for each of them.
        let services = if self.enforcer.book.held()[2] > 0 { self.kernel.verdicts.services() } else { Ok(Vec::new()) };
        let services =
            services.unwrap_or_default().into_iter().map(|(_, entry)| (entry.id, (entry.packets, entry.bytes)));
        let services: HashMap<u64, (u64, u64)> = services.collect();
        let mut verdicts = Vec::with_capacity(newest.len());
        for (number, id) in newest.into_iter().enumerate() {
            self.breathe(number);
            let Some(verdict) = self.enforcer.book.get(id) else { continue };
            verdicts.push(match verdict.scope {
                Scope::Service(_) => self.view_of(verdict, services.get(&id).copied().unwrap_or_default()),
                _ => self.view(verdict),
            });
        }
        VerdictList { total: self.enforcer.book.len() as u64, verdicts }
    }

    fn view(&self, verdict: &Verdict) -> VerdictView {
        self.view_of(verdict, self.acted(verdict))
    }

    fn view_of(&self, verdict: &Verdict, (packets, bytes): (u64, u64)) -> VerdictView {
        VerdictView {
            verdict: verdict.clone(),
            done: verdict.done(self.enforcer.ceiling(verdict.origin.into())).into(),
            remaining_seconds: verdict.until_ns.saturating_sub(now_ns()) as f64 / 1e9,
            packets,
            bytes,
        }
    }

    fn add(&mut self, new: NewVerdict, by: Peer, sessions: Option<Items>) -> Result<VerdictView, String> {
        // The session that is typed in, before a verdict could hit it.
        self.take_sessions(sessions);
        let id = self.order(new, by)?;
        // Before the answer: it is in force.
        self.restamp(now_ns());
        self.enforcer.keep_state();
        self.enforcer.book.get(id).map(|verdict| self.view(verdict)).ok_or_else(|| no_verdict(id))
    }

    fn order(&mut self, new: NewVerdict, by: Peer) -> Result<u64, String> {
        let NewVerdict { scope, action, for_seconds, packets_per_second, bytes_per_second, note } = new;
        if for_seconds == 0 || for_seconds > LONGEST_SECONDS {
            return Err("a verdict needs an end: from one second to ten years from now".to_owned());
        }
        let order = Order {
            scope: self.scope(&scope)?,
            action: action.into(),
            rate: Rate { packets: packets_per_second, bytes: bytes_per_second },
            origin: Origin::Operator,
            for_ms: for_seconds.saturating_mul(1_000),
            evidence: Evidence { who: format!("operator {by}"), note, ..Evidence::default() },
        };
        self.enter(order).map(|(id, _)| id)
    }

    fn add_many(&mut self, new: NewVerdicts, by: Peer, sessions: Option<Items>) -> Result<BatchView, String> {
        let NewVerdicts { scopes, action, for_seconds, packets_per_second, bytes_per_second, note } = new;
        if scopes.len() > MAX_BATCH {
            return Err(format!("{} verdicts in one request: at most {MAX_BATCH}", scopes.len()));
        }
        self.take_sessions(sessions);
        let mut view = BatchView::default();
        for (number, scope) in scopes.into_iter().enumerate() {
            self.breathe(number);
            let note = note.clone();
            let one =
                NewVerdict { scope: scope.clone(), action, for_seconds, packets_per_second, bytes_per_second, note };
            match self.order(one, by) {
                Ok(_) => view.added += 1,
                Err(reason) => view.refused.push((scope, reason)),
            }
        }
        self.restamp(now_ns());
        self.enforcer.keep_state();
        Ok(view)
    }

    /// A scope as it is written, or the id of a living flow.
    fn scope(&self, text: &str) -> Result<Scope, String> {
        if let Some(key) = self.living(text) {
            return key.map(Scope::Flow);
        }
        text.parse().map_err(|error| format!("{error:#}"))
    }

    fn living(&self, text: &str) -> Option<Result<FlowKey, String>> {
        let (slot, generation) = text.split_once('-')?;
        let (slot, generation) = (slot.parse::<usize>().ok()?, generation.parse::<u32>().ok()?);
        let table = &self.kernel.table;
        let record = (slot < table.capacity()).then(|| table.copy(slot)).flatten();
        let record = record.filter(|record| record.generation == generation);
        Some(
            record
                .map(|record| record.key)
                .ok_or_else(|| format!("there is no flow {text} any more; see `sensor flows`")),
        )
    }

    fn remove(&mut self, which: Which, by: Peer) -> Result<Vec<Verdict>, String> {
        let ids = match which {
            Which::Id(id) if self.enforcer.book.get(id).is_some() => vec![id],
            Which::Id(id) => return Err(no_verdict(id)),
            Which::Scope(text) => {
                let scope = self.scope(&text)?;
                let found = self.enforcer.book.of(&scope).map(|verdict| verdict.id);
                vec![found.ok_or_else(|| format!("there is no verdict on {scope}; see `sensor verdicts list`"))?]
            }
            Which::All => self.enforcer.book.iter().map(|verdict| verdict.id).collect(),
        };
        let by = format!("operator {by}");
        let mut gone = Vec::with_capacity(ids.len());
        for (number, id) in ids.into_iter().enumerate() {
            self.breathe(number);
            gone.extend(self.withdraw(id, by.clone()));
        }
        let now = now_ns();
        for verdict in &gone {
            self.enforcer.pardon(verdict, now.saturating_add(self.config.policy.verdict_ttl.as_nanos() as u64), now);
        }
        // Before the answer: undone.
        self.restamp(now_ns());
        Ok(gone)
    }

    fn allow(&mut self, new: NewAllow, by: Peer) -> Result<Entry, String> {
        let NewAllow { item, for_seconds, note } = new;
        if let Item::Prefix(prefix) = &item
            && prefix.prefix_len() == 0
        {
            return Err(format!("{prefix} is everybody: use `sensor mode observe`"));
        }
        let now = moment();
        let until = for_seconds.map(|seconds| now.plus_ms(seconds.min(LONGEST_SECONDS).saturating_mul(1_000)));
        let entry = Entry {
            item,
            why: Why::Operator,
            note,
            who: format!("operator {by}"),
            until_unix_ms: until.map(|until| until.unix_ms),
            until_ns: until.map(|until| until.ns),
        };
        if let Item::Interface(name) = &entry.item
            && !self.attached.iter().any(|attached| attached.interface == *name)
        {
            return Err(format!("{name} is no interface that this agent watches: nothing is dropped there"));
        }
        let change = self.enforcer.allow.add(entry.clone());
        if change.is_none() {
            self.note_command(&entry.item);
        }
        if let Some(error) = self.protect(change.as_slice()) {
            let back = self.enforcer.allow.remove(&entry.item, Why::Operator).ok().flatten();
            self.protect(back.as_slice());
            return Err(format!("{} is not protected, the kernel refused it: {error}", entry.item));
        }
        self.enforcer.store.allow(&entry);
        self.enforcer.audit.write(Event::Allowed { entry: Box::new(entry.clone()) });
        tracing::info!("{} is never dropped from now on, by {}", entry.item, entry.who);
        self.restamp(now.ns);
        Ok(entry)
    }

    fn disallow(&mut self, item: Item, by: Peer) -> Result<Item, String> {
        let change = self.enforcer.allow.remove(&item, Why::Operator).map_err(|error| format!("{error:#}"))?;
        self.enforcer.store.no_allow(&item);
        let entry = Box::new(crate::allow::entry(item.clone(), Why::Operator));
        self.enforcer.audit.write(Event::NotAllowed { entry, by: format!("operator {by}") });
        if change.is_none() {
            self.note_command(&item);
        }
        self.protect(change.as_slice());
        self.restamp(now_ns());
        Ok(item)
    }

    /// The kernel's entry says for the next agent whether it was added by command, and until when.
    fn note_command(&mut self, item: &Item) {
        if matches!(item, Item::Prefix(_)) {
            self.protect(&[crate::allow::Change { item: item.clone(), allowed: true }]);
        }
    }

    pub(in crate::agent) fn breaker_view(&self) -> BreakerView {
        let trip = self.enforcer.breaker.trip().copied();
        let services = self.enforcer.breaker.services().open();
        BreakerView {
            open: trip.is_some(),
            trip,
            reason: trip.map(|trip| trip.to_string()),
            services: services.iter().map(ToString::to_string).collect(),
        }
    }

    /// Enforcement in the status.
    pub(in crate::agent) fn enforcement_view(&self) -> EnforcementView {
        let enforcer = &self.enforcer;
        let [flows, sources, services] = enforcer.book.held().map(|held| held as u64);
        let by = enforcer.allow.counts();
        EnforcementView {
            configured_mode: self.config.mode,
            ramp: enforcer.ramp,
            breaker: self.breaker_view(),
            flow_verdicts: flows,
            source_verdicts: sources,
            service_limits: services,
            never_drop: by.values().sum(),
            never_drop_by: by.iter().map(|(why, count)| (why.name().to_owned(), *count)).collect(),
            withheld_packets: self.metrics.withheld(),
            protected_packets: self.metrics.protected(),
            audit_lost: enforcer.audit.lost(),
        }
    }

    /// A flow's verdict has cost its source the last bit of credit: the source gets one.
    pub(in crate::agent) fn escalate(&mut self, source: IpAddr, evidence: Evidence) {
        let flows = self.config.policy.escalate_flows;
        let share = self.config.breaker.source_share;
        if self.enforcer.breaker.would_block_too_many(self.blocked_sources()) {
            // The cap holds before a source is cut off, not after: a model that is wrong about everybody must not block them.
            return self
                .refused(&format!("{source} would be one of too many sources (breaker.source_share = {share})"));
        }
        let blamed = Scope::source(self.enforcer.blamed(source));
        let evidence = Evidence {
            who: "escalation rule".to_owned(),
            note: format!("{flows} of its flows, with completed handshakes, are under a verdict of drop"),
            ..evidence
        };
        let order = Order {
            scope: blamed,
            action: Action::Drop,
            rate: Rate::default(),
            origin: Origin::Model,
            for_ms: self.config.policy.verdict_ttl.as_millis() as u64,
            evidence,
        };
        if self.enforcer.pardons.holds(&order.scope, now_ns()) {
            return;
        }
        match self.enter(order) {
            Ok((id, true)) => tracing::warn!("source {blamed} is dropped (verdict {id}): {flows} flows of it are"),
            Ok((_, false)) => {}
            Err(reason) => self.refused(&reason),
        }
    }
}

fn no_verdict(id: u64) -> String {
    format!("there is no verdict {id} (any more); see `sensor verdicts list`")
}
