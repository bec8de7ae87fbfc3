//! What the book says: of a scope, of an address, of a flow, and in numbers. Nothing here changes it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use sensor_common::flow::FlowKey;
use sensor_common::verdict::{Action, Origin};

use super::{Book, family, rank};
use crate::config::OriginName;
use crate::verdicts::Verdict;
use crate::verdicts::scope::Scope;

impl Book {
    /// A verdict by its number.
    pub fn get(&self, id: u64) -> Option<&Verdict> {
        self.verdicts.get(&id)
    }

    /// The verdict of exactly this scope.
    pub fn of(&self, scope: &Scope) -> Option<&Verdict> {
        self.verdicts.get(self.scopes.get(scope)?)
    }

    /// The source verdict with the longest prefix that covers this address.
    pub fn of_source(&self, address: IpAddr) -> Option<&Verdict> {
        let lengths = &self.lengths[usize::from(address.is_ipv6())];
        lengths.keys().rev().find_map(|length| {
            let prefix = IpNet::new(address, *length).ok()?;
            self.of(&Scope::Source(prefix.trunc()))
        })
    }

    /// What holds for a flow: the stronger of its own verdict and that of its initiator's address, as in the programs. Of
    /// two with the same action, that of the origin which is bounded less.
    pub fn of_flow(&self, key: &FlowKey, initiator: IpAddr) -> Option<&Verdict> {
        let strength = |verdict: &Verdict| (Action::from(verdict.action), rank(verdict.origin.into()));
        match (self.of(&Scope::Flow(*key)), self.of_source(initiator)) {
            (Some(own), Some(source)) => Some(if strength(source) > strength(own) { source } else { own }),
            (own, source) => own.or(source),
        }
    }

    /// Whether a model's decision of `action` for a flow would change nothing: somebody else decided of this very flow, or
    /// what holds for its initiator's address is at least as strong.
    pub fn covers(&self, key: &FlowKey, initiator: IpAddr, action: Action) -> bool {
        self.of(&Scope::Flow(*key)).is_some_and(|own| own.origin != OriginName::Model)
            || self.of_source(initiator).is_some_and(|source| Action::from(source.action) >= action)
    }

    /// The verdict of a person or another sensor that drops or limits all of `prefix`. Models add none inside it: theirs
    /// would be the longer prefix, and with the breaker open it would let pass what that one stops.
    pub fn commanded(&self, prefix: &IpNet) -> Option<&Verdict> {
        let lengths = &self.lengths[family(prefix)];
        lengths.keys().take_while(|length| **length <= prefix.prefix_len()).find_map(|length| {
            let wider = IpNet::new(prefix.addr(), *length).ok()?;
            let verdict = self.of(&Scope::Source(wider.trunc()))?;
            (rank(verdict.origin.into()) > rank(Origin::Rule) && Action::from(verdict.action) > Action::Tag)
                .then_some(verdict)
        })
    }

    /// Verdicts of models on sources inside `prefix`: what [`Book::commanded`] forbids once there is a verdict on it.
    pub fn models_inside(&self, prefix: &IpNet) -> Vec<u64> {
        let inside = |verdict: &&Verdict| {
            verdict.origin == OriginName::Model && matches!(&verdict.scope, Scope::Source(own) if prefix.contains(own))
        };
        if self.model_sources == 0 {
            Vec::new()
        } else {
            self.iter().filter(inside).map(|verdict| verdict.id).collect()
        }
    }

    /// All, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Verdict> {
        self.verdicts.values()
    }

    /// All, the newest first.
    pub fn newest(&self) -> impl Iterator<Item = &Verdict> {
        self.verdicts.values().rev()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.verdicts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.verdicts.is_empty()
    }

    /// Flow, source (with prefixes) and service verdicts.
    pub fn held(&self) -> [usize; 3] {
        self.held
    }

    /// How many there are by kind of scope, action and origin.
    pub fn counts(&self) -> BTreeMap<(&'static str, Action, OriginName), u64> {
        let mut counts = BTreeMap::new();
        for verdict in self.verdicts.values() {
            let place = (verdict.scope.kind(), Action::from(verdict.action), verdict.origin);
            *counts.entry(place).or_default() += 1;
        }
        counts
    }
}
