//! `cargo xtask setup`: brings a bare Debian 12 machine with rustup's stable toolchain to where everything runs.
//!
//! Each part asks the thing itself (a version, an exit code) whether it works, never a stamp file, so that a machine
//! half done, or changed since, is completed. Where all is there it takes well under two seconds and prints nothing
//! but one line.

use std::fs::File;

use anyhow::{Context, Result};

use crate::shell;

mod apt;
mod bpf;
mod cargo_tools;
mod npm;

pub use cargo_tools::PEERS;

/// What the set-up is for: the demo does not wait for tools that only checks need.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Demo,
    Test,
    Check,
    /// Tests in a virtual machine; not part of [`Scope::All`].
    Vm,
    /// Peers to measure against; not part of [`Scope::All`].
    Bench,
    All,
}

pub fn run(scope: Scope) -> Result<()> {
    // Two at once on one tree would install into the same folders.
    let lock = File::create(shell::target()?.join("xtask-setup.lock"))?;
    lock.lock()?;

    apt::install(apt::tools(scope))?;
    let toolchain = bpf::setup()?;
    bpf::mount_bpffs()?;
    if !matches!(scope, Scope::Demo | Scope::Bench) {
        cargo_tools::setup(scope)?;
    }
    if scope == Scope::Bench {
        cargo_tools::peers();
    }
    if !matches!(scope, Scope::Check | Scope::Bench) {
        npm::setup().context("npm packages of the tests")?;
    }
    eprintln!("setup: complete; eBPF is built by {toolchain}");
    Ok(())
}
