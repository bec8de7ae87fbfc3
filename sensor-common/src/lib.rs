//! Everything that Sensor's kernel programs and its agent must agree on, and all pure logic that both run.
//!
//! The same parser and the same record update run in the kernel (compiled for the `bpf` target by `sensor-ebpf`) and
//! on the host over a capture, so a model is trained on exactly the numbers it is served. Nothing here allocates,
//! panics, reads a clock or knows of a map: time and bytes are arguments.
//!
//! To extract features in a program of your own: [`packet::parse`] each frame, keep a [`flow::FlowRecord`] per
//! [`flow::FlowKey`], and ask the feature contract (module `features`, with the cargo feature `std`) for values.
//!
//! ```
//! use sensor_common::{flow::FlowRecord, packet};
//!
//! // A UDP datagram of 4 payload bytes in an Ethernet frame.
//! let mut frame = vec![0u8; 12];
//! frame.extend([0x08, 0x00]); // IPv4
//! frame.extend([0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 198, 18, 0, 1, 198, 18, 0, 2]);
//! frame.extend([0x30, 0x39, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
//! let packet = packet::parse(&frame[..]).expect("well-formed");
//! let mut record = FlowRecord::zeroed();
//! record.start(&packet, 1_000, 0, 1);
//! record.update(&packet, 1_000);
//! assert_eq!(record.forward().payload_bytes, 4);
//!
//! # #[cfg(feature = "std")]
//! # {
//! use sensor_common::features::{Sample, by_name};
//! let value = |name| by_name(name).expect("a feature").value(&Sample::of(&record));
//! assert_eq!((value("fwd_packets"), value("fwd_l3_bytes")), (1.0, 32.0));
//! // Missing is not zero: nothing came back.
//! assert!(value("bwd_l3_mean").is_nan());
//! # }
//! ```
//!
//! A frame can be anything that implements [`packet::Frame`]: `&[u8]`, a cut frame of a capture ([`packet::Captured`]), or
//! memory of your own. `examples/features.rs` is a whole program.
#![cfg_attr(not(any(feature = "std", test)), no_std)]
#![forbid(unsafe_code)]

pub mod context;
pub mod control;
pub mod counter;
pub mod cut;
#[cfg(any(feature = "std", test))]
pub mod features;
pub mod flow;
pub mod fragment;
pub mod hash;
pub mod lock;
pub mod packet;
#[cfg(any(feature = "std", test))]
pub mod schema;
pub mod table;
pub mod tcp;
pub mod verdict;
pub mod whole;
