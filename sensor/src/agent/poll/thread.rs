//! The thread itself: when it polls, what it does once a second, and how it answers between two polls.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use tokio::sync::{mpsc, oneshot};

use super::super::clock::now_ns;
use super::super::report;
use super::Poller;
use super::end::{Ending, Heir};
use super::inbox::Inbox;
use crate::bpf::pins::Left;
use crate::logging::lines::Lines;
use crate::summary::{self, Summary};
use crate::view::Request;

/// How often the programs' messages are read.
const LOG_INTERVAL: Duration = Duration::from_millis(100);
/// Interfaces that the status names.
const NAMED: usize = 4;

impl Poller {
    /// Polls until it is to end, then ends all flows and takes the programs off, or leaves all to another agent. `begun`
    /// hears of the end of the first poll.
    ///
    /// # Errors
    /// If the programs could not be taken off an interface.
    pub(in crate::agent) fn run(
        mut self,
        requests: mpsc::Receiver<Request>,
        ending: &Ending,
        begun: oneshot::Sender<()>,
    ) -> anyhow::Result<Option<Left>> {
        let mut begun = Some(begun);
        let mut inbox = Inbox::new(requests);
        self.begin_enforcement();
        let mut next = Instant::now();
        let mut second = Instant::now();
        let printer = self.config.log.summary.then(|| Lines::to("sensor-summary", std::io::stdout()));
        let printer = printer.transpose().context("standard output (log.summary)")?;
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
            let interval = self.config.agent.poll_interval;
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
                if let (Some(summary), Some(printer)) = (&mut summary, &printer) {
                    summary.set_mode(self.enforcer.mode);
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
                    let line = summary.line(&summary::clock(now), elapsed, self.metrics.totals());
                    printer.write(format!("{line}\n").as_bytes());
                }
                self.settled.tell_lost_lines();
                let printed = printer.as_ref().map(|printer| ("stdout", printer.lost()));
                self.metrics.log_lost(self.settled.lost_lines().into_iter().chain(printed));
            }
            next = (next + interval).max(Instant::now());
            self.follow_interfaces(next);
            // One request at most between two looks at the clock, and one even when polls are late.
            while self.heir.is_none() {
                let wait = next.saturating_duration_since(Instant::now());
                let idle = self.dumps.is_empty();
                if let Some(request) = inbox.next(if idle { wait } else { Duration::ZERO }) {
                    self.answer(request);
                }
                // A slice even when polls are late, so that the list ends.
                self.go_on_with_dumps();
                if wait.is_zero() {
                    break;
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

    fn every_second(&mut self) {
        self.look_at_interfaces();
        self.look_for_taken_off();
        self.follow_tagging();
        self.publish_interfaces();
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
        self.seen_check.look(|interface| self.metrics.packets_view(Some(interface)).seen);
        self.tell_status();
    }

    /// What `systemctl status` shows.
    fn tell_status(&mut self) {
        let Poller { watchdog, enforcer, attached, metrics, .. } = self;
        let state = || {
            let names: Vec<_> = attached.iter().take(NAMED).map(|one| one.interface.as_str()).collect();
            let more = attached.len() - names.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let breaker = if enforcer.breaker.trip().is_some() { ", the breaker is open" } else { "" };
            format!("mode {} on {}{more}{breaker}", enforcer.mode, names.join(", "))
        };
        let numbers = || {
            let totals = metrics.totals();
            let (flows, verdicts) = (totals.flows_active, enforcer.book.len());
            format!("{flows} flows, {verdicts} verdicts, {} packets dropped", totals.dropped)
        };
        watchdog.status(state, numbers);
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
            Request::Flows { query, reply } => self.begin_dump(query, reply),
            Request::Reload { by, reply } => self.request_reload(by, reply),
            Request::Config { reply } => drop(reply.send(self.settled.view())),
            Request::Metrics { reply } => drop(reply.send(self.metrics.prometheus())),
            Request::Log { reply } => drop(reply.send(self.settled.log())),
            Request::Enforce(request) => self.answer_enforce(request),
            Request::Status { reply } => drop(reply.send(report::status(self))),
        }
    }
}
