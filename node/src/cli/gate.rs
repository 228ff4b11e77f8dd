//! `portcullis admin gate …`: works with the daemon dead.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use crate::config::{Config, DEFAULT_PIN};
use crate::gate;

use super::{explain, output};

#[derive(Subcommand)]
pub(super) enum GateCommand {
    /// Which interfaces are guarded, and what was dropped and passed
    Status {
        /// Where the gate is pinned, when not as in the configuration
        #[arg(long)]
        pin: Option<PathBuf>,
    },
    /// What the gate does with a packet, and why: the verdict's path through the live maps
    Explain(explain::ExplainArgs),
    /// Break glass: take the gate down. Traffic flows until the node starts again
    Detach {
        /// Where the gate is pinned, when not as in the configuration
        #[arg(long)]
        pin: Option<PathBuf>,
    },
}

pub(super) fn run(command: GateCommand, config: Option<&Path>) -> anyhow::Result<()> {
    match command {
        GateCommand::Status { pin } => status(&pin_of(pin, config)?),
        GateCommand::Explain(args) => {
            let pin = pin_of(args.pin.clone(), config)?;
            explain::run(args, &pin)
        }
        GateCommand::Detach { pin } => {
            let taken = gate::detach(&pin_of(pin, config)?)?;
            if taken.is_empty() {
                return output::line("the gate was not up");
            }
            if let Some(path) = config {
                super::admin::record(path, &format!("gate detach: {}", taken.join(", ")));
            }
            taken.iter().try_for_each(|what| output::line(&format!("detached: {what}")))
        }
    }
}

/// A configuration with faults must not stand in the way of breaking glass: then the option says where.
fn pin_of(pin: Option<PathBuf>, config: Option<&Path>) -> anyhow::Result<PathBuf> {
    match (pin, config) {
        (Some(pin), _) => Ok(pin),
        (None, Some(path)) => Ok(Config::load(path)?.gate.pin),
        (None, None) => Ok(PathBuf::from(DEFAULT_PIN)),
    }
}

fn status(pin: &Path) -> anyhow::Result<()> {
    let status = gate::status(pin)?;
    if let Some(table) = &status.nftables {
        output::line("up, in userspace: nftables drops what is not named here")?;
        output::line(table.trim_end())?;
    }
    if !status.is_up() {
        return output::line(&format!("the gate is not up (nothing is pinned at {})", pin.display()));
    }
    for interface in &status.interfaces {
        let egress = match interface.egress {
            Some(hook) => format!("egress by {hook}"),
            None => "EGRESS PROGRAM MISSING: answers to this host's own datagrams are dropped".to_owned(),
        };
        output::line(&format!("{}: up, {} mode, {egress}", interface.interface, interface.mode))?;
    }
    let Some(counters) = status.counters else { return Ok(()) };
    let mut rows: Vec<Vec<String>> = counters
        .by_reason()
        .filter(|(_, _, packets)| *packets > 0)
        .map(|(verdict, reason, packets)| vec![verdict.to_owned(), reason.to_owned(), packets.to_string()])
        .collect();
    rows.sort();
    output::table(&["VERDICT", "REASON", "PACKETS"], &rows)
}
