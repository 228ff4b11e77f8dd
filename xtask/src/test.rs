//! `cargo xtask test`.

use std::process::Command;

use anyhow::Result;

use crate::shell::{self, cargo};

/// All that has tests.
pub const WORKSPACE: [&str; 3] = ["--workspace", "--exclude", "portcullis-ebpf"];

/// Builds the binary under test, then runs every test of the workspace. Tests make network namespaces and load eBPF
/// programs, so without root the test programs (not the build) run through sudo.
pub fn run(args: &[String]) -> Result<()> {
    build()?;
    let mut nextest = cargo();
    nextest.args(["nextest", "run"]);
    if !args.iter().any(|arg| arg == "-p" || arg == "--package") {
        nextest.args(WORKSPACE);
    }
    if !args.iter().any(|arg| arg.starts_with("--test-threads") || arg.starts_with("-j")) {
        nextest.args(["--test-threads", &test_threads().to_string()]);
    }
    nextest.args(args);
    nextest.env("PORTCULLIS_BIN", shell::target()?.join("debug/portcullis"));
    if std::env::var_os("CI").is_some() {
        nextest.args(["--profile", "ci"]);
    }
    as_root(&mut nextest);
    shell::run(&mut nextest)
}

/// The binary under test.
pub fn build() -> Result<()> {
    shell::run(cargo().args(["build", "--package", "portcullis", "--bin", "portcullis"]))
}

/// Twice the processors: half of the suite's time passes in tests that wait, for a timeout, an expiry or a retry.
fn test_threads() -> usize {
    2 * std::thread::available_parallelism().map_or(1, usize::from)
}

/// Makes cargo run test programs as root.
pub fn as_root(cargo: &mut Command) {
    if !shell::is_root() {
        let runner = format!("sudo --preserve-env env PATH={}", shell::path());
        cargo.env(format!("CARGO_TARGET_{}_RUNNER", triple()), runner);
    }
}

fn triple() -> String {
    format!("{}_UNKNOWN_LINUX_GNU", std::env::consts::ARCH.to_uppercase())
}
