//! The dark port, end to end: real kernel, real processes, namespaces of its own.

mod flood;
mod port;
mod pressure;
