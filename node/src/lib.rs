//! Portcullis, a self-hosted access node. The stages of the daemon lane are in [`flow`]: start reading there.

pub mod admin;
pub mod cli;
pub mod clock;
pub mod config;
pub mod context;
pub mod cookie;
pub mod edge;
pub mod event;
pub mod flow;
pub mod gate;
pub mod helper;
pub mod identity;
pub mod metrics;
pub mod ops;
pub mod places;
pub mod policy;
pub mod portal;
pub mod privilege;
pub mod recent;
pub mod role;
pub mod seal;
pub mod session;
pub mod store;
pub mod token;
pub mod tunnel;
