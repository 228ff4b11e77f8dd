//! Administration: one closed set of commands, run by one service, over a unix socket or straight on the store.
//!
//! [`wire`] has the commands, [`service`] runs them, `socket` answers them on the admin socket and [`client`] asks.
//! Every command that changes something writes one event with the caller's uid, before it is reported as done.

pub mod client;
mod gate;
pub mod service;
mod service_tokens;
mod socket;
pub mod wire;

pub use gate::GateDesk;
pub use socket::{Listener, serve};
