//! Builds the gate's BPF object (`ebpf/`) into `OUT_DIR/portcullis-gate`.
//!
//! 1. Find a toolchain that can: one with the library's sources, since `core` has no build for BPF. Either
//!    a rustup nightly with `rust-src`, or a distribution's own toolchain linked as `bpf`.
//! 2. Find `bpf-linker`, on `PATH` or where cargo installs programs.
//! 3. Run this program again with the environment that aya-build reads, and let it build.
//!
//! Without either: one line that says what to run.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use aya_build::{Package, Toolchain};

const PACKAGE: &str = "portcullis-ebpf";
/// Set for the second run: the name of the toolchain that the first one found.
const CHOSEN: &str = "PORTCULLIS_BPF_TOOLCHAIN";
/// The name under which the set-up links a distribution's toolchain.
const LINKED: &str = "bpf";

fn main() -> ExitCode {
    let built = match env::var(CHOSEN) {
        Ok(toolchain) => build(&toolchain),
        Err(_) => prepare(),
    };
    match built {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            println!("cargo::error={reason}");
            ExitCode::FAILURE
        }
    }
}

fn prepare() -> Result<(), String> {
    for part in ["build.rs", "../ebpf", "../common"] {
        println!("cargo::rerun-if-changed={part}");
    }
    let missing = |what: &str| format!("the XDP gate cannot be built: {what}; run `cargo xtask setup`");
    let linker = find_linker().ok_or_else(|| missing("bpf-linker is not installed"))?;
    let toolchain = find_toolchain().ok_or_else(|| missing("no Rust toolchain with library sources"))?;
    let this = env::current_exe().map_err(|error| error.to_string())?;
    let mut second = Command::new(this);
    second.env(CHOSEN, &toolchain.name).env("PATH", path_with(&linker)?);
    // The object must keep its symbols and types whatever the release profile does to the daemon.
    second.env("CARGO_PROFILE_RELEASE_STRIP", "none").env("CARGO_PROFILE_RELEASE_LTO", "off");
    // What this cargo compiles on the way is no warning of the outer one's.
    second.env("CARGO_TERM_QUIET", "true");
    if toolchain.stable {
        // Building `core` is not stable; this is how a stable compiler is told that it is meant.
        second.env("RUSTC_BOOTSTRAP", "1");
    }
    let status = second.status().map_err(|error| error.to_string())?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("building {PACKAGE} with toolchain `{}` failed; see the warnings above", toolchain.name))
    }
}

fn build(toolchain: &str) -> Result<(), String> {
    let package = Package { name: PACKAGE, root_dir: "../ebpf", ..Package::default() };
    aya_build::build_ebpf([package], Toolchain::Custom(toolchain)).map_err(|error| format!("{error:#}"))
}

struct Found {
    name: String,
    stable: bool,
}

/// The linked toolchain first: it is there only because the set-up chose it.
fn find_toolchain() -> Option<Found> {
    let list = output(Command::new("rustup").args(["toolchain", "list"]))?;
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    let mut candidates: Vec<&str> =
        names.filter(|name| *name == LINKED || name.starts_with("nightly")).collect();
    candidates.sort_by_key(|name| *name != LINKED);
    candidates.into_iter().find(|name| has_library_sources(name)).map(|name| Found {
        name: name.to_owned(),
        stable: output(Command::new("rustup").args(["run", name, "rustc", "--version"]))
            .is_none_or(|version| !version.contains("nightly")),
    })
}

fn has_library_sources(toolchain: &str) -> bool {
    let sysroot = output(Command::new("rustup").args(["run", toolchain, "rustc", "--print", "sysroot"]));
    sysroot.is_some_and(|root| Path::new(root.trim()).join("lib/rustlib/src/rust/library/core").is_dir())
}

/// The directory that holds `bpf-linker`.
fn find_linker() -> Option<PathBuf> {
    let on_path = env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>());
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = env::home_dir().map(|home| home.join(".cargo"));
    let installed = cargo_home.into_iter().chain(home).map(|home| home.join("bin"));
    on_path.unwrap_or_default().into_iter().chain(installed).find(|dir| dir.join("bpf-linker").is_file())
}

fn path_with(dir: &Path) -> Result<OsString, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths([dir.to_owned()].into_iter().chain(env::split_paths(&path)))
        .map_err(|error| error.to_string())
}

fn output(command: &mut Command) -> Option<String> {
    // Cargo's own choice of compiler must not answer for the toolchain that is asked about.
    let output = command.env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
