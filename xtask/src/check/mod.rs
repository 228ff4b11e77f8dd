//! `cargo xtask check`: what a reviewer should not have to look for. All parts run; the error names those that failed.

use std::process::Command;

use anyhow::{Result, bail};

use crate::shell::{self, cargo, command, probe};

mod purity;

const WORKSPACE: [&str; 3] = ["--workspace", "--exclude", "portcullis-ebpf"];

type Part = (&'static str, fn() -> Result<()>);

pub fn run() -> Result<()> {
    let parts: [Part; 5] =
        [("fmt", fmt), ("purity", purity::run), ("deny", deny), ("clippy", clippy), ("rustdoc", rustdoc)];
    let mut failed = Vec::new();
    for (name, part) in parts {
        eprintln!("check: {name}");
        if let Err(error) = part() {
            eprintln!("{error:#}");
            failed.push(name);
        }
    }
    if failed.is_empty() {
        eprintln!("check: all hold");
        return Ok(());
    }
    bail!("check failed: {}", failed.join(", "))
}

fn fmt() -> Result<()> {
    shell::run(cargo().args(["fmt", "--all", "--check"]))
}

/// All targets of all members but `ebpf`, which is no program of this machine; node's build script compiles it.
fn clippy() -> Result<()> {
    shell::run(cargo().arg("clippy").args(WORKSPACE).args(["--all-targets", "--", "-D", "warnings"]))
}

fn rustdoc() -> Result<()> {
    let mut doc = cargo();
    doc.arg("doc").args(WORKSPACE).args(["--no-deps", "--document-private-items"]);
    shell::run(doc.env("RUSTDOCFLAGS", "-D warnings"))
}

/// Licences, bans and sources need only the lock file. Advisories need the RustSec database, which is fetched
/// from the network: without it the rest still counts.
fn deny() -> Result<()> {
    shell::run(cargo().args(["deny", "--log-level", "error", "check", "bans", "licenses", "sources"]))?;
    if probe(&mut fetch_advisories()).is_none() {
        eprintln!("check: the advisory database cannot be fetched here; advisories were not checked");
        return Ok(());
    }
    shell::run(cargo().args(["deny", "--log-level", "error", "check", "--disable-fetch", "advisories"]))
}

fn fetch_advisories() -> Command {
    let mut fetch = command("timeout");
    fetch.args(["60", "cargo", "deny", "fetch", "db"]);
    fetch
}
