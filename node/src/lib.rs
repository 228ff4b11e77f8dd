//! Portcullis, a self-hosted access node. The stages of the daemon lane are in [`flow`]: start reading there.

pub mod clock;
pub mod flow;
pub mod policy;
