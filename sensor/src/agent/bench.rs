//! The agent's poll without interfaces, sockets and a thread of its own: for `sensor-bench poll`, which says when a poll is (feature
//! `bench`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use sensor_common::features::Sample;
use sensor_common::table::WAYS;

use super::apply::Settled;
use super::clock::now_ns;
use super::enforce::Around;
use super::interfaces::Interfaces;
use super::poll::{Models, Poller, Watched};
use super::reload::{Files, Loader};
use crate::bpf::load::Kernel;
use crate::bpf::probe::links::Links;
use crate::config::{Config, Source};
use crate::control::SharedPolicy;
use crate::harvest::Memory;
use crate::http::Health;
use crate::interfaces::List;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::vector;

/// A poll thread's state, polled by whoever has it.
pub struct Polls(Poller);

impl std::fmt::Debug for Polls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Polls").field("occupied", &self.0.occupied).finish_non_exhaustive()
    }
}

impl Polls {
    /// Of loaded programs, which may have been run. Without a model, flows are not copied.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn new(config: Config, kernel: Kernel, model: Option<Model>) -> Result<Polls> {
        let loader = Loader::start(&config, Source::default(), Files::none())?;
        let health = Arc::new(Health::new(Instant::now(), config.agent.lease));
        let around = Around::look(&config);
        let models = Models { active: model, shadow: None, loader };
        let settled = Settled::new(None, config.clone(), SharedPolicy::default(), None);
        let metrics = Arc::new(Metrics::new());
        let interfaces = Interfaces::new(List::default(), Links::follow()?, &kernel, true)?;
        let watched = Watched { attached: Vec::new(), interfaces };
        Ok(Polls(Poller::new(config, kernel, watched, models, metrics, health, around, settled)))
    }

    /// One poll: what the agent does every poll interval, but for what it does once a second.
    pub fn poll(&mut self) -> Duration {
        let begun = Instant::now();
        self.0.poll(begun);
        begun.elapsed()
    }

    /// The programs.
    pub fn kernel(&mut self) -> &mut Kernel {
        &mut self.0.kernel
    }

    /// Flows in the table at the last poll.
    pub fn occupied(&self) -> u64 {
        self.0.occupied
    }

    /// Flows that the last poll scored.
    pub fn scored(&self) -> usize {
        self.0.records.len()
    }

    /// Forgets what is known of the flows: to the next poll, each is new, and due if it has packets enough.
    pub fn forget(&mut self) {
        self.0.memories.iter_mut().for_each(Memory::forget);
    }

    /// Flows that one poll scores at most.
    pub fn set_most(&mut self, flows: u32) {
        self.0.config.model.max_flows_per_poll = flows;
    }

    /// Flows that are idle for as long as this have ended.
    pub fn set_idle_ticks(&mut self, ticks: u16) {
        self.0.timeouts.idle_ticks = ticks;
        self.0.memories.wake();
    }

    /// Copies the records of all flows, in slot order; with `features`, and makes the model's row of each. How many, and
    /// how long it took.
    pub fn copy(&mut self, features: bool) -> (usize, Duration) {
        let begun = Instant::now();
        let now = now_ns();
        let table = &self.0.kernel.table;
        let names = self.0.model.as_ref().map_or(&[][..], |model| &model.features);
        let wants_context = self.0.model.as_ref().is_some_and(Model::wants_context);
        let mut row = vec![0.0; names.len()];
        let (mut copied, mut sum) = (0, 0.0);
        for number in 0..table.buckets() {
            let tags = table.bucket(number).tags;
            for way in (0..WAYS).filter(|way| tags[*way] != 0) {
                let Some(record) = table.copy(number * WAYS + way) else { continue };
                copied += 1;
                if features && wants_context {
                    let context = self.0.host_context(&record, now);
                    vector::fill(names, &Sample { record: &record, context: &context }, &mut row);
                } else if features {
                    vector::fill(names, &Sample::of(&record), &mut row);
                }
                sum += f64::from(row.first().copied().unwrap_or_default()) + record.packets() as f64;
            }
        }
        std::hint::black_box(sum);
        (copied, begun.elapsed())
    }
}
