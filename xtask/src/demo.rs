//! `cargo xtask demo`.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::shell::{self, cargo};

/// Builds, then becomes the demo: its exit status is ours, and signals reach it directly.
pub fn run(args: &[String]) -> Result<ExitCode> {
    eprintln!("  · building the node, the connector and the demo (some minutes the first time)");
    shell::run(cargo().args(["build", "--package", "portcullis", "--bin", "portcullis"]))?;
    shell::run(cargo().args(["build", "--package", "portcullis-tests", "--bin", "demo"]))?;
    let built = shell::target()?.join("debug");
    let mut demo = shell::as_root(built.join("demo"));
    demo.env("PORTCULLIS_BIN", built.join("portcullis")).args(args);
    let status = demo.status().context("cannot run the demo")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
