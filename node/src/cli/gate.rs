//! `portcullis admin gate …`: works with the daemon dead.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::Value;

use crate::admin::client::Target;
use crate::admin::wire::Request;
use crate::config::{Config, DEFAULT_PIN, parse_duration};
use crate::gate::{self, Dataplane, FlowStatus, Gate, Leg, SessionStatus, Standing};
use crate::ops::Source;

use super::{explain, output};

#[derive(Subcommand)]
pub(super) enum GateCommand {
    /// Which interfaces are guarded, and what was dropped and passed
    Status {
        /// Where the gate is pinned, when not as in the configuration
        #[arg(long)]
        pin: Option<PathBuf>,
    },
    /// Put the gate up as the configuration says, without a node: for boot, and for interfaces that appear.
    /// Interfaces that are not there are left out
    Up {
        /// Only if this interface is configured
        #[arg(long)]
        interface: Option<String>,
    },
    /// What the gate does with a packet, and why: the verdict's path through the live maps
    Explain(explain::ExplainArgs),
    /// Drops by reason, and who they come from
    Top {
        /// Where the gate is pinned, when not as in the configuration
        #[arg(long)]
        pin: Option<PathBuf>,
        /// How long to look
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
        seconds: u64,
    },
    /// From audit mode: drop on trial. The kernel ends the trial by itself unless `confirm` comes in time
    Enforce {
        /// Length of the trial, like 120s
        #[arg(long, value_parser = parse_duration)]
        confirm_within: Duration,
    },
    /// End the trial: drop from now on, and after every restart
    Confirm,
    /// Go back to audit mode: count drops, and do none
    Audit,
    /// Which sessions the gate relays by itself, and what they have carried
    Flows {
        /// Where the gate is pinned, when not as in the configuration
        #[arg(long)]
        pin: Option<PathBuf>,
    },
    /// Break glass: take the gate down. Traffic flows until the node starts again
    Detach {
        /// Where the gate is pinned, when not as in the configuration
        #[arg(long)]
        pin: Option<PathBuf>,
    },
}

pub(super) fn run(command: GateCommand, config: Option<&Path>, node: &Target) -> anyhow::Result<()> {
    match command {
        GateCommand::Status { pin } => status(&pin_of(pin, config)?),
        GateCommand::Up { interface } => up(config.context("`up` needs --config")?, interface.as_deref()),
        GateCommand::Explain(args) => {
            let pin = pin_of(args.pin.clone(), config)?;
            explain::run(args, &pin)
        }
        GateCommand::Top { pin, seconds } => top(&pin_of(pin, config)?, node, Duration::from_secs(seconds)),
        GateCommand::Enforce { confirm_within } => {
            let request = Request::GateEnforce { seconds: confirm_within.as_secs() };
            ask(node, request, |_| {
                output::line(&format!(
                    "the gate drops for {} s, and then only counts again. If all is well, say so on a new connection: \
                     `portcullis admin gate confirm`",
                    confirm_within.as_secs()
                ))
            })
        }
        GateCommand::Confirm => {
            ask(node, Request::GateConfirm, |_| output::line("confirmed: the gate enforces"))
        }
        GateCommand::Audit => ask(node, Request::GateAudit, |value| {
            output::line(match value["restart"].as_bool() {
                Some(true) => "audit mode: from the node's next start on, drops are counted, not done",
                _ => "audit mode: drops are counted, not done",
            })
        }),
        GateCommand::Flows { pin } => flows(&pin_of(pin, config)?),
        GateCommand::Detach { pin } => {
            let taken = gate::detach(&pin_of(pin, config)?)?;
            if taken.is_empty() {
                return output::line("the gate was not up");
            }
            if let Some(path) = config {
                super::offline::record(path, &format!("gate detach: {}", taken.join(", ")));
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

/// What is up already stays as it is.
fn up(config: &Path, interface: Option<&str>) -> anyhow::Result<()> {
    let config = Config::load(config)?;
    let configured = &config.gate.interfaces;
    if configured.is_empty() || interface.is_some_and(|name| configured.iter().all(|known| known != name)) {
        return Ok(());
    }
    let wanted = config.gate_config(crate::role::gate_mode(&config)?);
    let wanted = if wanted.dataplane == Dataplane::Xdp { wanted.present()? } else { wanted };
    if wanted.interfaces.is_empty() {
        return output::line("no configured interface is there yet");
    }
    Gate::open(&wanted)?;
    output::line(&format!("the gate is up: {}", wanted.interfaces.join(", ")))
}

fn ask(node: &Target, request: Request, each: impl FnMut(Value) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(node.ask(request, each))
}

/// Rates are the difference of two looks at the kernel's counters. Only a running node knows sources: it alone reads
/// the samples.
fn top(pin: &Path, node: &Target, time: Duration) -> anyhow::Result<()> {
    let drops = || -> anyhow::Result<Vec<(&'static str, u64)>> {
        let counters = gate::status(pin)?.counters;
        let counters = counters.with_context(|| format!("no gate is pinned at {}", pin.display()))?;
        let drops = counters.by_reason().filter(|(verdict, ..)| *verdict == "drop");
        Ok(drops.map(|(_, reason, packets)| (reason, packets)).collect())
    };
    let before = drops()?;
    std::thread::sleep(time);
    let mut rates: Vec<(&str, u64)> = drops()?
        .into_iter()
        .zip(before)
        .map(|((reason, now), (_, then))| (reason, now.saturating_sub(then)))
        .filter(|(_, packets)| *packets > 0)
        .collect();
    rates.sort_by_key(|(reason, packets)| (std::cmp::Reverse(*packets), *reason));
    let rows: Vec<Vec<String>> = rates
        .iter()
        .map(|(reason, packets)| {
            let tenths = packets * 10 / time.as_secs().max(1);
            vec![(*reason).to_owned(), format!("{}.{}", tenths / 10, tenths % 10), packets.to_string()]
        })
        .collect();
    output::table(&["DROPPED", "PER SECOND", "PACKETS"], &rows)?;
    output::line("")?;
    let asked = ask(node, Request::GateTop { seconds: time.as_secs() }, |value| {
        let sources: Vec<Source> = serde_json::from_value(value)?;
        let rows: Vec<Vec<String>> = sources
            .into_iter()
            .map(|source| vec![source.network.to_string(), source.reason, source.samples.to_string()])
            .collect();
        output::table(&["SOURCE", "DROPPED", "SAMPLES"], &rows)
    });
    match asked {
        Ok(()) => Ok(()),
        Err(error) => output::line(&format!("sources are not known: {error:#}")),
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
    if let Some(enforcement) = status.enforcement {
        output::line(&enforcement.to_string())?;
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

/// A line for each direction: from whom to whom its packets arrive, and leave.
fn flows(pin: &Path) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for SessionStatus { session, identity, standing, flows } in gate::flows(pin)? {
        let left = match standing {
            Standing::Live(left) => format!("{}s", left.as_secs()),
            Standing::Expired => "expired".to_owned(),
            Standing::Revoked => "revoked".to_owned(),
        };
        for FlowStatus { from, input, output, usage } in flows {
            let from = match from {
                Leg::Client => "client",
                Leg::Connector => "connector",
            };
            rows.push(vec![
                format!("{}.{}", session.index, session.generation),
                identity.to_string(),
                from.to_owned(),
                format!("{}>{}", input.remote, input.local),
                output.map_or("node".to_owned(), |output| format!("{}>{}", output.local, output.remote)),
                usage.packets.to_string(),
                usage.bytes.to_string(),
                left.clone(),
            ]);
        }
    }
    output::table(&["SESSION", "IDENTITY", "FROM", "ARRIVES", "LEAVES", "PACKETS", "BYTES", "LEFT"], &rows)
}
