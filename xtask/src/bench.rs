//! `cargo xtask bench`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::shell::{self, cargo};

/// What can be measured.
#[derive(Clone, Copy, ValueEnum)]
pub enum Subject {
    /// The XDP gate: docs/benchmarks.md
    Gate,
}

/// Builds in release, then becomes the measurement, as root: its exit status is ours, and signals reach it directly.
pub fn run(subject: Subject, args: &[String]) -> Result<ExitCode> {
    let Subject::Gate = subject;
    eprintln!("  · building the bench in release (some minutes the first time)");
    shell::run(cargo().args(["build", "--release", "--package", "portcullis-tests", "--bin", "bench_gate"]))?;
    let mut bench = shell::as_root(shell::target()?.join(Path::new("release/bench_gate")));
    // Files are named from where the command was given.
    bench.current_dir(std::env::current_dir()?).args(args);
    let status = bench.status().context("cannot run the bench")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
