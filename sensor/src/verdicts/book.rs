//! The book of verdicts that hold: how they come in, are renewed, and go. What is asked of it is in [`questions`].
//!
//! Invariants: one verdict per scope; an operator's is never replaced by a model's; a verdict has an end; ids are given
//! once and only grow; models and rules leave places to operators. The book is the truth that the kernel's maps and the
//! records follow: the poll thread ([`crate::agent`]) writes each [`Change`] through. Kept over restarts by
//! [`crate::store`].

mod questions;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Result, bail, ensure};
use ipnet::IpNet;
use sensor_common::verdict::{Action, Origin};

use super::scope::Scope;
use super::{Evidence, Moment, Order, Rate, Verdict};
use crate::config::OriginName;

/// What came of an order.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A new verdict; the one of the same scope that it replaced.
    Added(u64, Option<Box<Verdict>>),
    /// The same verdict holds for longer.
    Renewed(u64),
}

/// Entries of each kind that the book (and the kernel's maps) can hold.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Of each kind: flows, sources with prefixes, services.
    pub each: usize,
    /// Places of these that models and rules leave to operators and the fleet.
    pub kept: usize,
}

impl Room {
    /// Room for `each`, of which this share is kept.
    pub fn new(each: u32, kept: f64) -> Room {
        Room { each: each as usize, kept: (f64::from(each) * kept) as usize }
    }

    fn of(self, origin: Origin) -> usize {
        if is_automatic(origin) { self.each.saturating_sub(self.kept) } else { self.each }
    }
}

/// The verdicts that hold.
#[derive(Debug)]
pub struct Book {
    room: Room,
    next_id: u64,
    verdicts: BTreeMap<u64, Verdict>,
    scopes: HashMap<Scope, u64>,
    ends: BTreeSet<(u64, u64)>,
    /// By kind: flow, source, service.
    held: [usize; 3],
    /// Of these, by models and rules.
    automatic: [usize; 3],
    /// Verdicts of models on flows whose record has ended.
    ended: BTreeSet<u64>,
    /// Verdicts of models on sources.
    model_sources: usize,
    /// Lengths of the source prefixes that are in use, and how many of each: IPv4, IPv6.
    lengths: [BTreeMap<u8, usize>; 2],
}

impl Book {
    /// An empty book whose first verdict gets number `next_id`.
    pub fn new(room: Room, next_id: u64) -> Book {
        Book {
            room,
            next_id: next_id.max(1),
            verdicts: BTreeMap::new(),
            scopes: HashMap::new(),
            ends: BTreeSet::new(),
            held: [0; 3],
            automatic: [0; 3],
            ended: BTreeSet::new(),
            model_sources: 0,
            lengths: Default::default(),
        }
    }

    /// The number of the next verdict.
    pub fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Enters a verdict. One of the same scope is replaced, or renewed if it says the same.
    ///
    /// # Errors
    /// The scope cannot have this action, an operator's verdict stands there, or the book is full.
    pub fn add(&mut self, order: Order, now: Moment) -> Result<Change> {
        let Order { scope, action, rate, origin, for_ms, evidence } = order;
        check(&scope, action, rate)?;
        let until = now.plus_ms(for_ms);
        let before = self.scopes.get(&scope).and_then(|id| self.verdicts.get(id));
        if let Some(old) = before {
            let old_origin = Origin::from(old.origin);
            if rank(old_origin) > rank(origin) && old.until_ns > now.ns {
                bail!(
                    "verdict {} of origin {} holds for {scope}; it goes before one of origin {}",
                    old.id,
                    old.origin,
                    { OriginName::from(origin) }
                );
            }
            if old.action == action.into() && old.rate == rate && old_origin == origin {
                let id = old.id;
                if matches!(origin, Origin::Model | Origin::Rule) {
                    self.renew(id, until);
                } else {
                    self.amend(id, until, evidence);
                }
                return Ok(Change::Renewed(id));
            }
        } else if !self.has_room(&scope, origin) {
            bail!(
                "there is no room for another {} verdict of origin {}: {} are held (policy.max_verdicts, \
                 policy.operator_share)",
                scope.kind(),
                OriginName::from(origin),
                self.held[kind(&scope)]
            );
        }
        let replaced = self.scopes.get(&scope).copied().and_then(|id| self.remove(id)).map(Box::new);
        let id = self.next_id;
        self.insert(Verdict {
            id,
            scope,
            action: action.into(),
            rate,
            origin: origin.into(),
            evidence,
            created_unix_ms: now.unix_ms,
            until_unix_ms: until.unix_ms,
            until_ns: until.ns,
        });
        Ok(Change::Added(id, replaced))
    }

    fn has_room(&self, scope: &Scope, origin: Origin) -> bool {
        let kind = kind(scope);
        let own = if is_automatic(origin) { self.automatic[kind] } else { self.held[kind] };
        self.held[kind] < self.room.each && own < self.room.of(origin)
    }

    /// Takes another share for operators: nothing goes for it before its place is needed.
    pub fn set_room(&mut self, room: Room) {
        self.room = room;
    }

    /// The verdict that makes room for this order, and whether it goes because its flow has ended: ended ones first.
    /// For an order of an operator or the fleet, of those that models and rules decided, also the one that ends
    /// soonest. `None`: there is room, or none can be made.
    pub fn gives_way(&self, order: &Order) -> Option<(u64, bool)> {
        let Order { scope, action, rate, origin, .. } = order;
        if self.scopes.contains_key(scope) || self.has_room(scope, *origin) || check(scope, *action, *rate).is_err() {
            return None;
        }
        if let (Scope::Flow(_), Some(id)) = (scope, self.ended.first()) {
            return Some((*id, true));
        }
        let gives = |id: &u64| {
            let held = self.verdicts.get(id);
            held.is_some_and(|held| kind(&held.scope) == kind(scope) && is_automatic(held.origin.into()))
        };
        let soonest = || self.ends.iter().map(|(_, id)| *id).find(gives).map(|id| (id, false));
        if is_automatic(*origin) { None } else { soonest() }
    }

    /// The record of a flow has ended: what a model decided of it is the first to make room.
    pub fn flow_ended(&mut self, id: u64) {
        let by_model = |verdict: &Verdict| verdict.origin == OriginName::Model && kind(&verdict.scope) == 0;
        if self.verdicts.get(&id).is_some_and(by_model) {
            self.ended.insert(id);
        }
    }

    /// The flow of a verdict has a record again.
    pub fn flow_goes_on(&mut self, id: u64) {
        self.ended.remove(&id);
    }

    /// Takes a verdict over from an earlier agent, with the time that it has left; `None` if it has ended, makes no
    /// sense here, or [is from later](Verdict::is_from_later).
    pub fn restore(&mut self, mut verdict: Verdict, now: Moment) -> Option<u64> {
        // A clock that was set back must not make it longer than it was.
        let whole = verdict.until_unix_ms.saturating_sub(verdict.created_unix_ms);
        let left = verdict.until_unix_ms.saturating_sub(now.unix_ms).min(whole);
        let free = !self.scopes.contains_key(&verdict.scope) && !self.verdicts.contains_key(&verdict.id);
        let room = self.has_room(&verdict.scope, verdict.origin.into());
        if left == 0
            || verdict.is_from_later(now)
            || !free
            || !room
            || check(&verdict.scope, verdict.action.into(), verdict.rate).is_err()
        {
            return None;
        }
        verdict.until_ns = now.plus_ms(left).ns;
        let id = verdict.id;
        self.insert(verdict);
        Some(id)
    }

    fn insert(&mut self, verdict: Verdict) {
        let id = verdict.id;
        self.next_id = self.next_id.max(id.saturating_add(1));
        self.scopes.insert(verdict.scope, id);
        self.ends.insert((verdict.until_ns, id));
        self.held[kind(&verdict.scope)] += 1;
        self.automatic[kind(&verdict.scope)] += usize::from(is_automatic(verdict.origin.into()));
        if let Scope::Source(prefix) = verdict.scope {
            self.model_sources += usize::from(verdict.origin == OriginName::Model);
            *self.lengths[family(&prefix)].entry(prefix.prefix_len()).or_default() += 1;
        }
        self.verdicts.insert(id, verdict);
    }

    /// Moves the end of a verdict; an earlier one is left where it is.
    pub fn renew(&mut self, id: u64, until: Moment) {
        if let Some(verdict) = self.verdicts.get_mut(&id)
            && until.ns > verdict.until_ns
        {
            self.ends.remove(&(verdict.until_ns, id));
            (verdict.until_ns, verdict.until_unix_ms) = (until.ns, until.unix_ms);
            self.ends.insert((until.ns, id));
        }
    }

    /// Gives a verdict another end, earlier or later, and another reason: whoever said it last is who answers for it.
    fn amend(&mut self, id: u64, until: Moment, evidence: Evidence) {
        if let Some(verdict) = self.verdicts.get_mut(&id) {
            self.ends.remove(&(verdict.until_ns, id));
            (verdict.until_ns, verdict.until_unix_ms) = (until.ns, until.unix_ms);
            verdict.evidence = evidence;
            self.ends.insert((until.ns, id));
        }
    }

    /// Undoes an order that could not be carried out: `before` is what stood there, as [`Change`] and [`Book::of`] had it.
    pub fn take_back(&mut self, change: &Change, before: Option<Verdict>) {
        match change {
            Change::Added(id, _) | Change::Renewed(id) => drop(self.remove(*id)),
        }
        if let Some(verdict) = before {
            self.insert(verdict);
        }
    }

    /// Verdicts of models that mode enforce drops or limits for, with a score below `score`: those that a ramp does not
    /// allow, if `score` is the ramp's. All of them, if it is above 1.
    pub fn models_below(&self, score: f64) -> Vec<u64> {
        let below = |verdict: &&Verdict| {
            verdict.origin == OriginName::Model
                && Action::from(verdict.action) > Action::Tag
                && verdict.evidence.score.is_none_or(|own| own < score)
        };
        self.iter().filter(below).map(|verdict| verdict.id).collect()
    }

    /// Takes a verdict out.
    pub fn remove(&mut self, id: u64) -> Option<Verdict> {
        let verdict = self.verdicts.remove(&id)?;
        self.scopes.remove(&verdict.scope);
        self.ends.remove(&(verdict.until_ns, id));
        self.held[kind(&verdict.scope)] -= 1;
        self.automatic[kind(&verdict.scope)] -= usize::from(is_automatic(verdict.origin.into()));
        self.ended.remove(&id);
        if let Scope::Source(prefix) = verdict.scope {
            self.model_sources -= usize::from(verdict.origin == OriginName::Model);
            let lengths = &mut self.lengths[family(&prefix)];
            if let Some(count) = lengths.get_mut(&prefix.prefix_len()) {
                *count -= 1;
                if *count == 0 {
                    lengths.remove(&prefix.prefix_len());
                }
            }
        }
        Some(verdict)
    }

    /// Takes out what has ended, at most `most` verdicts.
    pub fn expire(&mut self, now_ns: u64, most: usize) -> Vec<Verdict> {
        let ended: Vec<u64> =
            self.ends.iter().take_while(|(until, _)| *until <= now_ns).take(most).map(|(_, id)| *id).collect();
        ended.into_iter().filter_map(|id| self.remove(id)).collect()
    }
}

/// Whether nobody answers for it: models and rules.
fn is_automatic(origin: Origin) -> bool {
    rank(origin) <= rank(Origin::Rule)
}

fn rank(origin: Origin) -> u8 {
    match origin {
        Origin::Model => 0,
        Origin::Rule => 1,
        Origin::Fleet => 2,
        Origin::Operator => 3,
    }
}

fn kind(scope: &Scope) -> usize {
    match scope {
        Scope::Flow(_) => 0,
        Scope::Source(_) => 1,
        Scope::Service(_) => 2,
    }
}

fn family(prefix: &IpNet) -> usize {
    usize::from(matches!(prefix, IpNet::V6(_)))
}

fn check(scope: &Scope, action: Action, rate: Rate) -> Result<()> {
    ensure!(action != Action::Pass, "a verdict tags, limits or drops; to let traffic pass, use `sensor allow add`");
    let limited = rate != Rate::default();
    ensure!(
        limited == (action == Action::Limit),
        "a rate (packets/s, bytes/s) goes with action limit, and only with it"
    );
    match scope {
        Scope::Source(prefix) => {
            ensure!(prefix.prefix_len() > 0, "{prefix} is everybody: name a narrower prefix");
        }
        Scope::Service(service) => {
            ensure!(
                action == Action::Limit && rate.packets > 0 && rate.bytes == 0,
                "a service ({service}) can only be limited, in packets/s: it is the rate of half-open connections"
            );
        }
        Scope::Flow(_) => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests;
