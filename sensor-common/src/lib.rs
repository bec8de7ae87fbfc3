//! Everything that Sensor's kernel programs and its agent must agree on, and all pure logic that both run.
//!
//! The same parser and the same record update run in the kernel (compiled for the `bpf` target by `sensor-ebpf`) and
//! on the host over a capture, so a model is trained on exactly the numbers it is served. Nothing here allocates,
//! panics, reads a clock or knows of a map: time and bytes are arguments.
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
//! ```
#![cfg_attr(not(any(feature = "std", test)), no_std)]
#![forbid(unsafe_code)]

pub mod context;
pub mod control;
pub mod counter;
#[cfg(feature = "std")]
pub mod features;
pub mod flow;
pub mod hash;
pub mod packet;
pub mod table;
pub mod tcp;
pub mod verdict;
