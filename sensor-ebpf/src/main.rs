//! Sensor's kernel programs: `sensor_xdp` (ingress) or `sensor_ingress` (TC ingress, where drivers have no XDP),
//! `sensor_egress` (TC egress) and `sensor_tag` (TC ingress).
//!
//! This crate is the thin shell that the verifier sees: contexts, maps, packet pointers, atomics. What a packet means
//! and how it changes a record is in `sensor-common`, where the host runs the same code. Every path passes the packet
//! unless a verdict says drop, and counts what it could not do.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod atomic;
#[cfg(target_arch = "bpf")]
#[cfg_attr(not(feature = "bench"), path = "bench/off.rs")]
mod bench;
#[cfg(target_arch = "bpf")]
mod context;
#[cfg(target_arch = "bpf")]
mod datapath;
#[cfg(target_arch = "bpf")]
mod fragments;
#[cfg(target_arch = "bpf")]
mod frame;
#[cfg(target_arch = "bpf")]
mod lock;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod parse;
#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
mod quotes;
#[cfg(target_arch = "bpf")]
mod record;
#[cfg(target_arch = "bpf")]
mod table;
#[cfg(target_arch = "bpf")]
mod tag;
#[cfg(target_arch = "bpf")]
mod verdicts;

/// The crate is a program for the kernel; for the host there is nothing to run (`cargo xtask ebpf` builds the object).
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects a program in which this could be reached.
    loop {}
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
