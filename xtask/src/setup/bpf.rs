//! What the eBPF object is built with: a Rust toolchain that has the library's sources (the BPF target has no
//! prebuilt `core`) and bpf-linker.
//!
//! Two ways lead there, in this order; `node/build.rs` chooses by the same rule:
//! 1. a rustup nightly that has `rust-src`;
//! 2. a toolchain linked into rustup as `bpf`: Debian's packaged Rust, which comes with the sources.
//!
//! Only the second is installed from here, since its packages come with the distribution.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::setup::apt;
use crate::shell::{self, command, probe};

const LLVM: &str = "22";
const LINKER_VERSION: &str = "0.13.0";
/// The name under which rustup knows Debian's toolchain.
const LINKED: &str = "bpf";

/// Makes sure that one way works; says which.
pub fn setup() -> Result<String> {
    let toolchain = match usable() {
        Some(name) => name,
        None => {
            install_toolchain()?;
            usable().context("installed Debian's Rust, but its library sources cannot be found")?
        }
    };
    if probe(command("bpf-linker").arg("--version")).is_none() {
        install_linker()?;
        ensure!(
            probe(command("bpf-linker").arg("--version")).is_some(),
            "bpf-linker was installed but does not run: is cargo's bin folder on PATH?"
        );
    }
    Ok(toolchain)
}

/// The BPF file system, where the gate pins its program and maps.
pub fn mount_bpffs() -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    if mounts.lines().any(|line| line.split(' ').nth(1) == Some("/sys/fs/bpf") && line.contains(" bpf ")) {
        return Ok(());
    }
    eprintln!("  · mounting the BPF file system on /sys/fs/bpf");
    shell::run(shell::as_root("mount").args(["-t", "bpf", "bpf", "/sys/fs/bpf"]))
}

fn usable() -> Option<String> {
    let installed = probe(command("rustup").args(["toolchain", "list"]))?;
    let names = installed.lines().filter_map(|line| line.split_whitespace().next());
    let nightly = names.clone().filter(|name| name.starts_with("nightly"));
    nightly.chain(names.filter(|name| *name == LINKED)).find(|name| has_sources(name)).map(str::to_owned)
}

fn has_sources(toolchain: &str) -> bool {
    let sysroot = probe(command("rustup").args(["run", toolchain, "rustc", "--print", "sysroot"]));
    sysroot.is_some_and(|path| {
        Path::new(path.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs").exists()
    })
}

fn install_toolchain() -> Result<()> {
    ensure!(
        probe(command("rustup").arg("--version")).is_some(),
        "rustup is missing: install it with its stable toolchain first"
    );
    apt::install_packages(&["rustc-web", "cargo-web", "rust-web-src"])?;
    shell::long(
        "linking Debian's Rust into rustup",
        command("rustup").args(["toolchain", "link", LINKED, "/usr"]),
    )
}

fn install_linker() -> Result<()> {
    let llvm_config = format!("llvm-config-{LLVM}");
    let prefix = |program: &str| probe(command(program).arg("--prefix"));
    if prefix(&llvm_config).is_none() {
        let llvm = format!("llvm-{LLVM}-dev");
        apt::install_packages(&[&llvm, "zlib1g-dev", "libzstd-dev", "libxml2-dev"])?;
    }
    let prefix = prefix(&llvm_config).with_context(|| format!("{llvm_config} does not run"))?;
    let prefix = prefix.trim();
    let path = format!("{prefix}/bin:{}", shell::path());
    let feature = format!("llvm-{LLVM}");
    shell::long(
        "building bpf-linker (about a minute)",
        command("cargo")
            .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked"])
            .args(["--no-default-features", "--features", &feature])
            .env("LLVM_PREFIX", prefix)
            .env("PATH", path),
    )
}
