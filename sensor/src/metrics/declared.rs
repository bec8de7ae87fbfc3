//! Every metric, declared once: name, kind, unit, labels and help. Registration, the exposition, `sensor metrics` and
//! docs/metrics.md come from this table. No label ever holds an address or a port: cardinality is bounded by the
//! number of interfaces, the 256 labels of models that are told apart, and the enumerations of `sensor-common`.

use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

/// Kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows (from 0 at the agent's start).
    Counter,
    /// A level.
    Gauge,
    /// A distribution.
    Histogram,
}

impl Kind {
    /// The name in the exposition.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Debug)]
pub struct Metric {
    /// Full name in the Prometheus text format.
    pub name: &'static str,
    /// Kind.
    pub kind: Kind,
    /// Unit of the value.
    pub unit: &'static str,
    /// Label names, in order.
    pub labels: &'static [&'static str],
    /// What it counts. The final stop is added by the exposition.
    pub help: &'static str,
}

impl Metric {
    /// Name and unit as OpenMetrics wants them given: without `_total`, and without the unit's suffix.
    pub(super) fn open_metrics(&self) -> (&'static str, Option<Unit>) {
        let base = if self.kind == Kind::Counter { self.name.trim_end_matches("_total") } else { self.name };
        for (suffix, unit) in [("_seconds", Unit::Seconds), ("_bytes", Unit::Bytes)] {
            if let Some(name) = base.strip_suffix(suffix) {
                return (name, Some(unit));
            }
        }
        (base, None)
    }

    pub(super) fn metric_type(&self) -> MetricType {
        match self.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
        }
    }
}

macro_rules! declare {
    ($($id:ident: $kind:ident $name:literal, $unit:literal, [$($label:literal),*], $help:expr;)+) => {
        $(
            #[doc = $help]
            pub static $id: Metric =
                Metric { name: $name, kind: Kind::$kind, unit: $unit, labels: &[$($label),*], help: $help };
        )+

        /// All of them, in the order of the documentation.
        pub static ALL: &[&Metric] = &[$(&$id),+];
    };
}

declare! {
    BUILD_INFO: Gauge "sensor_build_info", "1", ["version"], "Always 1; the version of the agent";
    CONFIG_INFO: Gauge "sensor_config_info", "1", ["hash"], "Always 1; the configuration in force, by its hash";
    CONFIG_RELOADED: Gauge "sensor_config_last_reload_successful", "1", [],
        "1 if the configuration was taken when it was read last, 0 if it was refused and the one before it is in force";
    CONFIG_RELOAD_TIME: Gauge "sensor_config_last_reload_success_timestamp_seconds", "seconds", [],
        "When a configuration was taken last, Unix time";
    ATTACHED: Gauge "sensor_interface_attached", "1", ["interface"],
        "1 while the programs are on the interface; 0 while one that is named in the list is not there, or one cannot be watched: its packets are not seen";
    TAKEN_OFF: Counter "sensor_interface_taken_off_total", "times", ["interface"],
        "Times that somebody else had taken the agent's programs off an interface, and they were attached again";
    LINK_OVERRUNS: Counter "sensor_link_overruns_total", "overruns", [],
        "Times that the kernel had more changes of interfaces than there was room for, and all interfaces were listed anew";
    PACKETS: Counter "sensor_packets_total", "packets", ["interface", "direction", "action"],
        "Frames that the programs saw (a super-packet is one), by what was done with them";
    BYTES: Counter "sensor_bytes_total", "bytes", ["interface", "direction", "action"],
        "Bytes of the frames that the programs saw, link headers included";
    LOOKUPS: Counter "sensor_lookups_total", "lookups", ["interface", "result"],
        "Look-ups in the flow table: hit = the flow had a record, miss = the packet was the first of a flow";
    LOSS: Counter "sensor_loss_packets_total", "packets", ["stage", "cause"],
        "Packets that were passed but are in no flow record, or whose record never reached the agent";
    LEASE_EXPIRED: Counter "sensor_lease_expired_packets_total", "packets", ["interface"],
        "Packets that passed against a verdict because the lease of the agent had run out";
    WITHHELD: Counter "sensor_withheld_packets_total", "packets", ["interface", "action"],
        "Packets whose verdict asks for more than the mode or the breaker allows, by what mode enforce would have done with them";
    WITHHELD_BYTES: Counter "sensor_withheld_bytes_total", "bytes", ["interface", "action"],
        "Bytes of the packets whose verdict asks for more than the mode or the breaker allows";
    PROTECTED: Counter "sensor_protected_packets_total", "packets", ["interface"],
        "Packets that passed against a verdict because they are on the never-drop list";
    DROPPED_NEW: Counter "sensor_dropped_new_packets_total", "packets", ["interface", "cause"],
        "Dropped packets in no flow record: of blocked flows and sources, which were to begin one (verdict), or SYNs over the limit of their service or its address, which pass when they come again (half_open)";
    LIMIT_BUSY: Counter "sensor_limit_busy_packets_total", "packets", ["interface"],
        "Packets that passed a rate limit unasked because another CPU held it for too long";
    TAGGED: Counter "sensor_tagged_packets_total", "packets", ["interface"],
        "Packets that sensor_tag marked";
    KERNEL_CREATED: Counter "sensor_kernel_flows_created_total", "flows", ["interface"],
        "Flow records that the programs started";
    EVICTIONS: Counter "sensor_kernel_evictions_total", "flows", ["interface", "outcome"],
        "Flow records given up for a new flow, or complete by the active timeout: delivered to the agent, or lost because the ring was full";
    CREATED: Counter "sensor_flows_created_total", "flows", [], "Flow records started, all interfaces";
    ENDED: Counter "sensor_flows_ended_total", "flows", ["reason"], "Flows that ended, by reason";
    ENDED_PACKETS: Counter "sensor_ended_packets_total", "packets", ["outcome"],
        "Frames in records that left the table for the agent: released by it, or evicted by the programs; goes on in a takeover";
    UNSCORED: Counter "sensor_unscored_ended_flows_total", "flows", [],
        "Flows that ended without a last score because the poll had scored model.max_flows_per_poll others";
    ACTIVE: Gauge "sensor_flows_active", "flows", [], "Flow records in use";
    CAPACITY: Gauge "sensor_table_capacity", "flows", [], "Flow records that the table can hold";
    OCCUPANCY: Gauge "sensor_table_occupancy_ratio", "ratio", [], "Share of the table in use, 0 to 1";
    MAP_MEMORY: Gauge "sensor_map_memory_bytes", "bytes", [], "Memory of the kernel maps at load; verdicts and prefixes add to it";
    CONTEXT_ENTRIES: Gauge "sensor_context_entries", "entries", ["kind"],
        "Entries of the host context with a new flow in the last 60 s: sources and services, absent without context";
    CONTEXT_REPLACED: Counter "sensor_context_replaced_total", "entries", [],
        "Entries of the host context given up for others although they had a new flow in the last 60 s";
    CONTEXT_LOST: Counter "sensor_context_lost_flows_total", "flows", [],
        "New flows that the host context did not count because another CPU held the entry for too long";
    SCORED: Counter "sensor_scored_flows_total", "flows", [], "Scores that the model gave (a flow can have several)";
    INFERENCE: Histogram "sensor_inference_seconds", "seconds", [], "Duration of one inference call (one batch)";
    INFERENCE_ERRORS: Counter "sensor_inference_errors_total", "calls", [],
        "Inference calls that failed; their flows keep their verdicts and are scored again later";
    VERDICTS: Counter "sensor_verdicts_total", "verdicts", ["action", "label"], "Verdicts stored in flow records";
    WOULD: Counter "sensor_would_verdicts_total", "verdicts", ["action", "label"],
        "Verdicts that the mode withheld: what would have been done in mode enforce";
    REPORTED: Counter "sensor_reported_flows_total", "flows", ["label"],
        "Flows whose score is worth a report and nothing more: below the threshold of every action, or with a protected endpoint";
    MODEL_INFO: Gauge "sensor_model_info", "1", ["role", "hash", "name"],
        "Always 1; the models in use (active, shadow), absent without one";
    MODEL_LOADS: Counter "sensor_model_loads_total", "loads", ["role", "source", "result"],
        "Models that were loaded or refused, by what asked for it; a refused one leaves the model in use alone";
    MODEL_LOADED: Gauge "sensor_model_loaded_timestamp_seconds", "seconds", ["role"],
        "When the model in use was loaded, Unix time";
    SHADOW_FLOWS: Counter "sensor_shadow_decisions_total", "flows", ["active", "shadow"],
        "Flows that both models scored, by the action that mode enforce would take on the score of each";
    SHADOW_LABELS: Counter "sensor_shadow_labels_total", "flows", ["agreement"],
        "Flows that both models scored, by whether the two give the same label";
    SHADOW_DIFFERENCE: Histogram "sensor_shadow_score_difference", "1", [],
        "Difference between the scores of the two models, without its sign";
    SHADOW_INFERENCE: Histogram "sensor_shadow_inference_seconds", "seconds", [],
        "Duration of one inference call of the shadow model";
    SHADOW_SKIPPED: Counter "sensor_shadow_skipped_flows_total", "flows", [],
        "Flows that the shadow model had no time for in their poll";
    SHADOW_ERRORS: Counter "sensor_shadow_errors_total", "calls", [],
        "Inference calls of the shadow model that failed or gave no finite numbers";
    DRIFT_FEATURE: Gauge "sensor_drift_feature_psi", "1", ["feature"],
        "Population stability index of a feature of the active model in the last window (0.1: moderate, 0.25: high)";
    DRIFT_SCORE: Gauge "sensor_drift_score_psi", "1", [],
        "Population stability index of the score in the last window";
    DRIFT_LEVEL: Gauge "sensor_drift_level", "1", [],
        "Drift in the last window: 0 stable, 1 moderate, 2 high (of the score, or of a quarter of the features)";
    DRIFT_WINDOWS: Counter "sensor_drift_windows_total", "windows", [], "Windows of drift indices that were completed";
    DRIFT_FALLBACK: Gauge "sensor_drift_fallback_active", "1", [], "1 while drops become tags because drift is high";
    MODE: Gauge "sensor_mode", "1", ["mode"], "1 for the mode in force, 0 for the others";
    RAMP: Gauge "sensor_ramp_active", "1", [], "1 while policy.ramp lasts: only scores from policy.ramp_score on drop";
    BREAKER_OPEN: Gauge "sensor_breaker_open", "1", [], "1 while verdicts of models tag and no more";
    SERVICES_HELD: Gauge "sensor_breaker_held_services", "services", [],
        "Services whose flows without a proven source are tagged and no more";
    BREAKER_TRIPS: Counter "sensor_breaker_trips_total", "trips", ["cap"], "Times that the breaker opened, by the cap that was exceeded";
    VERDICTS_HELD: Gauge "sensor_verdicts_held", "verdicts", ["scope", "action", "origin"],
        "Verdicts that hold, by what mode enforce does";
    VERDICT_CHANGES: Counter "sensor_verdict_changes_total", "verdicts", ["change", "scope", "origin"],
        "Verdicts that were added, renewed, expired or removed";
    VERDICTS_REFUSED: Counter "sensor_verdicts_refused_total", "verdicts", [],
        "Verdicts of models and rules that are not held: no room (policy.max_verdicts), or the never-drop list forbids them";
    SPARED: Counter "sensor_spared_flows_total", "flows", ["reason"],
        "Flows that a model would drop or limit and that are tagged: their beginning was not seen, or they are a habit";
    VERDICT_ERRORS: Counter "sensor_verdict_errors_total", "writes", [], "Writes of verdicts or of the never-drop list that the kernel refused";
    NEVER_DROP: Gauge "sensor_never_drop_entries", "entries", ["why"], "Entries of the never-drop list, by reason";
    AUDIT_LINES: Counter "sensor_audit_lines_total", "lines", [], "Audit lines written to every sink";
    AUDIT_LOST: Counter "sensor_audit_lost_lines_total", "lines", [], "Audit lines that some sink did not get";
    LOG_LOST: Counter "sensor_log_lost_lines_total", "lines", ["sink"],
        "Log lines that standard error or the journal, and summary lines that standard output did not take: nobody read, or the disk was full";
    STORE_ERRORS: Counter "sensor_store_errors_total", "errors", [], "Failures to write the state that survives a restart; it is written again";
    STATE_KEPT: Gauge "sensor_state_kept", "1", [],
        "1 while changes of mode, never-drop list, breaker and verdicts would survive a restart, 0 while they would not, absent without agent.state_dir";
    LEASE: Gauge "sensor_lease_active", "1", [], "1 while the programs obey verdicts, 0 after the lease ran out";
    POLL: Histogram "sensor_poll_seconds", "seconds", [], "Duration of one poll of the flow table";
    OVERRUNS: Counter "sensor_poll_overruns_total", "polls", [], "Polls that took longer than the poll interval";
    PROGRAM_TIME: Counter "sensor_program_run_seconds_total", "seconds", ["program"],
        "Time in the kernel programs (0 while the statistics of the kernel are off)";
    PROGRAM_RUNS: Counter "sensor_program_runs_total", "runs", ["program"],
        "Runs of the kernel programs (0 while the statistics of the kernel are off)";
    PROCESS_CPU: Counter "process_cpu_seconds_total", "seconds", [], "User and system CPU time of the agent";
    PROCESS_MEMORY: Gauge "process_resident_memory_bytes", "bytes", [], "Resident memory of the agent, kernel maps that it maps included";
    OWN_MEMORY: Gauge "sensor_agent_memory_bytes", "bytes", [], "Resident memory of the agent without the kernel maps that it maps";
    PROCESS_START: Gauge "process_start_time_seconds", "seconds", [], "Start of the agent, Unix time";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let mut names: Vec<_> = ALL.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len(), "names are unique");
        for metric in ALL {
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert!(metric.name.starts_with("sensor_") || metric.name.starts_with("process_"), "{}", metric.name);
            assert!(!metric.help.ends_with('.') && !metric.help.contains(['\\', '"', '\n']), "{}", metric.help);
        }
    }
}
