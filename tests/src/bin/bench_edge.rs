//! `cargo xtask bench edge`: see `portcullis_tests::bench::edge`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use portcullis_tests::bench::command;
use portcullis_tests::bench::edge::{self, Options};

#[derive(Parser)]
#[command(
    name = "cargo xtask bench edge",
    about = "Measures how long others wait while a client floods the edge",
    args_conflicts_with_subcommands = true
)]
struct Args {
    #[command(subcommand)]
    part: Option<Part>,
    /// Exit with 1 when a target is missed
    #[arg(long)]
    check: bool,
    /// Rounds, of which the median counts
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Requests of a round, in calm and under each flood
    #[arg(long, default_value_t = 300)]
    requests: usize,
    /// Connections that flood at a time
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Part {
    /// The process that floods
    #[command(hide = true)]
    Flood {
        #[arg(long)]
        ca: PathBuf,
        #[arg(long)]
        port: u16,
        #[arg(long)]
        which: usize,
        #[arg(long)]
        connections: usize,
    },
}

fn main() -> ExitCode {
    command::exit_code(run(&Args::parse()))
}

/// Whether the exit status is to be a success.
fn run(args: &Args) -> Result<bool> {
    if let Some(Part::Flood { ca, port, which, connections }) = &args.part {
        edge::flood(ca, *port, *which, *connections)?;
        return Ok(true);
    }
    ensure!(args.runs > 0 && args.requests > 0 && args.connections > 0, "nothing to measure");
    command::take_priority()?;
    let options = Options { runs: args.runs, requests: args.requests, connections: args.connections };
    let report = edge::run(&options, &|what| eprintln!("  · {what}"))?;
    command::publish(&report.table(), &report.json(), args.json.as_deref())?;
    Ok(!args.check || report.is_met())
}
