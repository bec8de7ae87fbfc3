//! Verdicts in and out: book, kernel, records, store and audit together.

use std::net::IpAddr;

use ipnet::IpNet;
use sensor_common::flow::{FlowKey, FlowRecord, state};
use sensor_common::hash::hash;
use sensor_common::table::{WAYS, bucket_of, tag_of};
use sensor_common::verdict::{Action, Entry, Origin, Rate as KernelRate, Verdict as Word};

use super::super::clock::now_ns;
use super::super::poll::Poller;
use super::{Enforcer, moment};
use crate::audit::{Event, rfc3339};
use crate::bpf::verdicts::Service as KernelService;
use crate::config::{ActionName, OriginName};
use crate::metrics::VerdictChange;
use crate::policy::{accuses, initiator};
use crate::verdicts::book::Change;
use crate::verdicts::scope::{Scope, addresses};
use crate::verdicts::{Evidence, Moment, Order, Rate, Verdict};

/// Verdicts whose end is written in one poll: some 40 thousand system calls a second.
const EXPIRED_PER_POLL: usize = 2_048;
/// Prefixes that are compared one by one with each record; with more, the book is asked.
const FEW: usize = 8;

/// Whether the kernel needs an entry: a flow that a model tags has the word in its record, and is judged anew if that goes.
pub(super) fn has_entry(verdict: &Verdict) -> bool {
    verdict.origin != OriginName::Model || verdict.action != ActionName::Tag || !matches!(verdict.scope, Scope::Flow(_))
}

fn entry_of(verdict: &Verdict) -> Entry {
    let rate = KernelRate { packets: verdict.rate.packets, bytes: verdict.rate.bytes };
    let entry = Entry::new(verdict.action.into(), verdict.origin.into(), verdict.id, verdict.until_ns);
    entry.labelled(verdict.evidence.label_number).limited(rate)
}

/// The word that this verdict puts into a record.
fn word_of(verdict: &Verdict, generation: u32) -> Word {
    Word::new(verdict.action.into(), verdict.evidence.label_number, generation, verdict.until_ns)
        .of(verdict.origin.into())
}

impl Enforcer {
    /// Counts a flow's verdict against the source that has proven itself; whether that source has enough of them now.
    pub(in crate::agent) fn accuse(&mut self, id: u64, source: IpAddr, enough: u32) -> bool {
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
            self.accused.retain(|_, source| !prefix.contains(&*source));
            self.accusations.retain(|source, _| !prefix.contains(source));
        }
    }

    /// Records of these sources have to follow the book.
    fn mark(&mut self, scope: &Scope) {
        if let Scope::Source(prefix) = scope {
            self.stale.push(*prefix);
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
    fn write(&mut self, id: u64) -> Result<(), String> {
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
            Scope::Source(prefix) => self.kernel.verdicts.source(prefix.addr()).ok().flatten(),
            Scope::Service(service) => {
                let wanted = kernel_service(service);
                let all = self.kernel.verdicts.services().unwrap_or_default();
                all.into_iter().find(|(service, _)| *service == wanted).map(|(_, entry)| entry)
            }
        };
        // The look-up by address gives the longest prefix, which may be that of another verdict.
        entry.filter(|entry| entry.id == verdict.id).map_or((0, 0), |entry| (entry.packets, entry.bytes))
    }

    /// The records of a verdict that is gone follow what is left.
    fn clear(&mut self, verdict: &Verdict) {
        if let Scope::Flow(key) = &verdict.scope
            && let Some((slot, record)) = self.find(key)
        {
            (self.memories[slot].verdict, self.memories[slot].would) = (None, None);
            self.stamp(slot, &record, moment().ns);
        }
        self.enforcer.mark(&verdict.scope);
        self.enforcer.again.push(verdict.scope);
    }

    /// Looks once more at what was taken back before this poll: a packet that met the verdict just before may have begun a
    /// record with its word just after.
    pub(super) fn clear_again(&mut self, now: u64) {
        let again = std::mem::take(&mut self.enforcer.again);
        for (number, scope) in again.into_iter().enumerate() {
            self.breathe(number);
            self.enforcer.mark(&scope);
            if let Scope::Flow(key) = scope
                && let Some((slot, record)) = self.find(&key)
                && record.verdict != 0
            {
                self.stamp(slot, &record, now);
            }
        }
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

    /// What the kernel has after a takeover and what the book has become the same.
    pub(super) fn reconcile(&mut self) {
        self.adopt_verdicts();
        let ids: Vec<u64> = self.enforcer.book.iter().map(|verdict| verdict.id).collect();
        for (number, id) in ids.into_iter().enumerate() {
            self.breathe(number);
            if let Err(error) = self.write(id) {
                tracing::error!("{error}");
            }
        }
        let book = &self.enforcer.book;
        let unknown = |scope: Scope, entry: &Entry| {
            entry.action != Action::Pass as u8 && book.of(&scope).is_none_or(|verdict| verdict.id != entry.id)
        };
        let verdicts = &self.kernel.verdicts;
        let flows = verdicts.flows().unwrap_or_default().into_iter().filter(|(key, e)| unknown(Scope::Flow(*key), e));
        let flows: Vec<_> = flows.map(|(key, _)| key).collect();
        let sources = verdicts.sources().unwrap_or_default().into_iter().filter(|(p, e)| unknown(Scope::Source(*p), e));
        let sources: Vec<_> = sources.map(|(prefix, _)| prefix).collect();
        let services = verdicts.services().unwrap_or_default().into_iter();
        let services = services.filter(|(service, e)| unknown(Scope::Service(service_of(*service)), e));
        let services: Vec<_> = services.map(|(service, _)| service).collect();
        let left = flows.len() + sources.len() + services.len();
        let mut failed = 0;
        for key in flows {
            failed += usize::from(self.kernel.verdicts.remove_flow(&key).is_err());
        }
        for prefix in sources {
            failed += usize::from(self.kernel.verdicts.remove_source(prefix).is_err());
        }
        for service in services {
            failed += usize::from(self.kernel.verdicts.remove_service(service).is_err());
        }
        if left > 0 {
            tracing::warn!("{left} verdicts in the kernel are in no book and were taken out ({failed} could not be)");
        }
        self.enforcer.all_stale = true;
    }

    /// What holds in the kernel goes on, even where the store does not know it (another directory, a damaged file, a write
    /// that a SIGKILL cut off): a block must not end, nor be out of reach of commands, because an agent was replaced.
    fn adopt_verdicts(&mut self) {
        let verdicts = &self.kernel.verdicts;
        let read = || -> anyhow::Result<Vec<(Scope, Entry)>> {
            let flows = verdicts.flows()?.into_iter().map(|(key, entry)| (Scope::Flow(key), entry));
            let sources = verdicts.sources()?.into_iter().map(|(prefix, entry)| (Scope::Source(prefix), entry));
            let services = verdicts.services()?.into_iter();
            let services = services.map(|(service, entry)| (Scope::Service(service_of(service)), entry));
            Ok(flows.chain(sources).chain(services).collect())
        };
        let left = match read() {
            Ok(left) => left,
            Err(error) => {
                tracing::error!("the verdicts that the agent before left cannot be read: {error:#}");
                return;
            }
        };
        let (now, mut adopted) = (moment(), 0);
        for (scope, entry) in left {
            let free = entry.action != Action::Pass as u8 && self.enforcer.book.of(&scope).is_none();
            if free && self.enforcer.allow.forbids(&scope).is_none() {
                let next = self.enforcer.book.next_id();
                let id = if self.enforcer.book.get(entry.id).is_some() { next } else { entry.id };
                adopted += usize::from(self.enforcer.book.restore(verdict_of(id, scope, &entry, now), now).is_some());
            }
        }
        if adopted > 0 {
            tracing::warn!("{adopted} verdicts in the kernel are not in the store: they go on");
        }
    }

    /// Where a flow is in the table.
    fn find(&self, key: &FlowKey) -> Option<(usize, FlowRecord)> {
        let seed = self.kernel.seed();
        let hash = hash(key, |position| seed[position]);
        let first = bucket_of(hash, self.kernel.table.buckets() as u32) as usize;
        let bucket = self.kernel.table.bucket(first);
        let tagged = (0..WAYS).filter(|way| bucket.tags[*way] == tag_of(hash)).map(|way| first * WAYS + way);
        tagged.into_iter().find_map(|slot| {
            let record = self.kernel.table.copy(slot)?;
            record.key.same(key).then_some((slot, record))
        })
    }

    /// Makes the word of a record what the book says.
    fn stamp(&mut self, slot: usize, record: &FlowRecord, now: u64) {
        let enforcer = &self.enforcer;
        let verdict = enforcer.book.of_flow(&record.key, initiator(record));
        let verdict = verdict.filter(|_| !enforcer.allow.protects(record));
        let old = Word(record.verdict);
        let (by_model, accusing) = match verdict {
            Some(verdict) if verdict.origin == OriginName::Model => (
                Some((Action::from(verdict.action), verdict.until_ns)),
                matches!(verdict.scope, Scope::Flow(_)) && verdict.action == ActionName::Drop,
            ),
            _ => (None, false),
        };
        let id = verdict.map(|verdict| verdict.id);
        let word = match verdict {
            Some(verdict) => word_of(verdict, record.generation),
            // A tag of the model that the book had no room for.
            None if self.memories[slot].verdict.is_some()
                && old.origin() == Origin::Model as u8
                && old.action() == Action::Tag =>
            {
                return;
            }
            None => Word::default(),
        };
        // So that it counts in the breaker's share, is not judged while it is dropped, and is cleared by a good score.
        self.memories[slot].verdict = by_model;
        if accusing && let (Some(id), Some(source)) = (id, accuses(record)) {
            self.enforcer.accuse(id, source, 0);
        }
        if word != old && (word.is_some() || old.action_at(record.generation, now) != Action::Pass) {
            self.kernel.table.store_verdict(slot, word.0);
        }
    }

    /// One pass over the records, if verdicts on sources have changed.
    pub(super) fn restamp(&mut self, now: u64) {
        let (stale, all) = (std::mem::take(&mut self.enforcer.stale), std::mem::take(&mut self.enforcer.all_stale));
        if stale.is_empty() && !all {
            return;
        }
        let few = !all && stale.len() <= FEW;
        let within = |address: IpAddr| stale.iter().any(|prefix: &IpNet| prefix.contains(&address));
        for number in 0..self.kernel.table.buckets() {
            self.breathe(number);
            let tags = self.kernel.table.bucket(number).tags;
            for way in (0..WAYS).filter(|way| tags[*way] != 0) {
                let slot = number * WAYS + way;
                let Some(head) = self.kernel.table.head(slot) else { continue };
                let source = addresses(&head.key)[usize::from(head.state & state::INITIATOR_HIGH != 0)];
                // A record without a word that no verdict concerns stays as it is.
                let concerned = if few {
                    within(source)
                } else {
                    Word(head.verdict).is_some() || self.enforcer.book.of_flow(&head.key, source).is_some()
                };
                if concerned && let Some(record) = self.kernel.table.copy(slot) {
                    self.stamp(slot, &record, now);
                }
            }
        }
    }

    /// A flow is over: a model's tag goes with it.
    pub(in crate::agent) fn flow_ended(&mut self, key: &FlowKey) {
        if self.enforcer.book.held()[0] == 0 {
            return;
        }
        if let Some(verdict) = self.enforcer.book.of(&Scope::Flow(*key))
            && !has_entry(verdict)
        {
            let id = verdict.id;
            self.withdraw(id, "the flow has ended".to_owned());
        }
    }
}

fn service_of(service: KernelService) -> crate::verdicts::scope::Service {
    let KernelService { address, port, protocol } = service;
    crate::verdicts::scope::Service { address, port, protocol }
}

/// The verdict behind an entry of the kernel. Why it was entered is not there.
fn verdict_of(id: u64, scope: Scope, entry: &Entry, now: Moment) -> Verdict {
    let rate = entry.rate();
    let until = now.plus_ms(entry.until_ns.saturating_sub(now.ns) / 1_000_000);
    Verdict {
        id,
        scope,
        action: Action::from_number(entry.action).into(),
        rate: Rate { packets: rate.packets, bytes: rate.bytes },
        origin: Origin::from_number(entry.origin).unwrap_or(Origin::Model).into(),
        evidence: Evidence {
            who: "an agent before".to_owned(),
            note: "taken over from the kernel".to_owned(),
            label_number: entry.label,
            ..Evidence::default()
        },
        created_unix_ms: now.unix_ms,
        until_unix_ms: until.unix_ms,
        until_ns: until.ns,
    }
}

fn kernel_service(service: &crate::verdicts::scope::Service) -> KernelService {
    KernelService { address: service.address, port: service.port, protocol: service.protocol }
}
