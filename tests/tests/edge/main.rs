//! The edge against clients that write bytes of their own, with a recording origin behind it.

mod decisions;
mod hostile;
mod node;
mod origins;
mod patience;
mod posts;
mod sessions;
mod streams;
mod tls;
