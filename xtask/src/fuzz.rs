//! `cargo xtask fuzz gate`.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::shell::{self, cargo};

/// Builds with optimisation, since the host's side is half of the work, and runs the fuzzer.
pub fn gate(args: &[String]) -> Result<ExitCode> {
    eprintln!("  · building the fuzzer with optimisation (some minutes the first time)");
    shell::run(cargo().args(["build", "--release", "--package", "portcullis-tests", "--bin", "fuzz_gate"]))?;
    let mut fuzzer = shell::as_root(shell::target()?.join("release/fuzz_gate"));
    let status = fuzzer.args(args).status().context("cannot run the fuzzer")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
