//! `cargo xtask bench`.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::setup;
use crate::shell::{self, cargo};

/// What can be measured.
#[derive(Clone, Copy, ValueEnum)]
pub enum Subject {
    /// The XDP gate: docs/benchmarks.md
    Gate,
    /// Who is served while strangers flood the node with openings
    Flood,
    /// How long others wait while a client floods the edge with HTTP/2 frames
    Edge,
    /// Private sessions beside a bare redirect, SSH, WireGuard and rathole
    Sessions,
    /// SAML sign-ins beside SimpleSAMLphp
    Saas,
}

/// `PATH`, and behind it where the set-up installed what cargo builds.
fn peers() -> Result<OsString> {
    let path = std::env::var_os("PATH").context("there is no PATH")?;
    let peers = shell::target()?.join(setup::PEERS).join("bin");
    Ok(std::env::join_paths(std::env::split_paths(&path).chain([peers]))?)
}

/// Builds in release, then becomes the measurement, as root: its exit status is ours, and signals reach it directly.
pub fn run(subject: Subject, args: &[String]) -> Result<ExitCode> {
    let program = match subject {
        Subject::Gate => "bench_gate",
        Subject::Flood => "flood",
        Subject::Edge => "bench_edge",
        Subject::Sessions => "bench_sessions",
        Subject::Saas => "bench_saas",
    };
    eprintln!("  · building the bench in release (some minutes the first time)");
    if let Subject::Flood | Subject::Edge | Subject::Sessions | Subject::Saas = subject {
        shell::run(cargo().args(["build", "--release", "--package", "portcullis", "--bin", "portcullis"]))?;
    }
    shell::run(cargo().args(["build", "--release", "--package", "portcullis-tests", "--bin", program]))?;
    let built = shell::target()?.join(Path::new("release"));
    let mut bench = shell::as_root(built.join(program));
    if let Subject::Sessions = subject {
        bench.env("PATH", peers()?);
    }
    bench.env("PORTCULLIS_BIN", built.join("portcullis"));
    // Files are named from where the command was given.
    bench.current_dir(std::env::current_dir()?).args(args);
    let status = bench.status().context("cannot run the bench")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
