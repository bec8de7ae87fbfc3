//! Hand-computed records: one conversation per rule, and invariants over random packets.

mod build;
mod invariants;
mod lifetime;
mod quick;
mod shape;
mod tcp;
mod window;
