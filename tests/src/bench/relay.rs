//! The relay as it is measured.

use anyhow::Result;

use super::Options;
use super::contender::Contender;
use super::figure::{Figure, Target, Unit};

/// Leaves by the interface that the packet came by.
pub const ONE_PORT: &str = "Portcullis relay";
/// Leaves by another.
pub const TWO_PORTS: &str = "Portcullis relay, two interfaces";

/// Why there is no figure.
pub const ABSENT: &str = "this gate relays nothing";

/// The gate with so many flows installed, from `traffic::sources` to `lab::TUNNEL`, relayed to the generator's own link in a lab with
/// one port and to `lab::SINK` in a lab with two. Nothing, while `portcullis::gate` takes no flows: then the figures say so.
pub fn install_relay(_flows: u32, _options: &Options) -> Result<Vec<Contender>> {
    Ok(Vec::new())
}

/// What the relay alone is asked: whether flows that are idle cost the active one, and whether a revoked session is over when the call
/// returns, counted at the gate.
pub fn figures(_options: &Options) -> Result<Vec<Figure>> {
    let idle = |installed| format!("time per packet of one flow among {installed} against alone");
    Ok(vec![
        Figure::unmeasured(&idle("1,000"), None, Unit::Ratio, Target::AtMost(1.1), ABSENT),
        Figure::unmeasured(&idle("100,000"), None, Unit::Ratio, Target::AtMost(1.1), ABSENT),
        Figure::unmeasured("packets of a revoked session passed", None, Unit::Packets, Target::Zero, ABSENT),
    ])
}
