//! Enforcement in the poll thread: the book of verdicts, the never-drop list, the breaker and the mode, each change of them
//! written through to the kernel, the records, the store and the audit.
//!
//! Invariants: the kernel's maps and the records follow the book within one poll; a verdict is checked against the
//! never-drop list before it is written, and the kernel checks again; nothing here waits for a disk or a reader. The
//! parts: [`enter`] (verdicts in and out), [`records`] (which follow the book), [`reconcile`] (after a takeover),
//! [`protect`] (the never-drop list), [`guards`] (what bounds a model), [`watch`] (once a second), [`half_open`]
//! (floods of SYNs), [`requests`] (the control socket), [`tagging`]. Owned by [`super::poll`].

mod enter;
mod guards;
mod half_open;
mod protect;
mod reconcile;
mod records;
mod requests;
mod tagging;
mod watch;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::mpsc::Receiver;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use sensor_common::verdict::{Action, Origin};

use super::clock::now_ns;
use super::poll::Poller;
use crate::allow::{Change, List, Why};
use crate::audit::{Audit, Event};
use crate::breaker::Breaker;
use crate::company::Company;
use crate::config::{Config, Mode, OriginName, PolicyConfig};
use crate::host::{self, Items, Lasting, Surroundings};
use crate::metrics::{ModelRole, VerdictChange};
use crate::policy::{self, Ramp};
use crate::steady::Steady;
use crate::store::{Doubt, SavedMode, State, Store};
use crate::verdicts::book::{Book, Room};
use crate::verdicts::pardon::Pardons;
use crate::verdicts::scope::Scope;
use crate::verdicts::{Moment, Verdict};

/// How long the last changes may take to reach the disk when the agent stops.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// What the poll thread knows of enforcement.
pub(super) struct Enforcer {
    pub(super) mode: Mode,
    pub(super) book: Book,
    pub(super) allow: List,
    pub(super) breaker: Breaker,
    pub(super) audit: Audit,
    pub(super) store: Store,
    /// `sensor_tag` could not be attached or taken off, which was said.
    tagging_failed: bool,
    /// Whether drops of models are held back because drift is high.
    pub(super) drifted: bool,
    /// Verdicts whose features may still be looked into in this second.
    pub(super) explanations: u32,
    saved_mode: Option<SavedMode>,
    /// What was kept is damaged: mode observe, until somebody says otherwise.
    pub(super) doubt: Option<Doubt>,
    /// How long mode enforce has been on.
    enforced: Option<Ramp>,
    ramp: bool,
    /// Sources that keep doing the same.
    pub(super) steady: Steady,
    /// Sources with accused flows.
    pub(super) company: Company,
    /// What operators took back.
    pub(super) pardons: Pardons,
    surroundings: Option<Receiver<Surroundings>>,
    /// Gateways and resolvers that looks found.
    found: [Lasting; 2],
    /// Sources whose records are to be looked at: their verdicts changed since the last poll.
    stale: Vec<IpNet>,
    /// Verdicts that were taken back since the last poll.
    again: Vec<Scope>,
    /// All records are to be looked at.
    all_stale: bool,
    /// The source that each flow verdict of drop speaks against, and how many do.
    accused: HashMap<u64, IpNet>,
    accusations: HashMap<IpNet, u32>,
    /// Packets of each service limit when it was last looked at.
    limited: HashMap<u64, u64>,
    /// Names of the interfaces with a route to IPv4 link-local addresses.
    link_local: HashSet<String>,
    /// Whether the kernel answers floods of SYNs to this host by cookies, as far as is known.
    syn_cookies: bool,
    /// That a flood is left to the kernel was said.
    left_to_cookies: bool,
}

/// Both clocks.
pub(super) fn moment() -> Moment {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Moment { ns: now_ns(), unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX) }
}

/// What is protected of this host, looked for before an earlier agent's lease is taken over: it can take a while.
pub(super) struct Around {
    pub(super) surroundings: Surroundings,
    pub(super) sessions: Option<Items>,
}

impl Around {
    pub(super) fn look(config: &Config) -> Around {
        let policy = &config.policy;
        Around { surroundings: host::surroundings(&policy.never_drop_host), sessions: host::sessions(policy) }
    }
}

impl Enforcer {
    /// Opens store and audit, and takes over what an earlier agent left. The never-drop list is whole, but the kernel has not
    /// got it yet.
    pub(super) fn start(config: &Config, around: Around) -> Enforcer {
        let directory = config.agent.state_dir.as_deref();
        let (mut store, saved) = Store::open(directory);
        let audit = Audit::open(&config.audit, directory);
        let now = moment();
        let mut book =
            Book::new(Room::new(config.policy.max_verdicts, config.policy.operator_share), saved.state.next_id);
        let (mut restored, mut ended, mut later) = (0, 0, 0);
        // If there is less room than there was, what people decided stays.
        let (automatic, by_people): (Vec<Verdict>, Vec<Verdict>) = saved
            .verdicts
            .into_iter()
            .partition(|verdict| matches!(verdict.origin, OriginName::Model | OriginName::Rule));
        for verdict in by_people.into_iter().chain(automatic) {
            let (id, waits) = (
                verdict.id,
                verdict.is_from_later(now) && !matches!(verdict.origin, OriginName::Model | OriginName::Rule),
            );
            match book.restore(verdict, now) {
                Some(_) => restored += 1,
                // An operator's waits for a start at which the clock is right.
                None if waits => later += 1,
                None => {
                    ended += 1;
                    store.no_verdict(id);
                }
            }
        }
        let policy = &config.policy;
        let mut allow = List::of(&policy.never_drop, &policy.never_drop_ports, &policy.never_drop_interfaces);
        for entry in saved.allowed {
            let item = entry.item.clone();
            if !allow.restore(entry, now) {
                store.no_allow(&item);
            }
        }
        let State { mode: saved_mode, enforced_ms, trip, quiet_ms, next_id: _, doubt } = saved.state;
        // Whoever changed the configuration's mode since has decided.
        let doubt = doubt.filter(|doubt| doubt.configured.is_none_or(|mode| mode == config.mode));
        let doubt = doubt.map(|doubt| Doubt { configured: Some(config.mode), ..doubt });
        // What was set by command holds until the configuration says something else than it did then.
        let saved_mode = saved_mode.filter(|saved| saved.configured == config.mode);
        let mode = saved_mode.map_or(config.mode, |saved| saved.mode);
        let mode = if doubt.is_some() { Mode::Observe } else { mode };
        if let Some(doubt) = &doubt {
            tracing::error!(
                "mode observe, because it is not known what was wanted: {}. Look at `sensor allow list`, then say what is wanted: \
                 `sensor mode {}`",
                doubt.text,
                config.mode
            );
        } else if mode != config.mode {
            tracing::warn!(
                "mode {mode}, which was set by command, goes before that of the configuration ({})",
                config.mode
            );
        }
        if restored + ended > 0 {
            tracing::info!("{restored} verdicts of an earlier agent go on; {ended} have ended since");
        }
        if later > 0 {
            tracing::error!(
                "{later} verdicts of operators are not in force: the clock says that they were entered later than now; set it, \
                 and start again"
            );
        }
        if let Some(trip) = &trip {
            tracing::warn!("the breaker is open since an earlier run: {trip}; `sensor breaker reset` closes it");
        }
        let mut enforcer = Enforcer {
            mode,
            book,
            allow,
            breaker: Breaker::new(config.breaker.clone(), trip, quiet_ms),
            audit,
            store,
            tagging_failed: false,
            drifted: false,
            // The first second's verdicts are explained, too.
            explanations: config.audit.explain_per_second,
            saved_mode,
            doubt,
            enforced: enforced_ms.filter(|_| mode == Mode::Enforce).map(Ramp::resume),
            ramp: false,
            steady: Steady::new(policy.steady()),
            company: Company::new(policy.accused_flows),
            pardons: Pardons::new(3 * config.policy.max_verdicts as usize),
            surroundings: host::watch(policy).inspect_err(|error| tracing::error!("{error:#}")).ok(),
            found: Default::default(),
            stale: Vec::new(),
            again: Vec::new(),
            all_stale: false,
            accused: HashMap::new(),
            accusations: HashMap::new(),
            limited: HashMap::new(),
            link_local: HashSet::new(),
            // Without knowing better, nothing is done in place of the kernel.
            syn_cookies: true,
            left_to_cookies: false,
        };
        let Around { surroundings, sessions } = around;
        enforcer.surround(surroundings);
        if let Some(sessions) = sessions {
            enforcer.replace(Why::Session, &sessions);
        }
        enforcer
    }

    /// The strongest action that is done for verdicts of an origin.
    pub(super) fn ceiling(&self, origin: Origin) -> Action {
        policy::ceiling(self.mode, origin, self.drifted || self.breaker.trip().is_some())
    }

    /// Whether the ramp lasts.
    pub(super) fn ramp(&self) -> bool {
        self.ramp
    }

    fn state(&self) -> State {
        State {
            mode: self.saved_mode,
            enforced_ms: self.enforced.map(|ramp| ramp.spent_ms()),
            trip: self.breaker.trip().copied(),
            quiet_ms: self.breaker.quiet_ms(),
            next_id: self.book.next_id(),
            doubt: self.doubt.clone(),
        }
    }

    /// The entries of a configuration on the never-drop list; what the kernel has to follow.
    pub(super) fn configure_allowed(&mut self, policy: &PolicyConfig) -> Vec<Change> {
        let PolicyConfig { never_drop, never_drop_ports, never_drop_interfaces, .. } = policy;
        let of = List::of(never_drop, never_drop_ports, never_drop_interfaces);
        let items: Items = of.items().map(|item| (item.clone(), String::new())).collect();
        self.replace(Why::Configuration, &items)
    }

    /// Gateways and resolvers are looked for anew.
    pub(super) fn look_anew(&mut self, surroundings: Receiver<Surroundings>) {
        self.surroundings = Some(surroundings);
        self.found = Default::default();
    }

    fn keep_state(&mut self) {
        let state = self.state();
        self.store.state(state);
    }
}

impl Poller {
    /// Writes everything that is known at the start to the kernel: ceilings, the never-drop list, verdicts.
    pub(super) fn begin_enforcement(&mut self) {
        self.protect_all();
        self.follow_half_open_limit();
        self.reconcile();
        self.count_ramp(moment());
        self.obey_ceilings();
        self.follow_tagging();
        let meaning = match self.enforcer.mode {
            Mode::Observe => "no packet is touched",
            Mode::Tag => "packets of flows under a verdict are marked",
            Mode::Enforce => "verdicts are obeyed",
        };
        tracing::info!("mode {}: {meaning}", self.enforcer.mode);
        let event = Event::Start {
            version: env!("CARGO_PKG_VERSION"),
            mode: self.enforcer.mode,
            verdicts: self.enforcer.book.len(),
        };
        self.enforcer.audit.write(event);
        let shadow = self.shadow.as_ref().map(|shadow| &shadow.model);
        for (role, model) in [(ModelRole::Active, self.model.as_ref()), (ModelRole::Shadow, shadow)] {
            let Some(model) = model else { continue };
            self.enforcer.audit.write(Event::Model {
                role: role.name(),
                name: model.name.clone(),
                model: model.hash.clone(),
                by: "start".to_owned(),
                refused: None,
            });
        }
        self.enforcer.keep_state();
        self.publish_enforcement();
    }

    /// Between lease and scan of each poll: what has ended goes, and records follow what has changed.
    pub(super) fn keep_verdicts(&mut self, now: u64) {
        self.expire_verdicts(now);
        self.clear_again(now);
        self.restamp(now);
    }

    /// A long list must not let the lease run out: called for each of its items.
    pub(super) fn breathe(&mut self, number: usize) {
        if number % 256 == 255 {
            self.renew_lease(now_ns());
        }
    }

    /// Tells the kernel what is done at most, for the next packet on.
    pub(super) fn obey_ceilings(&mut self) {
        let enforcer = &self.enforcer;
        self.kernel.verdicts.set_ceilings(|origin| enforcer.ceiling(origin));
    }

    /// Changes the mode by command; `by` is for the audit. It holds until the mode of the configuration changes.
    pub(super) fn set_mode(&mut self, to: Mode, by: String) {
        self.enforcer.saved_mode = Some(SavedMode { mode: to, configured: self.config.mode });
        self.enforcer.doubt = None;
        self.change_mode(to, by);
    }

    /// Takes the mode of the configuration, which has changed: what was set by command ends with that.
    pub(super) fn configure_mode(&mut self, by: String) {
        self.enforcer.saved_mode = None;
        self.enforcer.doubt = None;
        self.change_mode(self.config.mode, by);
    }

    fn change_mode(&mut self, to: Mode, by: String) {
        let from = self.enforcer.mode;
        if from != to {
            let now = moment();
            self.enforcer.mode = to;
            self.enforcer.enforced = None;
            self.count_ramp(now);
            self.obey_ceilings();
            self.follow_tagging();
            tracing::info!("mode {to}, before {from}, by {by}");
            self.enforcer.audit.write(Event::Mode { from, to, by });
            self.publish_enforcement();
        }
        self.enforcer.keep_state();
    }

    /// The last things that are written; verdicts stay in the store for the next agent.
    pub(super) fn end_enforcement(&mut self) {
        let enforcer = &mut self.enforcer;
        enforcer.audit.write(Event::Stop);
        if enforcer.store.is_behind() {
            let state = enforcer.state();
            enforcer.store.replace(enforcer.book.iter(), enforcer.allow.entries().into_iter(), state);
        }
        enforcer.keep_state();
        if !enforcer.store.flush(LAST_WRITE) {
            let directory = self.config.agent.state_dir.as_deref().unwrap_or(Path::new("agent.state_dir"));
            let why = enforcer.store.problem().unwrap_or_else(|| "the disk is slow".to_owned());
            tracing::error!("the last changes of verdicts may not be in {}: {why}", directory.display());
        }
        enforcer.audit.flush(LAST_WRITE);
    }

    fn note_change(&self, change: VerdictChange, verdict: &Verdict) {
        self.metrics.verdict_change(change, verdict.scope.kind(), verdict.origin);
    }
}
