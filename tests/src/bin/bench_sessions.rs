//! `cargo xtask bench sessions`: see `portcullis_tests::bench::sessions`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use portcullis_tests::bench::sessions::{self, Options, Part};
use portcullis_tests::bench::{clean_up_on_signals, command};

#[derive(Parser)]
#[command(name = "cargo xtask bench sessions", about = "Measures private sessions beside their peers")]
struct Args {
    /// Exit with 1 when a target is missed
    #[arg(long)]
    check: bool,
    /// Rounds, of which the median counts
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Length of one run of one contender, in milliseconds
    #[arg(long, default_value_t = 1_500, value_name = "MS")]
    length: u64,
    /// Measure these only
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    clean_up_on_signals();
    command::exit_code(run(&Args::parse()))
}

/// Whether the exit status is to be a success.
fn run(args: &Args) -> Result<bool> {
    ensure!(args.runs > 0 && args.length > 0, "nothing to measure");
    command::take_priority()?;
    let options =
        Options { runs: args.runs, length: Duration::from_millis(args.length), only: args.only.clone() };
    let report = sessions::run(&options, &|what| eprintln!("  · {what}"))?;
    command::publish(&report.table(), &report.json(), args.json.as_deref())?;
    Ok(!args.check || report.is_met())
}
