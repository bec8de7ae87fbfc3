//! Whether the programs are still where they were attached. Others can take them off without a word to their owner:
//! `bpftool link detach`, `tc filter del`, a tool that puts its own in their place.
//!
//! Invariant: a thread of its own asks the kernel, once a second, because the answers wait for the kernel's lock on
//! interfaces, which others can hold for long. What it finds is only a suspicion, as the poll thread changes what is
//! attached meanwhile; that asks again ([`Expected::missing`]) before it acts. Called by `agent::interfaces`.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Attached, Held, TcAttachment};
use crate::bpf::load::{Hook, Kernel};
use crate::bpf::{probe, qdisc, sys};

/// Time between two looks at everything.
const INTERVAL: Duration = Duration::from_secs(1);

/// What an interface is to have.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The interface's number.
    pub ifindex: u32,
    egress: TcAttachment,
    /// Hooks and the numbers of their programs.
    programs: Vec<(Hook, u32)>,
}

impl Expected {
    /// Names of the programs that are not there any more; none if the interface is gone.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub fn missing(&self) -> Result<Vec<&'static str>> {
        if super::present_name(self.ifindex)?.is_none() {
            return Ok(Vec::new());
        }
        let there = self.there()?;
        let missing = self.programs.iter().filter(|(_, program)| !there.contains(program));
        Ok(missing.map(|(hook, _)| name(*hook)).collect())
    }

    /// Numbers of all programs that the interface has where one of ours is expected.
    fn there(&self) -> Result<Vec<u32>> {
        let mut there = Vec::new();
        let expects = |hooks: &[Hook]| self.programs.iter().any(|(hook, _)| hooks.contains(hook));
        if expects(&[Hook::Ingress]) {
            match probe::xdp_program(self.ifindex) {
                Ok(program) => there.extend(program),
                // What is gone lacks nothing.
                Err(error) if is_gone(&error) => {
                    return Ok(self.programs.iter().map(|(_, program)| *program).collect());
                }
                Err(error) => return Err(error).context("asking for the XDP program"),
            }
        }
        if self.egress == TcAttachment::Clsact {
            there.extend(qdisc::filters(self.ifindex)?.into_iter().filter_map(|filter| filter.program));
            return Ok(there);
        }
        for (hooks, ingress) in [(&[Hook::Egress][..], false), (&[Hook::StackIngress, Hook::Tag], true)] {
            if !expects(hooks) {
                continue;
            }
            match sys::tcx_programs(self.ifindex, ingress) {
                Ok(programs) => there.extend(programs),
                Err(error) if is_gone(&error) => {
                    return Ok(self.programs.iter().map(|(_, program)| *program).collect());
                }
                Err(error) => return Err(error).context("asking for the programs at TC"),
            }
        }
        Ok(there)
    }
}

fn is_gone(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENODEV)
}

/// The program's name in the log.
fn name(hook: Hook) -> &'static str {
    match hook {
        Hook::Egress => "sensor_egress",
        Hook::StackIngress => super::INGRESS,
        Hook::Tag => "sensor_tag",
        _ => "sensor_xdp",
    }
}

impl Kernel {
    /// What these interfaces are to have.
    pub fn expected(&self, attached: &[Attached]) -> Vec<Expected> {
        let number = |name: &str| Some(self.program_info(name)?.id());
        let hooks = [Hook::Ingress, Hook::StackIngress, Hook::Egress, Hook::Tag];
        let numbers = hooks.map(|hook| (hook, if hook == Hook::Ingress { self.xdp } else { self.tc_name(hook) }));
        let numbers: Vec<(Hook, u32)> =
            numbers.iter().filter_map(|(hook, name)| Some((*hook, number(name)?))).collect();
        let of = |held: &[(Hook, Held)]| {
            let has = |hook: Hook| held.iter().any(|(one, _)| *one == hook);
            numbers.iter().copied().filter(|(hook, _)| has(*hook)).collect()
        };
        let one = |one: &Attached| Expected { ifindex: one.ifindex, egress: one.egress, programs: of(&one.held) };
        attached.iter().map(one).collect()
    }
}

/// The thread, for whoever tells it what to look at. It ends soon after this is dropped.
#[derive(Debug)]
pub struct Still(Arc<Mutex<Shared>>);

#[derive(Debug, Default)]
struct Shared {
    expected: Arc<Vec<Expected>>,
    suspects: BTreeSet<u32>,
}

impl Still {
    /// Begins to look, in this thread's network namespace.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn begin() -> Result<Still> {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let own = Arc::downgrade(&shared);
        let look = move || {
            while let Some(shared) = own.upgrade() {
                let expected = lock(&shared).expected.clone();
                // An answer that does not come says nothing.
                let lacks = |one: &&Expected| one.missing().is_ok_and(|missing| !missing.is_empty());
                let suspects: Vec<u32> = expected.iter().filter(lacks).map(|one| one.ifindex).collect();
                lock(&shared).suspects.extend(suspects);
                drop(shared);
                std::thread::sleep(INTERVAL);
            }
        };
        let thread = std::thread::Builder::new().name("sensor-still".to_owned());
        thread.spawn(look).context("cannot start the thread that looks whether the programs are still attached")?;
        Ok(Still(shared))
    }

    /// What is to be there from now on; the interfaces that seem to lack something since the last call.
    pub fn exchange(&self, expected: Vec<Expected>) -> BTreeSet<u32> {
        let mut shared = lock(&self.0);
        shared.expected = Arc::new(expected);
        std::mem::take(&mut shared.suspects)
    }
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
