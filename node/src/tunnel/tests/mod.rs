//! Node and connector over real QUIC on loopback.

mod amplification;
mod drain;
pub(crate) mod ends;
mod enrol;
mod flow;
mod hostile;
pub(super) mod lab;
mod private;
