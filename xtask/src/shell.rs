//! Running other programs: as root where needed, with the environment that cargo put around this one taken away.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The folder of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The target folder this program was built into: `CARGO_TARGET_DIR` and configuration files count.
pub fn target() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let target = exe.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists());
    Ok(target.with_context(|| format!("{} is not below a target folder", exe.display()))?.to_owned())
}

/// PATH with the administrator's folders, which a user's own often lacks: nft, ethtool and nginx live there.
pub fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// A command in the workspace's folder, with [`path`]. What `cargo run` set for this process alone is removed: the libraries of the
/// running toolchain are the wrong ones for another, and `CARGO_MANIFEST_DIR` misleads build scripts.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).env("PATH", path()).env_remove("LD_LIBRARY_PATH");
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text == "CARGO" || text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST") {
            command.env_remove(&name);
        }
    }
    command
}

/// `cargo`, by the toolchain that runs this program.
pub fn cargo() -> Command {
    command("cargo")
}

pub fn is_root() -> bool {
    std::fs::metadata("/proc/self")
        .map(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
        .unwrap_or(false)
}

/// A command that runs as root: by itself, or through sudo with the caller's environment and PATH.
pub fn as_root(program: impl AsRef<OsStr>) -> Command {
    if is_root() {
        return command(program);
    }
    let mut sudo = command("sudo");
    sudo.args(["--preserve-env", "--", "env"]);
    sudo.arg(format!("PATH={}", path()));
    sudo.arg(program);
    sudo
}

/// Runs to the end with the terminal's output; an error names the command.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", show(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", show(command));
    }
    Ok(())
}

/// Runs quietly; the standard output of a success, `None` if the program is missing or says no.
pub fn probe(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a long step with one line of progress: what it does, the last line it printed, the time so far. On failure
/// its whole output is shown.
pub fn long(what: &str, command: &mut Command) -> Result<()> {
    eprintln!("  · {what}");
    let shown = show(command);
    let log = tempfile_path();
    let file = std::fs::File::create(&log)?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let started = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot run {shown}"))?;
    let mut told = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        std::thread::sleep(Duration::from_millis(50));
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            eprintln!("    {:>4} s  {}", started.elapsed().as_secs(), last_line(&log));
        }
    };
    let output = std::fs::read_to_string(&log).unwrap_or_default();
    let _ = std::fs::remove_file(&log);
    if !status.success() {
        bail!("{what}: {shown} failed ({status}):\n{output}");
    }
    eprintln!("    done in {} s", started.elapsed().as_secs());
    Ok(())
}

pub fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

fn tempfile_path() -> PathBuf {
    std::env::temp_dir().join(format!("xtask-{}.log", std::process::id()))
}

fn last_line(path: &Path) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = std::fs::File::open(path) {
        let _ = file.read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text);
    let line = text.trim_end().rsplit(['\n', '\r']).next().unwrap_or_default();
    line.chars().take(90).collect()
}
