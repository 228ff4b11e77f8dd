//! The gate: what it decides, that the kernel and the host decide alike, and that it holds on real
//! interfaces in namespaces of its own.

mod closed;
mod clsact;
mod cookie;
mod differential;
mod events;
mod explain;
mod lab;
mod lifecycle;
mod limits;
mod reach;
mod relay;
mod relay_ends;
mod relay_full;
mod relay_host;
mod relay_lab;
mod relay_traffic;
mod rewrite;
mod tcp;
mod tunnel;
mod userspace;
mod verdicts;
