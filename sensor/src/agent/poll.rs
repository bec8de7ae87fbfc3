//! The poll thread: lease, scan, score ([`super::score`]); between two polls it answers the control socket.
//!
//! Owns the kernel programs, the model and the memory of every slot, so nothing here is locked. A failure inside one
//! poll (a model that cannot be run, a record that writers keep) is counted and the next poll goes on.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use sensor_common::context::HostContext;
use sensor_common::flow::FlowRecord;
use sensor_common::table::{Bucket, WAYS, tick_of};
use tokio::sync::{mpsc, oneshot};

use super::clock::now_ns;
use super::context::Follower;
use super::enforce::{Around, Enforcer};
use super::interfaces::Interfaces;
use super::life::{self, DriftState, Shadow};
use super::reload::Loader;
use super::report;
use super::start::lease_until;
use crate::bpf::attach::Attached;
use crate::bpf::load::Kernel;
use crate::bpf::pins::Left;
use crate::config::Config;
use crate::harvest::{Memory, Step, Timeouts};
use crate::http::Health;
use crate::metrics::{EndReason, LoadSource, Metrics, ModelRole};
use crate::model::{Model, Score};
use crate::policy::Policy;
use crate::summary::{self, Summary};
use crate::view::{HandOverView, Request};

/// How often the programs' messages are read.
const LOG_INTERVAL: Duration = Duration::from_millis(100);

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

/// How and whether the poll thread is to end.
#[derive(Debug, Default)]
pub(super) struct Ending(AtomicU8);

impl Ending {
    const STOP: u8 = 1;
    const LEAVE: u8 = 2;

    /// Take everything off; unless [`Ending::leave`] was called before.
    pub(super) fn stop(&self) {
        let _ = self.0.compare_exchange(0, Ending::STOP, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Leave programs and maps to the next agent.
    pub(super) fn leave(&self) {
        self.0.store(Ending::LEAVE, Ordering::Relaxed);
    }

    fn is_asked_for(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    fn leaves(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Ending::LEAVE
    }
}

/// The agent that takes over.
pub(super) struct Heir {
    pid: u32,
    reply: oneshot::Sender<Result<HandOverView, String>>,
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
    pub(super) memories: Vec<Memory>,
    /// By bucket, whether one of its memories may hold a flow: an empty bucket's memories are not read at every poll.
    remembered: Vec<bool>,
    pub(super) started: Instant,
    pub(super) lease_until_ns: u64,
    pub(super) last_poll: Duration,
    health: Arc<Health>,
    pub(super) timeouts: Timeouts,
    pub(super) occupied: u64,
    /// Bucket at which the next scan starts: a scan that found too much to score goes on where it stopped.
    cursor: usize,
    pub(super) candidates: Vec<Candidate>,
    pub(super) records: Vec<FlowRecord>,
    pub(super) scores: Vec<Score>,
    pub(super) logged: u32,
    pub(super) unlogged: u32,
    pub(super) seen_check: Option<report::SeenCheck>,
    pub(super) interfaces: Interfaces,
    /// `None`: host context is off.
    pub(super) follower: Option<Follower>,
    /// Another agent asked to take over.
    heir: Option<Heir>,
}

impl Poller {
    /// Everything is loaded and attached; nothing has been polled.
    pub(super) fn new(
        config: Config,
        kernel: Kernel,
        attached: Vec<Attached>,
        Models { active: model, shadow, loader }: Models,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
        around: Around,
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
        let agent = &config.agent;
        let timeouts = Timeouts::new(
            agent.idle_timeout,
            agent.closed_linger,
            agent.active_timeout,
            agent.rescore_interval,
            policy.min_packets(),
        );
        let memories = vec![Memory::default(); kernel.table.capacity()];
        let remembered = vec![false; kernel.table.buckets()];
        let memory = kernel.memory();
        metrics.map_memory(memory.taken, memory.mapped);
        Poller {
            drift: DriftState::new(&config, model.as_ref()),
            shadow: shadow.map(|model| Shadow::new(model, &config)),
            loader,
            seen_check: Some(report::SeenCheck::new(&attached)),
            interfaces: Interfaces::new(&kernel),
            follower: Follower::new(&config.context, &kernel),
            config,
            kernel,
            attached,
            model,
            policy,
            enforcer,
            metrics,
            memories,
            remembered,
            started: Instant::now(),
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
            heir: None,
        }
    }

    /// Polls until it is to end, then ends all flows and takes the programs off, or leaves all to another agent. `begun`
    /// hears of the end of the first poll.
    ///
    /// # Errors
    /// If the programs could not be taken off an interface.
    pub(super) fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        ending: &Ending,
        begun: oneshot::Sender<()>,
    ) -> anyhow::Result<Option<Left>> {
        let interval = self.config.agent.poll_interval;
        let mut begun = Some(begun);
        self.begin_enforcement();
        let mut next = Instant::now();
        let mut second = Instant::now();
        let printer = report::print_lines().context("cannot start the thread that prints the summary")?;
        if let Some(mut flush) = self.kernel.take_logs() {
            // A thread of its own, which ends with the process: in a flood, formatting is slower than the programs write.
            let read = move || loop {
                flush();
                std::thread::sleep(LOG_INTERVAL);
            };
            std::thread::Builder::new()
                .name("sensor-bpf-log".to_owned())
                .spawn(read)
                .context("cannot start the thread that reads the programs' messages")?;
        }
        if self.kernel.adopted() {
            self.adopt_counters();
        }
        let mut summary = self
            .config
            .log
            .summary
            .then(|| Summary::new(self.enforcer.mode, std::io::stdout().is_terminal(), self.metrics.totals()));
        while !ending.is_asked_for() && self.heir.is_none() {
            // Between two polls, so that every flow of a poll is scored by one model.
            self.take_loaded();
            let started = Instant::now();
            self.poll(started);
            self.last_poll = started.elapsed();
            if let Some(begun) = begun.take() {
                // Nobody waits for it if the agent is told to end already.
                let _ = begun.send(());
            }
            self.metrics.poll(self.last_poll, self.last_poll > interval);
            self.health.tick(Instant::now());
            let elapsed = second.elapsed();
            if elapsed >= Duration::from_secs(1) {
                second = Instant::now();
                self.every_second();
                if let Some(summary) = &mut summary {
                    summary.set_mode(self.enforcer.mode);
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
                    let line = summary.line(&summary::clock(now), elapsed, self.metrics.totals());
                    // A reader that stopped reading must not stop the agent: the line is lost instead.
                    let _ = printer.try_send(line);
                }
            }
            next = (next + interval).max(Instant::now());
            loop {
                // One request at most between two looks at the clock, and one even when polls are late.
                let answered = requests.try_recv().map(|request| self.answer(request)).is_ok();
                if self.heir.is_some() {
                    break;
                }
                let Some(wait) = next.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero()) else {
                    break;
                };
                if !answered {
                    // Short naps, so that a request does not wait for the next poll.
                    std::thread::sleep(wait.min(Duration::from_millis(10)));
                }
            }
        }
        if self.heir.is_some() || (ending.leaves() && self.kernel.pins().is_some()) {
            return self.leave().map(Some);
        }
        self.shut_down().map(|()| None)
    }

    /// What the programs counted under an agent before this one is not of the first second.
    fn adopt_counters(&mut self) {
        for attached in &self.attached {
            self.publish_counters(&attached.interface, attached.ifindex);
        }
        if let Some(follower) = &mut self.follower {
            follower.begin_with(self.metrics.interface_counters().iter());
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
        self.take_evicted();
        self.scan(now);
        self.enforcer.scored = self.enforcer.counting;
        self.score(now, begun + self.config.agent.poll_interval);
        self.metrics.table(self.kernel.table.capacity() as u64, self.occupied);
    }

    pub(super) fn renew_lease(&mut self, now: u64) {
        self.lease_until_ns = lease_until(&self.config, now);
        self.kernel.control.set_lease(self.lease_until_ns);
    }

    /// Records that the programs gave up for new flows.
    fn take_evicted(&mut self) {
        let mut ended = 0;
        // Bounded: in a flood the programs refill the ring while it is read.
        while ended < self.config.model.max_flows_per_poll as u64 {
            let Some(record) = self.kernel.next_evicted() else { break };
            ended += 1;
            self.ended(None, record);
        }
        if ended > 0 {
            self.metrics.flows_ended(EndReason::Evicted, ended);
        }
    }

    /// A flow that ended is scored a last time. `slot`: where it was, if that is known.
    fn ended(&mut self, slot: Option<usize>, record: FlowRecord) {
        self.flow_ended(&record.key);
        if let Some(follower) = &mut self.follower {
            follower.ended(slot, &record, now_ns());
        }
        if self.model.is_none() || record.packets() < self.policy.min_packets() {
            return;
        }
        if self.records.len() < self.config.model.max_flows_per_poll as usize {
            self.candidates.push(Candidate { slot: None });
            self.records.push(record);
        } else {
            self.metrics.unscored();
        }
    }

    /// Looks at every bucket once, from the cursor on.
    fn scan(&mut self, now: u64) {
        let buckets = self.kernel.table.buckets();
        let start = self.cursor;
        self.cursor = 0;
        self.occupied = 0;
        let mut full = false;
        for offset in 0..buckets {
            let number = (start + offset) % buckets;
            let bucket = self.kernel.table.bucket(number);
            if bucket.tags == [0; WAYS] && !self.remembered[number] {
                continue;
            }
            self.scan_bucket(number, &bucket, now, full);
            self.remembered[number] = self.memories[number * WAYS..][..WAYS].iter().any(Memory::is_occupied);
            if !full && self.records.len() >= self.config.model.max_flows_per_poll as usize {
                full = true;
                self.cursor = (number + 1) % buckets;
            }
        }
    }

    fn scan_bucket(&mut self, number: usize, bucket: &Bucket, now: u64, full: bool) {
        let now_ms = self.started.elapsed().as_millis() as u32;
        for way in 0..WAYS {
            let slot = number * WAYS + way;
            let (tag, stage, seen) = (bucket.tags[way], bucket.stages[way], bucket.seen[way]);
            self.occupied += (tag != 0) as u64;
            if let Some(follower) = &mut self.follower {
                follower.look(&self.kernel.table, slot, tag, seen, now);
            }
            let step = self.memories[slot].look(tag, stage, seen, tick_of(now), now_ms, &self.timeouts);
            // Of the flows that go on, also those that this poll is the first to score: they are judged by the share below.
            if self.memories[slot].score.is_some() || step == Step::Score {
                self.enforcer.counting[0] += 1;
                self.enforcer.counting[1] += u64::from(self.memories[slot].is_condemned(now));
            }
            match step {
                Step::Leave => {}
                Step::Release(reason) => self.release(slot, reason),
                Step::Score if self.model.is_none() || full || self.memories[slot].is_condemned(now) => {}
                Step::Score => {
                    // Writers inside at every try: the next poll looks again.
                    if let Some(record) = self.kernel.table.copy(slot) {
                        self.memories[slot].mark_scored(seen, now_ms, record.generation);
                        self.candidates.push(Candidate { slot: Some(slot) });
                        self.records.push(record);
                    }
                }
            }
        }
    }

    /// Frees a slot, unless a packet arrived meanwhile.
    fn release(&mut self, slot: usize, reason: EndReason) {
        let Some(record) = self.kernel.table.copy(slot) else { return };
        let Some(record) = self.kernel.release(slot, record.generation, record.last_ns) else { return };
        self.memories[slot].forget();
        self.occupied = self.occupied.saturating_sub(1);
        self.metrics.flows_ended(reason, 1);
        self.ended(Some(slot), record);
    }

    fn every_second(&mut self) {
        self.follow_interfaces();
        for attached in &self.attached {
            self.publish_counters(&attached.interface, attached.ifindex);
        }
        self.publish_books();
        self.context_second();
        for program in self.kernel.programs() {
            self.metrics.program(&program.name, Duration::from_nanos(program.run_time_ns), program.run_count);
        }
        if self.unlogged > 0 {
            tracing::info!(verdicts = self.unlogged, "more verdicts in the last second, not logged one by one");
        }
        (self.logged, self.unlogged) = (0, 0);
        self.enforcement_second();
        let packets = |interface: &str| self.metrics.packets_view(Some(interface)).seen;
        if self.seen_check.as_mut().is_some_and(|check| check.is_done(packets)) {
            self.seen_check = None;
        }
    }

    /// The context of a flow, [`HostContext::NONE`] if context is off.
    pub(super) fn host_context(&self, record: &FlowRecord, now: u64) -> HostContext {
        match (&self.follower, &self.kernel.context) {
            (Some(follower), Some(tables)) => follower.context(tables, record, now),
            _ => HostContext::NONE,
        }
    }

    /// Lost flows into the ledger, entries in use into the metrics.
    fn context_second(&mut self) {
        let (Some(follower), Some(tables)) = (&mut self.follower, &self.kernel.context) else { return };
        let now = now_ns();
        follower.lost(self.metrics.interface_counters().iter(), now);
        let [sources, services] = tables.used(now);
        self.metrics.context(sources, services);
    }

    fn answer(&mut self, request: Request) {
        // Nobody waits any more if a reply cannot be sent, and then the work is not done either.
        match request {
            request if request.is_abandoned() => {}
            Request::Load { path, shadow, by, reply } => self.request_load(path, shadow, by, reply),
            Request::Features { id, reply } => drop(reply.send(report::features(self, &id))),
            Request::HandOver { pid, pins, reply } => match self.kernel.pins_identity() {
                Ok(Some(own)) if own == pins => self.heir = Some(Heir { pid, reply }),
                Ok(Some(_)) => {
                    let path = self.kernel.pins().unwrap_or(std::path::Path::new("")).display();
                    drop(reply.send(Err(format!("this agent's pins are others, at {path}"))));
                }
                Ok(None) => drop(reply.send(Err("nothing is pinned, so nothing can be handed over".to_owned()))),
                Err(error) => drop(reply.send(Err(format!("{error:#}")))),
            },
            Request::Flows { sort, limit, reply } => drop(reply.send(report::flows(self, sort, limit))),
            Request::Enforce(request) => self.answer_enforce(request),
            Request::Status { reply } => drop(reply.send(report::status(self))),
        }
    }

    /// Leaves programs, maps and verdicts to another agent.
    fn leave(mut self) -> anyhow::Result<Left> {
        // What is written below can take longer than a short lease.
        self.renew_lease(now_ns());
        let heir = self.heir.take().map(|Heir { pid, reply }| {
            let (version, flows) = (env!("CARGO_PKG_VERSION").to_owned(), self.occupied);
            // Before anything waits for a disk: who does not answer in time is taken for one that hangs, and killed. That all is
            // left is told by the lock on the pins.
            let _ = reply.send(Ok(HandOverView { pid: std::process::id(), version, flows }));
            pid
        });
        self.end_enforcement();
        // The lease runs on until the other agent renews it.
        self.renew_lease(now_ns());
        self.publish_books();
        let attached = std::mem::take(&mut self.attached);
        for one in &attached {
            self.publish_counters(&one.interface, one.ifindex);
        }
        let Poller { kernel, metrics, occupied, .. } = self;
        let left = kernel.leave(attached)?;
        let totals = metrics.totals();
        let to = heir.map_or_else(|| "whoever takes over".to_owned(), |pid| format!("pid {pid}"));
        tracing::info!(
            packets = totals.packets,
            flows = totals.flows_created,
            verdicts = totals.verdicts,
            "left programs, {occupied} flows and all verdicts to {to}"
        );
        Ok(left)
    }

    /// Ends every flow, publishes the last counters, takes the programs off.
    fn shut_down(mut self) -> anyhow::Result<()> {
        // Lease first: from here on nothing is dropped or marked.
        self.kernel.control.set_lease(0);
        self.metrics.lease(false);
        self.end_enforcement();
        let mut failures = Vec::new();
        let interfaces: Vec<_> = self.attached.iter().map(|one| (one.interface.clone(), one.ifindex)).collect();
        for attached in std::mem::take(&mut self.attached) {
            if let Err(error) = self.kernel.detach(attached) {
                failures.push(format!("{error:#}"));
            }
        }
        // After detaching, so that the last packets are in the published totals.
        for (interface, ifindex) in interfaces {
            self.publish_counters(&interface, ifindex);
        }
        self.take_evicted();
        self.publish_books();
        self.metrics.flows_ended(EndReason::Shutdown, self.occupied);
        let totals = self.metrics.totals();
        tracing::info!(
            packets = totals.packets,
            flows = totals.flows_created,
            scored = totals.scored,
            verdicts = totals.verdicts,
            would_verdicts = totals.would_verdicts,
            dropped = totals.dropped,
            lost = totals.lost,
            "stopped; programs detached"
        );
        anyhow::ensure!(failures.is_empty(), "{}", failures.join("; "));
        Ok(())
    }
}
