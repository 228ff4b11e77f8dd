//! What the commands of `cargo xtask bench` have in common.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::Value;

/// 0: measured, and every target that was to be checked reached; 1: one was missed; 2: it could not be measured.
pub fn exit_code(measured: Result<bool>) -> ExitCode {
    match measured {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// What else runs here takes the CPU away less often from all that is measured. It needs root, as the labs do.
pub fn take_priority() -> Result<()> {
    rustix::process::nice(-20).context("taking priority needs root")?;
    Ok(())
}

/// Prints the table, and writes the figures to a file where one is asked for.
pub fn publish(table: &str, figures: &Value, file: Option<&Path>) -> Result<()> {
    print!("{table}");
    if let Some(path) = file {
        let text = serde_json::to_string_pretty(figures)? + "\n";
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
