//! `cargo xtask bench sessions`: private sessions from the client's listener to the origin, beside a bare redirect and beside other
//! ways to a machine that accepts no inbound connection. See `docs/benchmarks.md`.
//!
//! | module | gives |
//! |---|---|
//! | `bulk`, `cost`, `echo`, `first_byte`, `memory` | the figures |
//! | `lab`, `delay`, `origin` | namespaces with node, connector and client; a slow link; what is at the end |
//! | `bare`, `direct` | a bare redirect in the gate's place; the kernel's own path without it |
//! | `peers` | SSH, WireGuard and rathole |
//! | `report` | the table and JSON |

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

mod bare;
mod bulk;
mod cost;
mod delay;
mod direct;
mod echo;
mod first_byte;
mod lab;
mod memory;
mod origin;
mod peers;
mod report;

pub use report::Report;

use bare::Swap;
use lab::{Plane, World};

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Bytes a second, beside a bare redirect and the peers
    Bulk,
    /// A byte there and back
    Echo,
    /// CPU of the node for each byte
    Cost,
    /// How long the first byte takes, over a slow link
    FirstByte,
    /// Memory of the node for each of ten thousand sessions
    Memory,
}

/// How to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rounds, of which the median counts.
    pub runs: usize,
    /// Length of one run of one contender.
    pub length: Duration,
    /// All of them where there is none.
    pub only: Vec<Part>,
}

impl Options {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// Measures what is wanted. `say` is told what comes next.
pub fn run(options: &Options, say: &dyn Fn(&str)) -> Result<Report> {
    let mut report = Report::new(options);
    if [Part::Bulk, Part::Echo, Part::Cost].into_iter().any(|part| options.wants(part)) {
        through_the_gate(options, say, &mut report)?;
    }
    if options.wants(Part::FirstByte) {
        say("the first byte over a slow link");
        report.figures.extend(first_byte::figures(options)?);
    }
    if options.wants(Part::Memory) {
        say("ten thousand idle sessions");
        report.figures.push(memory::figure()?);
    }
    Ok(report)
}

fn through_the_gate(options: &Options, say: &dyn Fn(&str), report: &mut Report) -> Result<()> {
    let relayed = World::start(Plane::Xdp, None)?;
    let _client = relayed.connect()?;
    // So that the session of the sink is the busiest.
    relayed.bulk(options.length)?;
    let swap = Swap::new(&relayed.pin())?;
    if options.wants(Part::Bulk) {
        say("a session through the gate, and its peers");
        report.figures.extend(bulk::figures(&relayed, &swap, options)?);
    }
    if options.wants(Part::Echo) {
        say("a byte there and back");
        report.figures.push(echo::figure(&relayed, options)?);
    }
    if options.wants(Part::Cost) {
        say("CPU of the node");
        report.figures.extend(cost::figures(&relayed, &swap, options)?);
    }
    Ok(())
}
