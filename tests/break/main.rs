//! What a hostile operator or attacker tried, one module a scenario: each failed once, and holds since.
//!
//! Each asks from outside whether the host is worse off with Sensor than without it. The short forms run with all other
//! tests; `cargo xtask chaos` mixes them for as long as it is told.

mod blocked_output;
mod control_readers;
mod kept_state;
