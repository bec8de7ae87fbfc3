//! Attaches to interfaces that are to be watched, and lets go of others.

use std::time::Instant;

use anyhow::{Context as _, Result};
use sensor_common::counter::InterfaceCounters;

use super::Interfaces;
use crate::agent::poll::Poller;
use crate::bpf::attach::{self, Attached, Refused};
use crate::bpf::probe;
use crate::interfaces::List;

impl Poller {
    /// Replaces the list of interfaces to watch, as a whole. Interfaces that a new plain name asks for are attached
    /// before this returns, those that patterns match within the next polls; what the new list does not ask for is let
    /// go. A plain name that was in the list before may be missing, and is waited for. Empty: the interface of the
    /// default route. Called for a reload.
    ///
    /// # Errors
    /// The list cannot be read; a plain name is new and there is no such interface, or it cannot be watched. Then
    /// nothing has changed.
    pub(in crate::agent) fn watch_interfaces(&mut self, entries: &[String]) -> Result<()> {
        let entries = match entries {
            [] => vec![probe::default_interface()?],
            entries => entries.to_vec(),
        };
        let list = List::parse(&entries)?;
        let mut new = Vec::new();
        for name in list.names().iter().filter(|name| !self.interfaces.list.is_named(name)) {
            let ifindex = attach::ifindex(name).context("interfaces")?;
            if self.attached.iter().all(|one| one.ifindex != ifindex) {
                new.push(name.clone());
            }
        }
        let before = self.attached.len();
        for name in &new {
            match self.attach(name) {
                Ok(one) => self.attached.push(one),
                Err(Refused { error, counted }) => {
                    self.keep_counters(name, &counted);
                    let undone = self.attached.split_off(before);
                    self.let_go(undone, true);
                    return Err(error.context("interfaces"));
                }
            }
        }
        for one in &self.attached[before..] {
            tracing::info!("{}: attached, XDP {}, egress {}", one.interface, one.xdp.name(), one.egress.name());
            self.seen_check.add(&one.interface);
        }
        self.interfaces.lost.retain(|name| list.is_named(name));
        self.interfaces.list = list;
        self.interfaces.kept.clear();
        self.config.interfaces = entries;
        self.look_at_interfaces();
        self.protect_interfaces_again();
        self.follow_tagging();
        Ok(())
    }

    /// Attaches to those whose time it is, until `until`, to one in any case.
    pub(super) fn watch_waiting(&mut self, until: Instant) {
        let now = self.interfaces.now();
        let due = self.interfaces.waiting.iter().filter(|(_, one)| one.attempts.due(now));
        let due: Vec<u32> = due.map(|(ifindex, _)| *ifindex).collect();
        let mut any = false;
        for (number, ifindex) in due.into_iter().enumerate() {
            if number > 0 && Instant::now() >= until {
                break;
            }
            any |= self.watch(ifindex);
        }
        if any {
            self.protect_interfaces_again();
            self.follow_tagging();
            self.publish_states();
        }
    }

    fn attach(&mut self, interface: &str) -> Result<Attached, Refused> {
        let number = self.interfaces.waiting.iter().find(|(_, one)| one.name == interface).map(|(number, _)| *number);
        let exempt = self.is_exempt(interface, number.unwrap_or_default());
        if !self.kernel.adopted() {
            attach::refuse_second(interface)?;
        }
        self.kernel.try_attach(interface, self.config.kernel.xdp_mode, self.interfaces.tcx, exempt)
    }

    /// Whether it worked.
    fn watch(&mut self, ifindex: u32) -> bool {
        let Some(waiting) = self.interfaces.waiting.get(&ifindex) else { return false };
        let interface = waiting.name.clone();
        let result = self.attach(&interface);
        let Interfaces { lost, waiting, news, started, .. } = &mut self.interfaces;
        let again = if lost.contains(&interface) { " is there again" } else { "" };
        match result {
            Ok(one) => {
                // By its name it may have been another one.
                waiting.retain(|number, _| *number != ifindex && *number != one.ifindex);
                if lost.remove(&interface) || news.is_told("attached") {
                    let (xdp, egress) = (one.xdp.name(), one.egress.name());
                    tracing::info!("{interface}{again}: attached, XDP {xdp}, egress {egress}");
                }
                self.seen_check.add(&interface);
                self.attached.push(one);
                true
            }
            Err(Refused { error, counted }) => {
                if !matches!(attach::present_name(ifindex), Ok(None)) {
                    let Some(one) = waiting.get_mut(&ifindex) else { return false };
                    if one.attempts.failed(format!("{error:#}"), started.elapsed()) && news.is_told("refused") {
                        let (pause, and) = (one.attempts.pause(), if again.is_empty() { "" } else { ", and" });
                        tracing::warn!(
                            "{interface}{again}{and} cannot be watched, next attempt in {pause} s: {error:#}"
                        );
                    }
                } else {
                    // It went while it was attached to, which is no failure.
                    waiting.remove(&ifindex);
                }
                self.keep_counters(&interface, &counted);
                false
            }
        }
    }

    /// Takes the programs off interfaces that are not watched any more, and keeps what was counted there. `there`: some
    /// are still there, and packets may be on their way through the programs.
    pub(super) fn let_go(&mut self, attached: Vec<Attached>, there: bool) {
        for (interface, counted) in self.kernel.let_go(attached, there) {
            match counted {
                Ok(counters) => self.keep_counters(&interface, &counters),
                Err(error) => tracing::warn!("{interface}: {error:#}"),
            }
        }
    }

    /// What an interface counted under a number under which it is not watched any more.
    fn keep_counters(&mut self, interface: &str, counters: &InterfaceCounters) {
        if counters.ifindex == 0 {
            // It was not attached for a moment.
            return;
        }
        let now = self.interfaces.now();
        self.interfaces.former.keep(interface, counters, now);
        if let Some(former) = self.interfaces.former.of(interface) {
            self.metrics.kernel(interface, former);
        }
    }
}
