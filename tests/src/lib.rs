//! The harness: hosts made of network namespaces, real servers, real clients, real attack tools, and the agent among
//! them. The demo, the traffic generator and the tests in `tests/` are made of these parts.
//!
//! Invariant: every part is a guard. Dropping it ends what it started (processes, then namespaces, then files), also
//! when a test panics, and nothing is ever done outside of namespaces that the guard made itself. What a run that
//! was killed leaves behind is removed by the next one ([`netns::sweep`]).

pub mod agent;
pub mod attacks;
pub mod capture;
pub mod cgroup;
pub mod checks;
pub mod clients;
pub mod content;
pub mod counters;
pub mod cpus;
pub mod crowd;
pub mod differences;
pub mod forger;
pub mod frames;
pub mod hostile;
pub mod live;
pub mod netns;
pub mod onnx;
pub mod parity;
pub mod pins;
pub mod process;
pub mod raw;
pub mod rng;
pub mod servers;
pub mod stop;
pub mod streams;
pub mod topology;
