//! `cargo xtask fuzz`.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::shell::{self, cargo};

/// The gate: packets through the kernel, as root, and the host.
pub fn gate(args: &[String]) -> Result<ExitCode> {
    let fuzzer = build("fuzz_gate")?;
    run(shell::as_root(fuzzer), args)
}

/// What strangers send by SAML.
pub fn saml(args: &[String]) -> Result<ExitCode> {
    let fuzzer = build("fuzz_saml")?;
    run(Command::new(fuzzer), args)
}

/// Builds with optimisation, since the work is on the host.
fn build(program: &str) -> Result<PathBuf> {
    eprintln!("  · building the fuzzer with optimisation (some minutes the first time)");
    shell::run(cargo().args(["build", "--release", "--package", "portcullis-tests", "--bin", program]))?;
    Ok(shell::target()?.join("release").join(program))
}

fn run(mut fuzzer: Command, args: &[String]) -> Result<ExitCode> {
    let status = fuzzer.args(args).status().context("cannot run the fuzzer")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
