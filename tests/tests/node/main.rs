//! The node as an operator meets it: starting, refusing to start, reloading, dying, privileges, administration.

mod admin;
mod audit;
mod boot;
mod connectors;
mod flap;
mod flood;
mod gated;
mod helper;
mod lifecycle;
mod privacy;
mod reload;
