//! How an agent begins: with maps of its own, or with those of an agent before it, which it asks to end first.
//!
//! Order of a takeover: look whether the maps fit → load the programs on them → the other agent ends → lease → replace the
//! programs. Up to the third step nothing is changed, so whatever fails there leaves the other agent as it was. What is
//! between two polls of the table is the third step and the last.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytemuck::Zeroable as _;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sensor_common::control::{Control, NO_DSCP};

use super::clock::now_ns;
use crate::bpf::attach::{self, Attached, Refused};
use crate::bpf::load::{Kernel, LoadOptions};
use crate::bpf::pins::{self, Pins};
use crate::bpf::probe::links::Table;
use crate::bpf::probe::{self, Capabilities};
use crate::config::{AgentLoss, Config, Mode};
use crate::control;
use crate::harvest::ticks;
use crate::interfaces::List;

/// When maps and programs of another agent are taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Takeover {
    /// If they fit; else the start fails and changes nothing.
    Compatible,
    /// If they fit; else the other agent ends, and this one begins with maps of its own.
    Always,
}

/// How long an agent may take to answer that it ends. One that hangs does not answer, and is killed then.
const ANSWER: Duration = Duration::from_secs(4);
/// How long it may take from there to its end.
const END: Duration = Duration::from_secs(5);
/// Between two renewals of the lease during a takeover: well below the shortest lease.
const HOLD: Duration = Duration::from_millis(20);
/// Between two looks whether it has ended.
const LOOK: Duration = Duration::from_millis(2);

/// What is known before anything is changed.
pub(super) struct Beginning {
    options: LoadOptions,
    /// Where maps are to be pinned, until a kernel has it.
    pins: Option<Pins>,
    /// Programs on the maps of another agent.
    adopting: Option<Kernel>,
    /// Holds the verdicts of that agent until this one does.
    watch: Option<Watch>,
    /// Another agent must end first.
    occupied: bool,
}

impl Beginning {
    /// Decides, and loads the programs if they are for the maps of another agent.
    ///
    /// # Errors
    /// There is an agent and `takeover` does not say that it is to be replaced; its maps do not fit; the kernel refuses
    /// the programs.
    pub(super) fn new(config: &Config, capabilities: &Capabilities, takeover: Option<Takeover>) -> Result<Beginning> {
        let options = options(config, capabilities);
        let mut beginning = Beginning { options, pins: None, adopting: None, watch: None, occupied: false };
        let Some(path) = &config.agent.pins else {
            ensure!(takeover.is_none(), "--takeover needs agent.pins, where the other agent left its maps");
            return Ok(beginning);
        };
        let (mut pins, owned) = match open(path) {
            Ok(opened) => opened,
            Err(error) if takeover.is_none() && config.agent.on_agent_loss == AgentLoss::Open => {
                tracing::info!("nothing is pinned, so no agent can take over from this one: {error:#}");
                return Ok(beginning);
            }
            Err(error) => return Err(error),
        };
        beginning.occupied = !owned;
        let Some(when) = takeover else {
            if !owned {
                pins::refuse_owned(&pins)?;
            }
            if !pins.is_empty() {
                attach::clear(&pins)?;
                tracing::warn!(
                    "removed what an agent that was killed left pinned at {}: its flows are forgotten, and verdicts \
                     go on as far as agent.state_dir has them (--takeover goes on with both)",
                    path.display()
                );
            }
            beginning.pins = Some(pins);
            return Ok(beginning);
        };
        if pins.is_empty() {
            ensure!(owned, "another agent is starting with the pins at {}: try again", path.display());
            tracing::info!("there is nothing to take over at {}", path.display());
            beginning.pins = Some(pins);
            return Ok(beginning);
        }
        // Whatever fails from here on, another attempt finds what was left.
        pins.leave(true);
        match beginning.fits(&pins) {
            Ok(()) => {
                beginning.watch = Some(Watch::begin(&pins, config)?);
                beginning.adopting = Some(load(&beginning.options, Some(pins), capabilities)?);
            }
            Err(error) if when == Takeover::Always => {
                tracing::warn!(
                    "starting with new maps: flows are forgotten, and verdicts go on as far as agent.state_dir has them: {error:#}"
                );
                beginning.pins = Some(pins);
            }
            Err(error) => {
                return Err(error.context(format!(
                    "what is pinned at {} cannot be taken over (--takeover=always starts anew instead)",
                    path.display()
                )));
            }
        }
        Ok(beginning)
    }

    fn fits(&self, pins: &Pins) -> Result<()> {
        let meta =
            pins.meta()?.context("the pins are not complete: an agent was killed while it started or stopped")?;
        pins.check(&meta, &self.options.sizes())
    }

    /// Has the agent that runs, if there is one, end; then the pins are this one's.
    ///
    /// # Errors
    /// It refuses, or cannot be found.
    pub(super) async fn take_over(&mut self, socket: &Path) -> Result<()> {
        if !self.occupied {
            return Ok(());
        }
        let (connection, pid) = control::listener(socket).await.with_context(|| {
            format!("an agent has the pins, but not with the socket {}: name its own with --socket", socket.display())
        })?;
        // Before it is asked, so that the number cannot be that of another process later.
        let process = pid.and_then(Pid::from_raw).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let wanted = match (&self.adopting, &self.pins) {
            (Some(kernel), _) => kernel.pins_identity()?,
            (None, Some(pins)) => Some(pins.identity()?),
            (None, None) => None,
        };
        let answer = control::hand_over(socket, wanted.unwrap_or_default(), ANSWER).await;
        match answer {
            Ok(view) => tracing::info!("took over {} flows from the agent with pid {}", view.flows, view.pid),
            // It may have ended before its answer was sent.
            Err(_) if self.owned_within(Duration::from_millis(100)).await? => {}
            // Whoever answers anything does not hang: it refuses.
            Err(error) if answers(socket).await => {
                return Err(error.context("the agent that runs does not hand over; stop it instead"));
            }
            Err(error) => {
                let pid = pid.map_or_else(|| "unknown pid".to_owned(), |pid| format!("pid {pid}"));
                let killed = process.is_some_and(|process| pidfd_send_signal(process, Signal::KILL).is_ok());
                ensure!(
                    killed,
                    "the agent that runs ({pid}) hangs ({error:#}) and cannot be killed: do so, and try again"
                );
                tracing::warn!("killed the agent that ran ({pid}), because it hangs: {error:#}");
            }
        }
        drop(connection);
        ensure!(self.owned_within(END).await?, "the agent that runs does not end within {} s", END.as_secs());
        Ok(())
    }

    async fn owned_within(&mut self, limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            let owned = match (&mut self.adopting, &mut self.pins) {
                (Some(kernel), _) => kernel.own_pins()?,
                (None, Some(pins)) => pins.own()?,
                (None, None) => true,
            };
            if owned || Instant::now() >= deadline {
                self.occupied = !owned;
                return Ok(owned);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Loads, where that was not done, and attaches. On a failure takes off what was attached; what was taken over stays.
    ///
    /// # Errors
    /// If the kernel refuses something.
    pub(super) fn bring_up(
        self,
        config: &Config,
        list: &List,
        links: &Table,
        capabilities: &Capabilities,
    ) -> Result<(Kernel, Vec<Attached>)> {
        let Beginning { options, pins, adopting, watch, occupied } = self;
        debug_assert!(!occupied, "the other agent has ended");
        let mut kernel = match adopting {
            Some(kernel) => kernel,
            None => {
                let mut pins = pins;
                if let Some(pins) = pins.as_mut().filter(|pins| !pins.is_empty()) {
                    attach::clear(pins)?;
                    pins.leave(false);
                }
                load(&options, pins, capabilities)?
            }
        };
        if kernel.adopted() {
            // From here on verdicts are obeyed again, if they were not.
            kernel.control.set_lease(lease_until(config, now_ns()));
            match kernel.resume()? {
                0 => {}
                freed => tracing::warn!("freed {freed} records that a killed agent had locked"),
            }
        }
        kernel.control.set(&page(config));
        let mut attached = Vec::new();
        let matched = list.select(links.values()).into_iter().map(|link| &link.name);
        let matched = matched.filter(|name| !list.is_named(name));
        for interface in list.names().iter().chain(matched) {
            if kernel.adopted() {
                // With many interfaces it takes longer than a short lease.
                kernel.control.set_lease(lease_until(config, now_ns()));
            }
            // After a takeover verdicts are obeyed at once.
            let exempt = config.policy.never_drop_interfaces.contains(interface);
            let alone = if kernel.adopted() { Ok(()) } else { attach::refuse_second(interface) };
            let attached_one = alone
                .map_err(Refused::from)
                .and_then(|()| kernel.try_attach(interface, config.kernel.xdp_mode, capabilities.tcx, exempt));
            match attached_one {
                Ok(mut one) => {
                    // The mode may have been changed by command since; the poll thread follows that.
                    let tags = config.mode != Mode::Observe;
                    let tagging = if tags { kernel.set_tagging(&mut one, true) } else { Ok(()) };
                    attached.push(one);
                    if let Err(error) = tagging {
                        give_up(kernel, attached);
                        return Err(error);
                    }
                }
                // One that was only matched may be gone already, or have a program of others: the poll thread tries again.
                Err(refused) if !list.is_named(interface) => {
                    tracing::warn!("{interface} cannot be watched yet: {:#}", refused.error);
                }
                Err(refused) => {
                    give_up(kernel, attached);
                    return Err(refused.error);
                }
            }
        }
        // The poll thread goes on with the lease.
        drop(watch);
        match kernel.settle(&attached) {
            Ok(()) => Ok((kernel, attached)),
            Err(error) => {
                give_up(kernel, attached);
                Err(error)
            }
        }
    }
}

/// Watches over the verdicts of an agent that hangs or is dead, until this one has taken over: else they would end with
/// its lease while the programs are loaded, or while it is waited for. Ends when it is dropped.
#[derive(Debug)]
struct Watch(#[expect(dead_code, reason = "the thread looks whether it is still there")] Arc<()>);

impl Watch {
    /// # Errors
    /// If the control page cannot be opened, or there is no thread to be had.
    fn begin(pins: &Pins, config: &Config) -> Result<Watch> {
        let (page, own) = (pins.control()?, Arc::new(()));
        let (alive, config) = (Arc::downgrade(&own), config.clone());
        let hold = move || {
            while alive.strong_count() > 0 {
                page.set_lease(lease_until(&config, now_ns()));
                std::thread::sleep(HOLD);
            }
        };
        std::thread::Builder::new().name("sensor-lease".to_owned()).spawn(hold).context("no thread for the lease")?;
        Ok(Watch(own))
    }
}

/// Whether the agent behind a socket still does its work.
async fn answers(socket: &Path) -> bool {
    tokio::time::timeout(Duration::from_secs(1), control::get_status(socket)).await.is_ok_and(|status| status.is_ok())
}

/// The time until which verdicts are obeyed without another poll (monotonic ns).
pub(super) fn lease_until(config: &Config, now_ns: u64) -> u64 {
    match config.agent.on_agent_loss {
        AgentLoss::Open => now_ns + config.agent.lease.as_nanos() as u64,
        AgentLoss::Keep => u64::MAX,
    }
}

/// The part of the control page that settings make.
pub(super) fn page(config: &Config) -> Control {
    Control {
        tag_mark: config.tag.mark,
        tag_mask: config.tag.mask,
        tag_dscp: config.tag.dscp.map_or(NO_DSCP, u32::from),
        evict_idle_ticks: ticks(config.kernel.evict_idle) as u32,
        ..Control::zeroed()
    }
}

fn options(config: &Config, capabilities: &Capabilities) -> LoadOptions {
    // The configuration was checked.
    let list = List::parse(&config.interfaces).unwrap_or_default();
    LoadOptions {
        interfaces: config.kernel.interface_slots(&list),
        flows: config.kernel.flows as usize,
        frags: capabilities.xdp_frags,
        context: config.context.sizes(),
        tagging: config.tag.enabled,
        max_verdicts: config.policy.max_verdicts,
        max_memory: match config.kernel.max_memory_mib {
            0 => u64::MAX,
            mib => u64::from(mib) << 20,
        },
        parser: config.flows.parser_options(),
        log_level: config.kernel.bpf_log as u8,
        ..LoadOptions::default()
    }
}

/// The directory, and whether it is ours. An agent that stops may remove it under our hands.
pub(super) fn open(path: &Path) -> Result<(Pins, bool)> {
    let mut tries = 3;
    loop {
        let mut pins = Pins::open(path)?;
        match pins.own() {
            Ok(owned) => return Ok((pins, owned)),
            Err(error) if tries == 0 => return Err(error),
            Err(_) => tries -= 1,
        }
    }
}

fn load(options: &LoadOptions, pins: Option<Pins>, capabilities: &Capabilities) -> Result<Kernel> {
    let kernel = match pins {
        Some(pins) => Kernel::load_pinned(options, pins),
        None => Kernel::load(options),
    };
    kernel.map_err(|error| {
        let (major, minor) = capabilities.version;
        if capabilities.version >= probe::MIN_KERNEL {
            return error;
        }
        // After the attempt, not before: distributions carry what is needed to kernels with older numbers.
        error.context(format!(
            "this kernel ({major}.{minor}) is too old: Sensor needs Linux {}.{} or newer; see `sensor doctor`",
            probe::MIN_KERNEL.0,
            probe::MIN_KERNEL.1
        ))
    })
}

/// A start that failed: what was taken over stays for the next attempt, and passes when the lease is over; everything else goes.
fn give_up(mut kernel: Kernel, attached: Vec<Attached>) {
    if kernel.adopted() {
        if let Err(error) = kernel.leave(attached) {
            tracing::error!("{error:#}");
        }
        return;
    }
    for one in attached {
        if let Err(error) = kernel.detach(one) {
            tracing::error!("{error:#}");
        }
    }
}
