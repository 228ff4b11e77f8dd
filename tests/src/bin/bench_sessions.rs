//! `cargo xtask bench sessions`: see `portcullis_tests::bench::sessions`. Exit status 0: measured, and with `--check` every target
//! reached; 1: one was missed; 2: it could not be measured.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use portcullis_tests::bench::clean_up_on_signals;
use portcullis_tests::bench::sessions::{self, Options, Part};

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
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether the exit status is to be a success.
fn run(args: &Args) -> Result<bool> {
    ensure!(args.runs > 0 && args.length > 0, "nothing to measure");
    // What else runs here takes the CPU away less often from all that is measured. It needs root, as the lab does.
    rustix::process::nice(-20).context("taking priority needs root")?;
    let options =
        Options { runs: args.runs, length: Duration::from_millis(args.length), only: args.only.clone() };
    let report = sessions::run(&options, &|what| eprintln!("  · {what}"))?;
    print!("{}", report.table());
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report.json())? + "\n";
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    Ok(!args.check || report.is_met())
}
