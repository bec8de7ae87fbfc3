//! The Sensor agent: reads flow records from the kernel, scores them with a model, writes verdicts back.
//!
//! `main → agent → {harvest, model, policy, metrics, http, control} → bpf → bpf::sys`. See ARCHITECTURE.md.

#![deny(unsafe_code)]

pub mod agent;
pub mod allow;
pub mod audit;
pub mod bpf;
pub mod breaker;
pub mod cli;
pub mod community_id;
pub mod company;
pub mod config;
pub mod context;
pub mod control;
pub mod doctor;
pub mod harvest;
pub mod host;
pub mod http;
pub mod interfaces;
pub mod logging;
pub mod metrics;
pub mod model;
pub mod policy;
pub mod replay;
pub mod service;
pub mod steady;
pub mod store;
pub mod summary;
pub mod support;
pub mod vector;
pub mod verdicts;
pub mod view;
