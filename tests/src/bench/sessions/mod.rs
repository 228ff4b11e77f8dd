//! `cargo xtask bench sessions`: private sessions from the client's listener to the origin, beside a bare redirect and beside other
//! ways to a machine that accepts no inbound connection. See `docs/benchmarks.md`.
//!
//! | module | gives |
//! |---|---|
//! | `bulk`, `cost`, `echo`, `first_byte` | the figures |
//! | `lab`, `delay`, `origin` | namespaces with node, connector and client; a slow link; what is at the end |
//! | `bare` | a bare redirect in the gate's place |
//! | `peers` | SSH, WireGuard and rathole |
//! | `report` | the table and JSON |

use std::time::Duration;

use anyhow::Result;

mod bare;
mod bulk;
mod cost;
mod delay;
mod echo;
mod first_byte;
mod lab;
mod origin;
mod peers;
mod report;

pub use report::Report;

use bare::Swap;
use lab::{Plane, World};

/// How to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rounds, of which the median counts.
    pub runs: usize,
    /// Length of one run of one contender.
    pub length: Duration,
}

/// Measures everything. `say` is told what comes next.
pub fn run(options: &Options, say: &dyn Fn(&str)) -> Result<Report> {
    let mut report = Report::new(options);
    say("a session through the gate, and its peers");
    let relayed = World::start(Plane::Xdp, None)?;
    let _client = relayed.connect()?;
    // So that the session of the sink is the busiest.
    relayed.bulk(options.length)?;
    let swap = Swap::new(&relayed.pin())?;
    report.figures.extend(bulk::figures(&relayed, &swap, options)?);
    say("a byte there and back");
    report.figures.push(echo::figure(&relayed, options)?);
    say("CPU of the node");
    report.figures.extend(cost::figures(&relayed, &swap, options)?);
    say("the first byte over a slow link");
    report.figures.extend(first_byte::figures(options)?);
    Ok(report)
}
