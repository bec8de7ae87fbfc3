//! `sensor run`: brings everything up in an order in which any failure leaves nothing behind, waits for a signal, and
//! takes everything down again.
//!
//! Order: checks → model → sockets → programs → attach → poll. Traffic is touched by none of it before the last step. Where an
//! agent runs already and is to be replaced, it goes on up to the sockets ([`start`]).

mod apply;
#[cfg(feature = "bench")]
pub mod bench;
mod clock;
mod context;
mod detach;
mod dump;
mod enforce;
mod interfaces;
mod life;
mod poll;
mod reload;
mod report;
mod score;
mod start;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use self::apply::Settled;
pub use self::detach::detach;
use self::enforce::Around;
use self::interfaces::Interfaces;
use self::poll::{Ending, Models, Poller, Watched};
use self::reload::{Files, Job, Loader};
use self::start::Beginning;
pub use self::start::Takeover;
use crate::bpf::attach::{self, Attached};
use crate::bpf::load::Kernel;
use crate::bpf::memory::mib;
use crate::bpf::probe::links::Links;
use crate::bpf::probe::{self, Capabilities};
use crate::config::{Config, Source};
use crate::control::{Access, ControlSocket, SharedPolicy};
use crate::http::{self, Health, Hosts, HttpState};
use crate::interfaces::List;
use crate::logging::Logger;
use crate::metrics::Metrics;
use crate::model::{Model, accept, isolate};
use crate::service;

/// Interfaces that have a line of their own in the log at the start.
const ANNOUNCED: usize = 32;
/// Requests that may wait for the poll thread.
const REQUESTS: usize = 16;
/// Time between two tries to have files read after SIGHUP.
const AGAIN: Duration = Duration::from_millis(200);

/// Runs the agent until SIGINT or SIGTERM, or until another agent takes over. `config` is what came of `source`, which is asked
/// again when the agent reloads; `logger` follows. `takeover`: whether and when this one takes over from another.
///
/// # Errors
/// Whatever kept it from starting, or from taking its programs off at the end; nothing stays attached.
pub fn run(mut config: Config, source: Source, logger: Logger, takeover: Option<Takeover>) -> Result<()> {
    let capabilities = probe::kernel();
    check(&capabilities)?;
    let configured = config.clone();
    if config.interfaces.is_empty() {
        match probe::default_interface() {
            Ok(name) => config.interfaces = vec![name],
            // At boot the route may come later than the agent, and on some hosts much later.
            Err(error) => tracing::warn!("nothing is watched until there is a default route: {error:#}"),
        }
    }
    // Before anything is changed: an agent that runs goes on if this one cannot take over.
    for name in List::parse(&config.interfaces)?.names() {
        attach::ifindex(name)?;
    }
    let files = Files::now(&config);
    service::starting(&config, "checking the model");
    let model = load_model(config.model.path.as_deref(), &config)?;
    service::starting(&config, "checking the shadow model");
    let shadow = load_model(config.model.shadow.as_deref(), &config)?;
    service::starting(&config, "loading and attaching programs");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let beginning = Beginning::new(&config, &capabilities, takeover)?;
    let origin = Origin { source, configured, logger };
    runtime.block_on(serve(config, origin, model, shadow, files, &capabilities, beginning))
}

/// Has the configuration and the models read again, because of SIGHUP; whether there was room for that.
fn reload(jobs: &std::sync::mpsc::SyncSender<Job>) -> bool {
    let asked = jobs.try_send(Job::Reload { by: "SIGHUP".to_owned(), reply: None }).is_ok();
    if asked {
        tracing::info!("SIGHUP: reading the configuration and the models again");
    }
    asked
}

/// What the kernel must have before anything is tried.
fn check(capabilities: &Capabilities) -> Result<()> {
    ensure!(
        !capabilities.privileges.user_namespace,
        "this is a user namespace (an unprivileged container, `unshare --user`): whatever privileges it gives, the kernel loads \
         no programs for it; run this as root of the host, or see `sensor doctor`"
    );
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
            "this kernel ({}.{}) does not take {what}: Sensor needs Linux 6.1 or newer with CONFIG_BPF_SYSCALL; see \
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

/// What a reload begins with.
struct Origin {
    source: Source,
    /// What came of it, before the start filled in what it found.
    configured: Config,
    logger: Logger,
}

async fn serve(
    config: Config,
    Origin { source, configured, logger }: Origin,
    model: Option<Model>,
    shadow: Option<Model>,
    files: Files,
    capabilities: &Capabilities,
    mut beginning: Beginning,
) -> Result<()> {
    // Before anything is attached, so that a signal at any time ends in an orderly stop.
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot catch SIGHUP")?;
    let mut user = signal(SignalKind::user_defined2()).context("cannot catch SIGUSR2")?;
    let around = Around::look(&config);
    // Between this and the first poll nobody looks at the table.
    beginning.take_over(&config.agent.socket).await?;
    let metrics = Arc::new(Metrics::new());
    let health = Arc::new(Health::new(Instant::now(), config.agent.lease));
    let group = Some(config.agent.socket_group.clone()).filter(|group| !group.is_empty());
    let shared = SharedPolicy::new(config.policy.clone().into());
    let access = Access { group, policy: shared.clone() };
    let control = ControlSocket::bind(&config.agent.socket, access).await?;
    let listener = match config.metrics.listen {
        Some(address) => Some(http::bind(address).await?),
        None => None,
    };
    // Before anything is attached, so that no change is missed, and so that a failure leaves nothing behind.
    let (list, links) = (List::parse(&config.interfaces)?, Links::follow()?);
    let (kernel, attached) = beginning.bring_up(&config, &list, &links.now(), capabilities)?;
    announce(&kernel, &attached, model.as_ref());
    let interfaces = Interfaces::new(list, links, &kernel, capabilities.tcx)?;
    let maps = kernel.memory();
    let settled = Settled::new(source.file.clone(), configured.clone(), shared, Some(logger));
    let loader = Loader::start(&configured, source, files)?;
    let jobs = loader.jobs.clone();

    let (requests, inbox) = mpsc::channel(REQUESTS);
    let mut tasks = vec![tokio::spawn(control.serve(requests))];
    if let Some(listener) = listener {
        let hosts = Arc::new(Hosts::new(&config.metrics.allowed_hosts));
        let state = HttpState { metrics: metrics.clone(), health: health.clone(), hosts };
        tasks.push(tokio::spawn(http::serve(listener, state)));
    }
    let ending = Arc::new(Ending::default());
    let (done, mut ended) = oneshot::channel();
    let (begin, begun) = oneshot::channel();
    let own = metrics.clone();
    let poller = Poller::new(
        config,
        kernel,
        Watched { attached, interfaces },
        Models { active: model, shadow, loader },
        metrics,
        health,
        around,
        settled,
    );
    let thread = std::thread::Builder::new()
        .name("sensor-poll".to_owned())
        .stack_size(2 * isolate::STACK)
        .spawn({
            let ending = ending.clone();
            move || {
                let result = poller.run(inbox, &ending, begin);
                // The other side waits for this or has seen the signal; either way it joins the thread.
                let _ = done.send(());
                result
            }
        })
        .context("cannot start the poll thread")?;
    // Verdicts that go on are in force from the first poll on. If the thread ends before it, the loop below says so.
    if begun.await.is_ok() {
        tracing::info!(
            "memory: {:.1} MiB of the agent's own, and kernel maps of {:.1} MiB, {:.1} MiB of which count as resident here, too",
            mib(own.own_memory()),
            mib(maps.taken),
            mib(maps.mapped)
        );
        service::ready();
        tracing::info!("ready");
    }
    // A SIGHUP that has to wait while other files are being loaded.
    let (mut asked, mut again) = (false, tokio::time::interval(AGAIN));
    let reason = loop {
        tokio::select! {
            _ = user.recv() => {
                ending.leave();
                break "SIGUSR2";
            }
            _ = interrupt.recv() => break "SIGINT",
            _ = terminate.recv() => break "SIGTERM",
            _ = &mut ended => break "the poll thread",
            _ = hangup.recv() => asked = !reload(&jobs),
            _ = again.tick(), if asked => asked = !reload(&jobs),
        }
    };
    service::stopping(reason);
    tracing::info!("stopping because of {reason}");
    ending.stop();
    // The thread looks at the flag once a poll, at most a second; a second signal is not needed.
    let result = tokio::task::spawn_blocking(move || thread.join()).await.context("waiting for the poll thread")?;
    end_tasks(tasks).await;
    match result {
        // What was left to another agent is locked until here: it begins when sockets and store are free.
        Ok(result) => result.map(drop),
        Err(_) => bail!("the poll thread panicked; its programs are detached. Please report this with the log above"),
    }
}

/// One line for each thing that an operator wants to know of a start.
fn announce(kernel: &Kernel, attached: &[Attached], model: Option<&Model>) {
    for Attached { interface, xdp, egress, fallback, .. } in attached.iter().take(ANNOUNCED) {
        match fallback {
            None => tracing::info!("{interface}: attached, XDP {}, egress {}", xdp.name(), egress.name()),
            Some(reason) => tracing::warn!(
                "{interface}: attached, ingress {}, egress {}; native XDP was refused: {reason}",
                xdp.name(),
                egress.name()
            ),
        }
    }
    match attached.len() {
        0 => tracing::info!("no interface matches yet: those that come are watched"),
        count @ ..=ANNOUNCED => tracing::debug!("{count} interfaces"),
        count => tracing::info!("{} more interfaces: attached", count - ANNOUNCED),
    }
    let memory = kernel.memory();
    tracing::info!(
        "flow table: {} flows; kernel maps: {:.1} MiB, at most {:.1} MiB with all verdicts and prefixes that there may be",
        kernel.table.capacity(),
        mib(memory.taken),
        mib(memory.most)
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
}

async fn end_tasks(tasks: Vec<JoinHandle<()>>) {
    for task in tasks {
        task.abort();
        // Cancelled is what it is meant to be; awaited, because the control socket's file goes with its task.
        let _ = task.await;
    }
}
