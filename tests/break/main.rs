//! What a hostile operator or attacker tried, one module a scenario: each failed once, and holds since.
//!
//! Each asks from outside whether the host is worse off with Sensor than without it. The short forms run with all other
//! tests; `cargo xtask chaos` mixes them for as long as it is told.

mod alone;
mod blocked_output;
mod breaker;
mod chaos;
mod control_readers;
mod detached;
mod forged_udp;
mod full_book;
mod guard_scene;
mod health_checks;
mod host;
mod kept_state;
mod long_pause;
mod made_up_sources;
mod midstream;
mod model_memory;
mod reused_port;
mod syn_flood;
