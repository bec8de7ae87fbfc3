//! The Sensor agent.

pub mod bpf;
pub mod cli;
pub mod config;
pub mod control;
pub mod doctor;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod summary;
pub mod view;
pub mod model;
pub mod replay;
pub mod vector;
