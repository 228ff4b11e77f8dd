//! Cargo subcommands, from the crate registry.

use anyhow::Result;

use crate::setup::Scope;
use crate::shell::{self, cargo, probe};

pub fn setup(scope: Scope) -> Result<()> {
    // 0.9.100 and later of nextest, 0.18 and later of deny read our configuration files; what is there is kept.
    if matches!(scope, Scope::Test | Scope::All) {
        ensure("nextest", "cargo-nextest", "0.9.143")?;
    }
    if matches!(scope, Scope::Check | Scope::All) {
        ensure("deny", "cargo-deny", "0.20.2")?;
    }
    Ok(())
}

fn ensure(subcommand: &str, package: &str, version: &str) -> Result<()> {
    if probe(cargo().args([subcommand, "--version"])).is_some() {
        return Ok(());
    }
    // Without optimisation: building takes minutes, and what these tools wait for is never themselves.
    shell::long(
        &format!("building {package} (a few minutes)"),
        cargo().args(["install", package, "--version", version, "--locked", "--debug"]),
    )
}
