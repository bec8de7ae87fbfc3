//! `sensor run`: brings everything up in an order in which any failure leaves nothing behind, waits for a signal, and
//! takes everything down again.
//!
//! Order: checks → model → sockets → programs → attach → poll. Traffic is touched by none of it before the last step.

mod clock;
mod context;
mod life;
mod poll;
mod reload;
mod report;
mod score;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use bytemuck::Zeroable as _;
use sensor_common::control::{Control, NO_DSCP};
use sensor_common::verdict::Action;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use self::poll::{Models, Poller};
use self::reload::{Files, Job, Loader};
use crate::bpf::attach::Attached;
use crate::bpf::load::{Kernel, LoadOptions};
use crate::bpf::probe::{self, Capabilities};
use crate::config::{Config, Mode};
use crate::control::ControlSocket;
use crate::harvest::ticks;
use crate::http::{self, Health, HttpState};
use crate::metrics::Metrics;
use crate::model::{Model, accept, isolate};

/// Requests that may wait for the poll thread.
const REQUESTS: usize = 16;

/// Runs the agent until SIGINT or SIGTERM.
///
/// # Errors
/// Whatever kept it from starting, or from taking its programs off at the end; nothing stays attached.
pub fn run(mut config: Config) -> Result<()> {
    let capabilities = probe::kernel();
    check(&capabilities)?;
    if config.interfaces.is_empty() {
        config.interfaces = vec![probe::default_interface()?];
    }
    let files = Files::now(&config);
    let model = load_model(config.model.path.as_deref(), &config)?;
    let shadow = load_model(config.model.shadow.as_deref(), &config)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(serve(config, model, shadow, files, &capabilities))
}

/// What the kernel must have before anything is tried.
fn check(capabilities: &Capabilities) -> Result<()> {
    let missing = capabilities.privileges.missing();
    ensure!(
        missing.is_empty(),
        "this needs root, or the capabilities {}; run it with sudo, or see `sensor doctor`",
        missing.join(", ")
    );
    for (there, what) in [
        (capabilities.xdp, "XDP programs"),
        (capabilities.classifier, "TC programs"),
        (capabilities.ring_buffer, "BPF ring buffers"),
    ] {
        ensure!(
            there,
            "this kernel ({}.{}) does not take {what}: Sensor needs Linux 5.15 or newer with CONFIG_BPF_SYSCALL; see \
             `sensor doctor`",
            capabilities.version.0,
            capabilities.version.1
        );
    }
    Ok(())
}

fn load_model(path: Option<&Path>, config: &Config) -> Result<Option<Model>> {
    let Some(path) = path else { return Ok(None) };
    if !path.exists() {
        bail!(
            "there is no model at {}: name one with --model FILE, or set model.path = \"\" to count flows without scores",
            path.display()
        );
    }
    accept::on_large_stack(|| accept::load(path, config)).map(Some)
}

async fn serve(
    config: Config,
    model: Option<Model>,
    shadow: Option<Model>,
    files: Files,
    capabilities: &Capabilities,
) -> Result<()> {
    // Before anything is attached, so that a signal at any time ends in an orderly stop.
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot catch SIGHUP")?;
    let metrics = Arc::new(Metrics::new());
    let health = Arc::new(Health::new(Instant::now(), config.agent.lease));
    let control = ControlSocket::bind(&config.agent.socket).await?;
    let listener = match config.metrics.listen {
        Some(address) => Some(http::bind(address).await?),
        None => None,
    };
    let (kernel, attached) = bring_up(&config, capabilities)?;
    announce(&config, &kernel, &attached, model.as_ref());
    let loader = Loader::start(&config, files)?;
    let jobs = loader.jobs.clone();

    let (requests, inbox) = mpsc::channel(REQUESTS);
    let mut tasks = vec![tokio::spawn(control.serve(requests))];
    if let Some(listener) = listener {
        tasks.push(tokio::spawn(http::serve(listener, HttpState { metrics: metrics.clone(), health: health.clone() })));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (done, mut ended) = oneshot::channel();
    let poller = Poller::new(config, kernel, attached, Models { active: model, shadow, loader }, metrics, health);
    let thread = std::thread::Builder::new()
        .name("sensor-poll".to_owned())
        .stack_size(2 * isolate::STACK)
        .spawn({
            let stop = stop.clone();
            move || {
                let result = poller.run(inbox, &stop);
                // The other side waits for this or has seen the signal; either way it joins the thread.
                let _ = done.send(());
                result
            }
        })
        .context("cannot start the poll thread")?;
    tracing::info!("ready");
    let reason = loop {
        tokio::select! {
            _ = interrupt.recv() => break "SIGINT",
            _ = terminate.recv() => break "SIGTERM",
            _ = &mut ended => break "the poll thread",
            _ = hangup.recv() => match jobs.try_send(Job::Again) {
                Ok(()) => tracing::info!("SIGHUP: loading the models again"),
                Err(_) => tracing::warn!("SIGHUP is ignored: models are being loaded"),
            },
        }
    };
    tracing::info!("stopping because of {reason}");
    stop.store(true, Ordering::Relaxed);
    // The thread looks at the flag once a poll, at most a second; a second signal is not needed.
    let result = tokio::task::spawn_blocking(move || thread.join()).await.context("waiting for the poll thread")?;
    end_tasks(tasks).await;
    match result {
        Ok(result) => result,
        Err(_) => bail!("the poll thread panicked; its programs are detached. Please report this with the log above"),
    }
}

/// Loads and attaches; on a failure takes off what was attached.
fn bring_up(config: &Config, capabilities: &Capabilities) -> Result<(Kernel, Vec<Attached>)> {
    let mut kernel = Kernel::load(&LoadOptions {
        flows: config.kernel.flows as usize,
        frags: capabilities.xdp_frags,
        context: config.context.sizes(),
        tagging: config.tag.enabled && config.mode != Mode::Observe,
        parser: config.flows.parser_options(),
        log_level: config.kernel.bpf_log as u8,
        replay_clock: false,
        floors: false,
        max_verdicts: LoadOptions::default().max_verdicts,
        seed: None,
    })
    .map_err(|error| {
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
    })?;
    kernel.control.set(&Control {
        tag_mark: config.tag.mark,
        tag_mask: config.tag.mask,
        tag_dscp: config.tag.dscp.map_or(NO_DSCP, u32::from),
        evict_idle_ticks: ticks(config.kernel.evict_idle) as u32,
        ..Control::zeroed()
    });
    // The policy stores only what the mode allows.
    kernel.verdicts.set_ceilings(|_| Action::Drop);
    let mut attached = Vec::new();
    for interface in &config.interfaces {
        match kernel.attach(interface, config.kernel.xdp_mode, capabilities.tcx) {
            Ok(one) => attached.push(one),
            Err(error) => {
                for one in attached {
                    if let Err(error) = kernel.detach(one) {
                        tracing::error!("{error:#}");
                    }
                }
                return Err(error);
            }
        }
    }
    Ok((kernel, attached))
}

/// One line for each thing that an operator wants to know of a start.
fn announce(config: &Config, kernel: &Kernel, attached: &[Attached], model: Option<&Model>) {
    for Attached { interface, xdp, egress, fallback, .. } in attached {
        match fallback {
            None => tracing::info!("{interface}: attached, XDP {}, egress {}", xdp.name(), egress.name()),
            Some(reason) => tracing::warn!(
                "{interface}: attached, ingress {}, egress {}; native XDP was refused: {reason}",
                xdp.name(),
                egress.name()
            ),
        }
    }
    tracing::info!(
        "flow table: {} flows; kernel maps: {:.1} MiB",
        kernel.table.capacity(),
        kernel.memory_bytes() as f64 / (1 << 20) as f64
    );
    match model {
        Some(model) => tracing::info!(
            "model {} ({}), {} features, labels {}, threshold {}",
            model.name,
            &model.hash[..model.hash.len().min(12)],
            model.features.len(),
            model.labels.join("|"),
            model.thresholds.report
        ),
        None => tracing::info!("no model: flows are counted, not scored"),
    }
    let meaning = match config.mode {
        Mode::Observe => "no packet is touched",
        Mode::Tag => "packets of reported flows are marked",
        Mode::Enforce => "packets of reported flows are dropped",
    };
    tracing::info!("mode {}: {meaning}", config.mode);
}

async fn end_tasks(tasks: Vec<JoinHandle<()>>) {
    for task in tasks {
        task.abort();
        // Cancelled is what it is meant to be; awaited, because the control socket's file goes with its task.
        let _ = task.await;
    }
}
