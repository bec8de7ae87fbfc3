//! Enforcement from end to end: the real agent among hosts with real traffic, asked and ordered as an operator does, over
//! the control socket. Each test prints its numbers. Needs root.

mod audit;
mod breaker;
mod bulk;
mod commands;
mod control;
mod door;
mod lockout;
mod modes;
mod prefixes;
mod ramp;
mod rates;
mod reuse;
mod scene;
mod session;
mod spoofed;
mod state;
mod stream;
