//! `cargo xtask bench saas`: see `portcullis_tests::bench::saas`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use portcullis_tests::bench::command;
use portcullis_tests::bench::saas::{self, Options};

#[derive(Parser)]
#[command(name = "cargo xtask bench saas", about = "Measures SAML sign-ins beside SimpleSAMLphp")]
struct Args {
    /// Exit with 1 when a target is missed
    #[arg(long)]
    check: bool,
    /// Rounds, of which the median counts
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Milliseconds that each of the two is asked in a round
    #[arg(long, default_value_t = 4_000)]
    run_ms: u64,
    /// Who asks at a time
    #[arg(long, default_value_t = 4)]
    clients: usize,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    command::exit_code(run(&Args::parse()))
}

/// Whether the exit status is to be a success.
fn run(args: &Args) -> Result<bool> {
    ensure!(args.runs > 0 && args.run_ms > 0 && args.clients > 0, "nothing to measure");
    command::take_priority()?;
    let options =
        Options { runs: args.runs, length: Duration::from_millis(args.run_ms), clients: args.clients };
    let report = saas::run(&options, &|what| eprintln!("  · {what}"))?;
    command::publish(&report.table(), &report.json(), args.json.as_deref())?;
    Ok(!args.check || report.is_met())
}
