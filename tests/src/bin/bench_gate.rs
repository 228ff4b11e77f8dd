//! `cargo xtask bench gate`: see `portcullis_tests::bench`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum as _};
use portcullis_tests::bench::{self, Group, Options, clean_up_on_signals, command};

#[derive(Parser)]
#[command(
    name = "cargo xtask bench gate",
    about = "Measures the gate beside bare XDP programs and its peers"
)]
struct Args {
    /// Exit with 1 when a target is missed
    #[arg(long)]
    check: bool,
    /// Measure this group of rows alone; may be given more than once
    #[arg(long, value_enum, value_name = "GROUP")]
    only: Vec<Group>,
    /// Rounds, of which the median counts
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Length of one run of one contender, in milliseconds
    #[arg(long, default_value_t = 400, value_name = "MS")]
    length: u64,
    /// The CPU that carries the packets; the last one by default
    #[arg(long)]
    cpu: Option<usize>,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw packets a second against the number of flows
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

fn main() -> ExitCode {
    clean_up_on_signals();
    command::exit_code(run(&Args::parse()))
}

/// Whether the exit status is to be a success.
fn run(args: &Args) -> Result<bool> {
    ensure!(args.runs > 0 && args.length > 0, "nothing to measure");
    let cpus = std::thread::available_parallelism()?.get();
    let cpu = args.cpu.unwrap_or(cpus - 1);
    ensure!(cpu < cpus, "there is no CPU {cpu}");
    command::take_priority()?;
    let options = Options { runs: args.runs, length: Duration::from_millis(args.length), cpu };
    let groups = if args.only.is_empty() { Group::value_variants() } else { &args.only };
    let report = bench::run(&options, groups, &|what| eprintln!("  · {what}"))?;
    command::publish(&report.table(), &report.json(), args.json.as_deref())?;
    if let Some(path) = &args.svg {
        ensure!(!report.curves.is_empty(), "nothing to draw: the group `curves` was not measured");
        report.write_svg(path)?;
    }
    Ok(!args.check || report.is_met())
}
