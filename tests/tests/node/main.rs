//! The node as an operator meets it: starting, refusing to start, reloading, dying, privileges, administration.

mod admin;
mod connectors;
mod lifecycle;
mod privacy;
mod reload;
