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
    /// Who is served while strangers flood the node with openings
    Flood,
}

/// Builds in release, then becomes the measurement, as root: its exit status is ours, and signals reach it directly.
pub fn run(subject: Subject, args: &[String]) -> Result<ExitCode> {
    let program = match subject {
        Subject::Gate => "bench_gate",
        Subject::Flood => "flood",
    };
    eprintln!("  · building the bench in release (some minutes the first time)");
    if let Subject::Flood = subject {
        shell::run(cargo().args(["build", "--release", "--package", "portcullis", "--bin", "portcullis"]))?;
    }
    shell::run(cargo().args(["build", "--release", "--package", "portcullis-tests", "--bin", program]))?;
    let built = shell::target()?.join(Path::new("release"));
    let mut bench = shell::as_root(built.join(program));
    bench.env("PORTCULLIS_BIN", built.join("portcullis"));
    // Files are named from where the command was given.
    bench.current_dir(std::env::current_dir()?).args(args);
    let status = bench.status().context("cannot run the bench")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
