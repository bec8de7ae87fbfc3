//! Runs the loaded kernel programs on frames (`BPF_PROG_TEST_RUN`), without an interface, and holds them to what the
//! same code does on the host and to what the table, the verdicts and the counters promise.
//!
//! Needs root (CAP_BPF, CAP_NET_ADMIN). Time is the replay clock, so every run is the same; but for `threads`.

#[cfg(feature = "bench")]
mod bench;
mod causes;
mod context;
mod conversations;
mod encapsulation;
mod parity;
mod rig;
mod table;
mod threads;
mod verdicts;
mod verdicts_allow;
mod verdicts_limits;
mod verdicts_modes;
mod verdicts_scopes;
mod verdicts_sources;
mod wire;
