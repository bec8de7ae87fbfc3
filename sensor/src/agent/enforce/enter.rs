//! Verdicts in and out: book, kernel, store and audit together. The records follow ([`super::records`]).

use std::net::IpAddr;

use ipnet::IpNet;
use sensor_common::flow::{FlowRecord, note, state};
use sensor_common::verdict::{Action, Entry, Origin, Rate as KernelRate, Verdict as Word};

use super::super::clock::now_ns;
use super::super::poll::Poller;
use super::{Enforcer, moment};
use crate::audit::{Event, rfc3339};
use crate::bpf::verdicts::Service as KernelService;
use crate::config::{ActionName, OriginName};
use crate::harvest::Memory;
use crate::metrics::VerdictChange;
use crate::policy;
use crate::verdicts::book::Change;
use crate::verdicts::scope::{Scope, Service};
use crate::verdicts::{Moment, Order, Verdict};

/// Verdicts whose end is written in one poll: some 40 thousand system calls a second.
const EXPIRED_PER_POLL: usize = 2_048;

/// Whether a verdict is a model's on a connection that was over when this flow began on the same tuple.
pub(super) fn is_outlived(verdict: &Verdict, record: &FlowRecord, now: Moment) -> bool {
    // Verdicts know the millisecond of the wall clock in which they were entered.
    let age_ns = now.unix_ms.saturating_sub(verdict.created_unix_ms).saturating_mul(1_000_000);
    let before = now.ns.saturating_sub(age_ns) < record.first_ns.saturating_add(1_000_000);
    // One on this flow has its word in the record, however soon it came.
    record.steady & note::FREED != 0
        && !Word(record.verdict).is_some()
        && verdict.origin == OriginName::Model
        && matches!(verdict.scope, Scope::Flow(_))
        && before
}

/// Whether the kernel needs an entry: a flow that a model tags has the word in its record, and is judged anew if that goes.
pub(super) fn has_entry(verdict: &Verdict) -> bool {
    verdict.origin != OriginName::Model || verdict.action != ActionName::Tag || !matches!(verdict.scope, Scope::Flow(_))
}

fn entry_of(verdict: &Verdict) -> Entry {
    let rate = KernelRate { packets: verdict.rate.packets, bytes: verdict.rate.bytes };
    let entry = Entry::new(verdict.action.into(), verdict.origin.into(), verdict.id, verdict.until_ns);
    entry.labelled(verdict.evidence.label_number).limited(rate)
}

impl Enforcer {
    /// What stands for a source against which a model or a rule decides: its IPv4 address; its IPv6 /64, all of which
    /// it has, unless that holds this host or what is never dropped.
    pub(super) fn blamed(&self, source: IpAddr) -> IpNet {
        let network = policy::network(source);
        if source.is_ipv4() {
            return network;
        }
        let shared = self.allow.own().iter().any(|own| network.contains(own)) || self.allow.touches(&network);
        if shared { source.into() } else { network }
    }

    /// Counts a flow's verdict against the source that has proven itself; whether that source has enough of them now.
    pub(in crate::agent) fn accuse(&mut self, id: u64, source: IpAddr, enough: u32) -> bool {
        let source = self.blamed(source);
        let count = self.accusations.entry(source).or_default();
        *count += u32::from(self.accused.insert(id, source).is_none());
        enough > 0 && *count >= enough
    }

    fn acquit(&mut self, id: u64) {
        let Some(source) = self.accused.remove(&id) else { return };
        if let Some(count) = self.accusations.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.accusations.remove(&source);
            }
        }
    }

    /// An operator took this verdict back: what is no operator decides it again only after `until_ns`.
    pub(super) fn pardon(&mut self, verdict: &Verdict, until_ns: u64, now_ns: u64) {
        if verdict.origin == OriginName::Operator {
            return;
        }
        if !self.pardons.grant(verdict.scope, until_ns, now_ns) {
            tracing::warn!("no room to remember that verdict {} was taken back: it may come again", verdict.id);
        }
        if let Scope::Source(prefix) = &verdict.scope {
            let clear = |source: &IpNet| !prefix.contains(source) && !source.contains(prefix);
            self.accused.retain(|_, source| clear(source));
            self.accusations.retain(|source, _| clear(source));
        }
    }
}

impl Poller {
    /// Enters a verdict: its number, and whether it is new.
    ///
    /// # Errors
    /// The never-drop list forbids it, the book refuses it, or the kernel does; nothing has changed then.
    pub(in crate::agent) fn enter(&mut self, order: Order) -> Result<(u64, bool), String> {
        if order.action > Action::Tag
            && let Some(reason) = self.enforcer.allow.forbids(&order.scope)
        {
            return Err(reason);
        }
        if let Scope::Flow(key) = &order.scope
            && order.action > Action::Tag
            && self.find(key).is_some_and(|(_, record)| self.enforcer.allow.protects(&record))
        {
            return Err(format!("{} is protected by the never-drop list; see `sensor allow list`", order.scope));
        }
        // Its place in the kernel is that of its protection.
        if self.enforcer.allow.lists(&order.scope) && (order.origin, order.action) != (Origin::Model, Action::Tag) {
            return Err(format!("{} is on the never-drop list; see `sensor allow list`", order.scope));
        }
        if order.origin == Origin::Model
            && let Scope::Source(prefix) = &order.scope
            && let Some(wider) = self.enforcer.book.commanded(prefix)
        {
            return Err(format!("verdict {} of origin {} holds for {prefix} already", wider.id, wider.origin));
        }
        if let Scope::Source(prefix) = &order.scope
            && let Some(own) = self.enforcer.allow.own().iter().find(|own| prefix.contains(*own))
            && order.action > Action::Tag
        {
            return Err(format!("{prefix} holds {own}, an address of this host"));
        }
        self.make_room(&order);
        let before = self.enforcer.book.of(&order.scope).cloned();
        let change = self.enforcer.book.add(order, moment()).map_err(|error| format!("{error:#}"))?;
        let (Change::Added(id, _) | Change::Renewed(id)) = change;
        if let Err(error) = self.write(id) {
            // The kernel still has what was there before.
            self.enforcer.book.take_back(&change, before);
            return Err(error);
        }
        let Change::Added(id, replaced) = change else {
            let renewed = self.enforcer.book.get(id);
            if let Some(verdict) =
                renewed.filter(|verdict| !matches!(verdict.origin, OriginName::Model | OriginName::Rule))
            {
                let until = rfc3339(verdict.until_unix_ms);
                self.enforcer.audit.write(Event::Renewed { verdict: Box::new(verdict.clone()), until });
            }
            return Ok((id, false));
        };
        if let Some(old) = replaced {
            if self.enforcer.book.get(id).is_some_and(|new| !has_entry(new)) {
                self.take_entry(&old);
            }
            self.forget(&old, format!("verdict {id} replaces it"), None);
        }
        self.withdraw_covered(id);
        if let Some(verdict) = self.enforcer.book.get(id) {
            let done = verdict.done(self.enforcer.ceiling(verdict.origin.into())).into();
            let until = rfc3339(verdict.until_unix_ms);
            self.note_change(VerdictChange::Added, verdict);
            self.enforcer.audit.write(Event::Verdict { verdict: Box::new(verdict.clone()), done, until });
        }
        Ok((id, true))
    }

    /// Takes a verdict back whose place this order needs more, if the book is full.
    fn make_room(&mut self, order: &Order) {
        while let Some((id, ended)) = self.enforcer.book.gives_way(order) {
            let goes_on = |verdict: &Verdict| matches!(&verdict.scope, Scope::Flow(key) if self.find(key).is_some());
            if ended && self.enforcer.book.get(id).is_some_and(goes_on) {
                self.enforcer.book.flow_goes_on(id);
                continue;
            }
            let why =
                if ended { "its flow has ended, and its place was needed" } else { "an operator needed its place" };
            self.withdraw(id, why.to_owned());
            return;
        }
    }

    /// Takes back what models decided of sources inside a prefix that a person blocks or limits.
    fn withdraw_covered(&mut self, id: u64) {
        let book = &self.enforcer.book;
        let Some(Scope::Source(prefix)) = book.get(id).map(|verdict| verdict.scope) else { return };
        if book.commanded(&prefix).is_none() {
            return;
        }
        for covered in book.models_inside(&prefix) {
            self.withdraw(covered, format!("verdict {id} covers it"));
        }
    }

    /// Brings a verdict of the book to the kernel, its flow's record, and the store.
    pub(super) fn write(&mut self, id: u64) -> Result<(), String> {
        let Some(verdict) = self.enforcer.book.get(id) else { return Ok(()) };
        if has_entry(verdict) {
            let entry = entry_of(verdict);
            let written = match &verdict.scope {
                Scope::Flow(key) => self.kernel.verdicts.set_flow(key, &entry),
                Scope::Source(prefix) => self.kernel.verdicts.set_source(*prefix, &entry),
                Scope::Service(service) => self.kernel.verdicts.set_service(kernel_service(service), &entry),
            };
            if let Err(error) = written {
                self.metrics.verdict_error();
                return Err(format!("the kernel did not take verdict {id}: {error:#}"));
            }
        }
        self.enforcer.store.verdict(verdict);
        let scope = verdict.scope;
        if let Scope::Flow(key) = scope
            && let Some((slot, record)) = self.find(&key)
        {
            self.stamp(slot, &record, moment().ns);
        }
        self.enforcer.mark(&scope);
        Ok(())
    }

    /// Takes a verdict back.
    pub(in crate::agent) fn withdraw(&mut self, id: u64, by: String) -> Option<Verdict> {
        let verdict = self.enforcer.book.remove(id)?;
        let packets = self.take_entry(&verdict);
        self.forget(&verdict, by, packets);
        self.clear(&verdict);
        Some(verdict)
    }

    /// Takes these back, at once in all records.
    pub(super) fn withdraw_all(&mut self, ids: Vec<u64>, by: &str) {
        let count = ids.len();
        for (number, id) in ids.into_iter().enumerate() {
            self.breathe(number);
            self.withdraw(id, by.to_owned());
        }
        if count > 0 {
            tracing::info!("{count} verdicts of models were taken back: {by}");
            self.restamp(now_ns());
        }
    }

    /// The verdict is out of the book: store, audit, metrics.
    fn forget(&mut self, verdict: &Verdict, by: String, packets: Option<u64>) {
        self.enforcer.acquit(verdict.id);
        self.enforcer.limited.remove(&verdict.id);
        self.enforcer.store.no_verdict(verdict.id);
        self.note_change(VerdictChange::Removed, verdict);
        let packets = packets.unwrap_or(0);
        self.enforcer.audit.write(Event::Removed { verdict: Box::new(verdict.clone()), by, packets });
    }

    /// Takes the kernel's entry out; packets that it acted on.
    fn take_entry(&mut self, verdict: &Verdict) -> Option<u64> {
        if !has_entry(verdict) {
            return None;
        }
        let taken = match &verdict.scope {
            Scope::Flow(key) => match self.kernel.verdicts.flow(key) {
                // The flow is protected meanwhile: that stays.
                Ok(Some(entry)) if entry.action == Action::Pass as u8 => Ok(None),
                _ => self.kernel.verdicts.remove_flow(key),
            },
            Scope::Source(prefix) => self.kernel.verdicts.remove_source(*prefix),
            Scope::Service(service) => self.kernel.verdicts.remove_service(kernel_service(service)),
        };
        match taken {
            Ok(entry) => entry.map(|entry| entry.packets),
            Err(error) => {
                self.metrics.verdict_error();
                tracing::error!("the entry of verdict {} stays in the kernel until it ends: {error:#}", verdict.id);
                None
            }
        }
    }

    /// Packets and bytes of a verdict's entry in the kernel.
    pub(in crate::agent) fn acted(&self, verdict: &Verdict) -> (u64, u64) {
        if !has_entry(verdict) {
            return (0, 0);
        }
        let entry = match &verdict.scope {
            Scope::Flow(key) => self.kernel.verdicts.flow(key).ok().flatten(),
            Scope::Source(prefix) => self.kernel.verdicts.source(*prefix).ok().flatten(),
            Scope::Service(service) => {
                let wanted = kernel_service(service);
                let all = self.kernel.verdicts.services().unwrap_or_default();
                all.into_iter().find(|(service, _)| *service == wanted).map(|(_, entry)| entry)
            }
        };
        // One that could not be written has left that of another in its place.
        entry.filter(|entry| entry.id == verdict.id).map_or((0, 0), |entry| (entry.packets, entry.bytes))
    }

    pub(super) fn expire_verdicts(&mut self, now: u64) {
        for verdict in self.enforcer.book.expire(now, EXPIRED_PER_POLL) {
            let packets = self.take_entry(&verdict).unwrap_or(0);
            self.enforcer.acquit(verdict.id);
            self.enforcer.limited.remove(&verdict.id);
            self.enforcer.store.no_verdict(verdict.id);
            self.note_change(VerdictChange::Expired, &verdict);
            if let Scope::Source(prefix) = &verdict.scope
                && self.enforcer.book.of_source(prefix.addr()).is_some()
            {
                // A wider one holds now.
                self.enforcer.mark(&verdict.scope);
            }
            self.enforcer.audit.write(Event::Expired { verdict: Box::new(verdict), packets });
        }
    }

    /// A flow is over: a model's tag goes with it, and any verdict of a model if both ends closed the connection; else
    /// it is the first to make room for another. (A RST can be forged by whoever is under the verdict, and the flow
    /// goes on: that verdict holds until another connection begins.)
    pub(in crate::agent) fn flow_ended(&mut self, record: &FlowRecord) {
        if self.enforcer.book.held()[0] == 0 {
            return;
        }
        if record.steady & note::FREED != 0 {
            self.freed(record);
        }
        // The next connection may have grown since the last look as far as this one was: then only this tells of it.
        if self.enforcer.book.of(&Scope::Flow(record.key)).is_some()
            && let Some((slot, next)) = self.find(&record.key)
            && next.generation != record.generation
            && next.steady & note::FREED != 0
        {
            self.memories[slot] = Memory::default();
            self.freed(&next);
        }
        let closed = record.state & state::GRACEFUL != 0;
        let Some(verdict) = self.enforcer.book.of(&Scope::Flow(record.key)) else { return };
        let stays = has_entry(verdict) && !(closed && verdict.origin == OriginName::Model);
        let id = verdict.id;
        if stays {
            self.enforcer.book.flow_ended(id);
        } else {
            self.withdraw(id, "the flow has ended".to_owned());
        }
    }

    /// The programs ended a model's verdict when this flow began on its tuple: the book follows.
    pub(in crate::agent) fn freed(&mut self, record: &FlowRecord) {
        if let Some(verdict) = self.enforcer.book.of(&Scope::Flow(record.key))
            && is_outlived(verdict, record, moment())
        {
            let id = verdict.id;
            self.withdraw(id, "another connection began on the same ports".to_owned());
        }
    }
}

fn kernel_service(service: &Service) -> KernelService {
    KernelService { address: service.address, port: service.port, protocol: service.protocol }
}
