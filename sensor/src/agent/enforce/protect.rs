//! The never-drop list and the kernel's copy of it.

use std::collections::HashSet;

use sensor_common::flow::FlowKey;
use sensor_common::packet::protocol;
use sensor_common::verdict::{Action, Entry as KernelEntry, Origin};

use super::super::poll::Poller;
use super::enter::has_entry;
use super::{Enforcer, moment};
use crate::allow::item::Item;
use crate::allow::{Change, Entry, Why};
use crate::audit::Event;
use crate::host::{Items, Surroundings};

impl Enforcer {
    /// The list follows what was found around this host; changes that the kernel has to follow.
    pub(super) fn surround(&mut self, around: Surroundings) -> Vec<Change> {
        let Surroundings { gateways, resolvers, own, link_local, syn_cookies } = around;
        if let Some(own) = own {
            self.allow.set_own(own);
        }
        self.link_local = link_local.unwrap_or_else(|| std::mem::take(&mut self.link_local));
        self.syn_cookies = syn_cookies.unwrap_or(self.syn_cookies);
        let [gateways, resolvers] =
            [(0, gateways), (1, resolvers)].map(|(number, found)| self.found[number].look(found));
        let mut changes = self.replace(Why::Gateway, &gateways);
        changes.extend(self.replace(Why::Resolver, &resolvers));
        changes
    }

    pub(super) fn replace(&mut self, why: Why, items: &Items) -> Vec<Change> {
        let changes = self.allow.replace(why, items);
        for Change { item, allowed } in &changes {
            let entry = Box::new(crate::allow::entry(item.clone(), why));
            self.audit.write(match allowed {
                true => Event::Allowed { entry },
                false => Event::NotAllowed { entry, by: why.name().to_owned() },
            });
        }
        changes
    }
}

impl Poller {
    /// Brings changes of the list to the kernel, and takes back the verdicts that it forbids from now on. What the kernel
    /// refused first.
    pub(in crate::agent) fn protect(&mut self, changes: &[Change]) -> Option<String> {
        if changes.is_empty() {
            return None;
        }
        let mut refused = None;
        if changes.iter().any(|change| change.allowed) {
            // First: the entry of a flow's verdict and that of its protection have the same place in the kernel.
            self.withdraw_forbidden();
        }
        let mut ports = false;
        for (number, change) in changes.iter().enumerate() {
            self.breathe(number);
            let result = match (&change.item, change.allowed) {
                (Item::Prefix(prefix), true) => match self.enforcer.allow.by_command(&change.item) {
                    Some(entry) => self.kernel.verdicts.allow_by_command(*prefix, entry.until_unix_ms),
                    None => self.kernel.verdicts.allow(*prefix),
                },
                (Item::Prefix(prefix), false) => self.kernel.verdicts.disallow(*prefix).map(drop),
                (Item::Port(_), _) => {
                    ports = true;
                    Ok(())
                }
                (Item::Interface(_), _) => self.protect_interfaces(),
                (Item::Flow(key), allowed) => self.protect_flow(key, allowed),
            };
            if let Err(error) = result {
                self.metrics.verdict_error();
                tracing::error!("the kernel's never-drop list lacks a change of {}: {error:#}", change.item);
                refused.get_or_insert_with(|| format!("{error:#}"));
            }
        }
        if ports && let Err(error) = self.protect_ports() {
            self.metrics.verdict_error();
            tracing::error!("the kernel's never-drop list lacks a change of ports: {error:#}");
            refused.get_or_insert_with(|| format!("{error:#}"));
        }
        self.enforcer.all_stale = true;
        refused
    }

    fn withdraw_forbidden(&mut self) {
        let enforcer = &self.enforcer;
        let forbidden = enforcer.book.iter().filter(|verdict| {
            let place = has_entry(verdict) && enforcer.allow.lists(&verdict.scope);
            place || (Action::from(verdict.action) > Action::Tag && enforcer.allow.forbids(&verdict.scope).is_some())
        });
        let forbidden: Vec<u64> = forbidden.map(|verdict| verdict.id).collect();
        for (number, id) in forbidden.into_iter().enumerate() {
            self.breathe(number);
            self.withdraw(id, "the never-drop list forbids it".to_owned());
        }
    }

    /// Makes the kernel's list that of this agent: an earlier one may have left another.
    pub(super) fn protect_all(&mut self) {
        self.adopt_allowed();
        let items: Vec<Item> = self.enforcer.allow.items().cloned().collect();
        let listed = |item: &Item| items.contains(item);
        let prefixes = self.kernel.verdicts.allowed().unwrap_or_default();
        let flows = self.kernel.verdicts.allowed_flows().unwrap_or_default();
        let left = prefixes.into_iter().map(Item::Prefix).chain(flows.into_iter().map(Item::Flow));
        let left: Vec<_> = left.filter(|item| !listed(item)).map(|item| Change { item, allowed: false }).collect();
        self.protect(&left);
        let changes: Vec<_> = items.iter().map(|item| Change { item: item.clone(), allowed: true }).collect();
        self.protect(&changes);
        for result in [self.protect_ports(), self.protect_interfaces()] {
            if let Err(error) = result {
                self.metrics.verdict_error();
                tracing::error!("the kernel's never-drop list is not complete: {error:#}");
            }
        }
    }

    /// What commands added under an earlier agent is in the kernel even where the store is not (another directory, a damaged
    /// file, a write that a SIGKILL cut off): it goes on. What came from a configuration follows this one's.
    fn adopt_allowed(&mut self) {
        let left = match self.kernel.verdicts.allowed_by_command() {
            Ok(left) => left,
            Err(error) => {
                tracing::error!("what the agent before protected by command cannot be read: {error:#}");
                return;
            }
        };
        for (prefix, until_unix_ms) in left {
            let item = Item::Prefix(prefix);
            if self.enforcer.allow.by_command(&item).is_some() {
                continue;
            }
            let note = "taken over from the kernel".to_owned();
            let entry = Entry { note, until_unix_ms, ..crate::allow::entry(item.clone(), Why::Operator) };
            if self.enforcer.allow.restore(entry, moment()) {
                tracing::warn!("{item} is on the never-drop list in the kernel, but not in the store: it goes on");
                if let Some(entry) = self.enforcer.allow.by_command(&item) {
                    self.enforcer.store.allow(entry);
                }
            }
        }
    }

    /// Takes over what was found around this host.
    pub(in crate::agent) fn take_surroundings(&mut self, around: Surroundings) {
        let before = self.enforcer.link_local.clone();
        let changes = self.enforcer.surround(around);
        self.protect(&changes);
        if self.enforcer.link_local != before {
            self.protect_interfaces_again();
        }
    }

    /// Takes over the sessions of operators at this moment.
    pub(in crate::agent) fn take_sessions(&mut self, sessions: Option<Items>) {
        if let Some(sessions) = sessions {
            let changes = self.enforcer.replace(Why::Session, &sessions);
            self.protect(&changes);
        }
    }

    fn protect_ports(&mut self) -> anyhow::Result<()> {
        let of = |wanted: u8| -> Vec<u16> {
            let ports = self.enforcer.allow.items().filter_map(|item| match item {
                Item::Port(port) if port.protocol == wanted => Some(port.port),
                _ => None,
            });
            ports.collect()
        };
        let (tcp, udp) = (of(protocol::TCP), of(protocol::UDP));
        self.kernel.verdicts.set_ports(&tcp, &udp)
    }

    /// An interface has another number now.
    pub(in crate::agent) fn protect_interfaces_again(&mut self) {
        if let Err(error) = self.protect_interfaces() {
            self.metrics.verdict_error();
            tracing::warn!("interfaces on which nothing is dropped: {error:#}");
        }
    }

    /// Whether nothing is dropped on this interface: by its name, or by the one under which it was to be watched.
    pub(in crate::agent) fn is_exempt(&self, interface: &str, ifindex: u32) -> bool {
        let former = self.interfaces.former_name(ifindex);
        let is_it = |name: &String| name == interface || Some(name.as_str()) == former;
        self.enforcer.allow.items().any(|item| matches!(item, Item::Interface(name) if is_it(name)))
    }

    /// Interfaces that are not watched need no protection. Those that are have the numbers under which they were attached: by
    /// their names there may be others at this moment.
    fn protect_interfaces(&mut self) -> anyhow::Result<()> {
        let exempt = self.attached.iter().filter(|attached| self.is_exempt(&attached.interface, attached.ifindex));
        let indexes: Vec<u32> = exempt.map(|attached| attached.ifindex).collect();
        self.enforcer.allow.set_indexes(indexes.iter().copied().collect());
        self.kernel.exempt(&indexes)?;
        self.follow_link_local()
    }

    /// A watched interface speaks for itself. One that is not (a bridge, a VLAN, a bond) may stand on any of those: it
    /// speaks for all.
    fn follow_link_local(&mut self) -> anyhow::Result<()> {
        let names = &self.enforcer.link_local;
        let watched = |name: &String| self.attached.iter().any(|attached| attached.interface == *name);
        let all = names.iter().any(|name| name != "lo" && !watched(name));
        let mut indexes = HashSet::new();
        for attached in &self.attached {
            let link_local = all || names.contains(&attached.interface);
            self.kernel.set_link_local(attached.ifindex, link_local)?;
            if link_local {
                indexes.insert(attached.ifindex);
            }
        }
        self.enforcer.allow.set_link_local(indexes);
        Ok(())
    }

    /// A flow outside VLANs, and in each VLAN that this host has: its socket does not say where it runs.
    fn protect_flow(&mut self, key: &FlowKey, allowed: bool) -> anyhow::Result<()> {
        let mut keys = vec![*key];
        if key.vlans == [0; 2] {
            keys.extend(vlans().into_iter().map(|vlan| FlowKey { vlans: [vlan, 0], ..*key }));
        }
        for key in keys {
            if allowed {
                let pass = KernelEntry::new(Action::Pass, Origin::Operator, 0, u64::MAX);
                self.kernel.verdicts.set_flow(&key, &pass)?;
            } else {
                self.kernel.verdicts.remove_flow(&key)?;
            }
        }
        Ok(())
    }

    /// Takes out the entries that have ended.
    pub(super) fn expire_allowed(&mut self) {
        let (ended, changes) = self.enforcer.allow.expire(moment().ns);
        for entry in ended {
            self.enforcer.store.no_allow(&entry.item);
            tracing::info!("{} is not protected any more: its time is over", entry.item);
            self.enforcer.audit.write(Event::NotAllowed { entry: Box::new(entry), by: "its time is over".to_owned() });
        }
        self.protect(&changes);
    }
}

/// VLAN ids of this host, at most 16.
fn vlans() -> Vec<u16> {
    let table = std::fs::read_to_string("/proc/thread-self/net/vlan/config").unwrap_or_default();
    let id = |line: &str| line.split('|').nth(1)?.trim().parse().ok();
    table.lines().filter_map(id).take(16).collect()
}
