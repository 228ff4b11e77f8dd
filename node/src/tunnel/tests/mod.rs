//! Node and connector over real QUIC on loopback.

mod drain;
mod enrol;
mod flow;
mod hostile;
mod lab;
