//! Cargo subcommands, from the crate registry.

use anyhow::Result;

use crate::setup::Scope;
use crate::shell::{self, cargo, probe};

pub fn setup(scope: Scope) -> Result<()> {
    // 0.9.100 and later of nextest, 0.18 and later of deny read our configuration files; what is there is kept.
    if matches!(scope, Scope::Test | Scope::Vm | Scope::All) {
        ensure("nextest", "cargo-nextest", "0.9.143")?;
    }
    if matches!(scope, Scope::Check | Scope::All) {
        ensure("deny", "cargo-deny", "0.20.2")?;
    }
    Ok(())
}

/// Where peers of the benches are installed, below the target folder: not on anybody's PATH.
pub const PEERS: &str = "bench-peers";

/// Programs that private sessions are measured against, optimised as their authors release them. One that cannot be had is named as
/// missing by the bench.
pub fn peers() {
    // The lock file of rathole names a `time` that Rust 1.80 and later do not compile.
    for (package, version, options) in [
        ("boringtun-cli", "0.7.1", &["--locked"][..]),
        ("rathole", "0.5.0", &["--no-default-features", "--features", "server,client"]),
    ] {
        if let Err(error) = peer(package, version, options) {
            eprintln!("setup: {package} is not there to be measured against: {error:#}");
        }
    }
}

fn peer(package: &str, version: &str, options: &[&str]) -> Result<()> {
    let root = shell::target()?.join(PEERS);
    if root.join("bin").join(package).exists() {
        return Ok(());
    }
    let mut install = cargo();
    install.args(["install", package, "--version", version, "--root"]).arg(&root).args(options);
    shell::long(&format!("building {package} (a few minutes)"), &mut install)
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
