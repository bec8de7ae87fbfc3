//! After a takeover: what the kernel has and what the book has become the same.

use sensor_common::verdict::{Action, Entry, Origin};

use super::super::poll::Poller;
use super::moment;
use crate::bpf::verdicts::Service as KernelService;
use crate::verdicts::scope::{Scope, Service};
use crate::verdicts::{Evidence, Moment, Rate, Verdict};

impl Poller {
    /// What the book has goes to the kernel; what only the kernel has goes on, or is taken out.
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
}

fn service_of(service: KernelService) -> Service {
    let KernelService { address, port, protocol } = service;
    Service { address, port, protocol }
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
