//! The poll thread: lease, scan, score ([`super::score`]); between two polls it answers the control socket. The parts: [`thread`] (when
//! it does what), [`inbox`] (what it waits for), [`scan`] (the table), [`end`].
//!
//! Owns the kernel programs, the model and the memory of every slot, so nothing here is locked. A failure inside one
//! poll (a model that cannot be run, a record that writers keep) is counted and the next poll goes on.

mod end;
mod inbox;
mod scan;
mod thread;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sensor_common::context::HostContext;
use sensor_common::flow::FlowRecord;

pub(super) use self::end::Ending;
use self::end::Heir;
use super::apply::{self, Settled};
use super::clock::now_ns;
use super::context::Follower;
use super::dump::Dump;
use super::enforce::{Around, Enforcer};
use super::interfaces::Interfaces;
use super::life::{self, DriftState, Shadow};
use super::reload::Loader;
use super::report;
use super::start::lease_until;
use crate::bpf::attach::Attached;
use crate::bpf::load::Kernel;
use crate::config::Config;
use crate::harvest::{Memories, Timeouts};
use crate::http::Health;
use crate::metrics::{LoadSource, Metrics, ModelRole};
use crate::model::{Model, Score};
use crate::policy::Policy;
use crate::service::Watchdog;

/// A flow whose record was copied in this poll.
#[derive(Clone, Copy)]
pub(super) struct Candidate {
    /// `None`: the flow has ended, and no verdict can be stored any more.
    pub(super) slot: Option<usize>,
}

/// The models that a poll thread starts with, and where it gets others from.
pub(super) struct Models {
    pub(super) active: Option<Model>,
    pub(super) shadow: Option<Model>,
    pub(super) loader: Loader,
}

/// The interfaces that a poll thread starts with, and how it follows them.
pub(super) struct Watched {
    pub(super) attached: Vec<Attached>,
    pub(super) interfaces: Interfaces,
}

/// Everything the poll thread owns.
pub(super) struct Poller {
    pub(super) config: Config,
    pub(super) kernel: Kernel,
    pub(super) attached: Vec<Attached>,
    pub(super) model: Option<Model>,
    pub(super) policy: Policy,
    pub(super) enforcer: Enforcer,
    pub(super) shadow: Option<Shadow>,
    pub(super) drift: DriftState,
    pub(super) loader: Loader,
    pub(super) metrics: Arc<Metrics>,
    pub(super) memories: Memories,
    pub(super) started: Instant,
    /// The same on the clock of the programs.
    started_ns: u64,
    pub(super) lease_until_ns: u64,
    pub(super) last_poll: Duration,
    pub(super) health: Arc<Health>,
    pub(super) watchdog: Watchdog,
    pub(super) timeouts: Timeouts,
    pub(super) occupied: u64,
    /// Bucket at which the next scan starts: a scan that found too much to score goes on where it stopped.
    cursor: usize,
    pub(super) candidates: Vec<Candidate>,
    pub(super) records: Vec<FlowRecord>,
    pub(super) scores: Vec<Score>,
    pub(super) logged: u32,
    pub(super) unlogged: u32,
    pub(super) seen_check: report::SeenCheck,
    pub(super) interfaces: Interfaces,
    /// `None`: host context is off.
    pub(super) follower: Option<Follower>,
    pub(super) settled: Settled,
    /// Lists of flows that are being made.
    pub(super) dumps: VecDeque<Dump>,
    /// Another agent asked to take over.
    heir: Option<Heir>,
}

impl Poller {
    /// Everything is loaded and attached; nothing has been polled.
    #[expect(clippy::too_many_arguments, reason = "each is made by another step of the start")]
    pub(super) fn new(
        config: Config,
        kernel: Kernel,
        Watched { attached, interfaces }: Watched,
        Models { active: model, shadow, loader }: Models,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
        around: Around,
        settled: Settled,
    ) -> Poller {
        let policy = life::policy(&config, model.as_ref());
        let enforcer = Enforcer::start(&config, around);
        let info = |model: &Model| (model.hash.clone(), model.name.clone());
        for (role, info) in
            [(ModelRole::Active, model.as_ref().map(info)), (ModelRole::Shadow, shadow.as_ref().map(info))]
        {
            metrics.model(role, info.as_ref().map(|(hash, name)| (hash.as_str(), name.as_str())));
            if info.is_some() {
                metrics.model_load(role, LoadSource::Start, true);
            }
        }
        metrics.config_taken(settled.hash());
        let timeouts = apply::timeouts(&config, policy.min_packets());
        let memories = Memories::new(kernel.table.buckets());
        let memory = kernel.memory();
        metrics.map_memory(memory.taken, memory.mapped);
        Poller {
            drift: DriftState::new(&config, model.as_ref()),
            watchdog: Watchdog::new(&config),
            shadow: shadow.map(|model| Shadow::new(model, &config)),
            loader,
            seen_check: report::SeenCheck::new(attached.iter().map(|one| one.interface.as_str())),
            interfaces,
            follower: Follower::new(&config.context, &kernel),
            config,
            kernel,
            attached,
            model,
            policy,
            enforcer,
            metrics,
            memories,
            started: Instant::now(),
            started_ns: now_ns(),
            lease_until_ns: 0,
            last_poll: Duration::ZERO,
            health,
            timeouts,
            occupied: 0,
            cursor: 0,
            candidates: Vec::new(),
            records: Vec::new(),
            scores: Vec::new(),
            logged: 0,
            unlogged: 0,
            settled,
            dumps: VecDeque::new(),
            heir: None,
        }
    }

    /// One poll.
    pub(super) fn poll(&mut self, begun: Instant) {
        let now = now_ns();
        self.renew_lease(now);
        self.metrics.lease(true);
        self.candidates.clear();
        self.records.clear();
        if let Some(follower) = &mut self.follower {
            follower.begin();
        }
        self.keep_verdicts(now);
        self.take_evicted(now);
        self.scan(now);
        self.score(now, begun + self.config.agent.poll_interval);
        self.metrics.table(self.kernel.table.capacity() as u64, self.occupied);
    }

    pub(super) fn renew_lease(&mut self, now: u64) {
        self.lease_until_ns = lease_until(&self.config, now);
        self.kernel.control.set_lease(self.lease_until_ns);
        self.watchdog.feed();
    }

    /// The context of a flow, [`HostContext::NONE`] if context is off.
    pub(super) fn host_context(&self, record: &FlowRecord, now: u64) -> HostContext {
        match (&self.follower, &self.kernel.context) {
            (Some(follower), Some(tables)) => follower.context(tables, record, now),
            _ => HostContext::NONE,
        }
    }
}
