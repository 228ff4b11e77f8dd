//! The relay as it is measured.

use anyhow::Result;

use super::Options;
use super::contender::Contender;

/// Leaves by the interface that the packet came by.
pub const ONE_PORT: &str = "Portcullis relay";
/// Leaves by another.
pub const TWO_PORTS: &str = "Portcullis relay, two interfaces";

/// The gate with so many flows installed, from `traffic::sources` to `lab::TUNNEL`, relayed to the generator's own link in a lab with
/// one port and to `lab::SINK` in a lab with two. Nothing, while `portcullis::gate` takes no flows: then the figures say so.
pub fn install_relay(_flows: u32, _options: &Options) -> Result<Vec<Contender>> {
    Ok(Vec::new())
}
