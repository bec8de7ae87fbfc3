//! The agent's only door to the kernel: load, attach, shared memory. Nothing outside this module imports aya.
//!
//! [`sys`] holds all `unsafe` of the agent; [`load`] makes programs and maps of the embedded object, which `object` chooses, [`memory`]
//! adds up what the maps take, [`context`] is two of them, `books` are what left them, and `balance` (feature `inspect`) adds it all up,
//! [`run`] names the programs and runs them without an interface; [`attach`] puts them on interfaces and takes them off again; `bench`
//! (feature `bench`) has what these are compared with; [`verdicts`] keeps the maps of verdicts and the never-drop list; [`probe`]
//! says what this kernel can do.

pub mod attach;
#[cfg(feature = "inspect")]
pub mod balance;
#[cfg(feature = "bench")]
pub mod bench;
mod books;
pub mod context;
pub mod load;
pub mod memory;
mod object;
pub mod pins;
pub mod probe;
pub mod qdisc;
pub mod run;
pub mod sys;
pub mod verdicts;
