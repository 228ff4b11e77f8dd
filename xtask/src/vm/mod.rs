//! `cargo xtask vm`: runs tests on another kernel, by default Debian's own, in a virtual machine.
//!
//! 1. The kernel's package is fetched and unpacked below the target folder; nothing of it is installed.
//! 2. The binary and the tests are built here, as for `cargo xtask test`.
//! 3. QEMU starts that kernel. Its root is this machine's, read-only, with a memory file system over it: what the set-up installed is
//!    there, and nothing that the tests do remains.
//! 4. `cargo nextest` runs there with what was built here.
//!
//! Where `/dev/kvm` cannot be used, QEMU emulates the processor, which takes ten to thirty times as long. Tests whose patience is
//! shorter than that fail for this cause alone: run those that failed by themselves.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::shell::{self, cargo};
use crate::test;

mod image;

#[derive(clap::Args)]
pub struct Args {
    /// Debian package of the kernel, or one that depends on it
    #[arg(long, default_value = "linux-image-amd64", value_name = "PACKAGE")]
    kernel: String,
    /// Memory of the virtual machine, in MiB
    #[arg(long, default_value_t = 8192)]
    memory: u32,
    /// Use KVM (without it, the processor is emulated)
    #[arg(long)]
    kvm: bool,
    /// Arguments of `cargo nextest run`, which choose the tests
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    tests: Vec<String>,
}

/// Where this machine's file system is in the virtual one, and the folder that both can write.
const ROOT: &str = "host";
const SHARED: &str = "shared";

/// Its exit status is that of the tests.
pub fn run(args: &Args) -> Result<ExitCode> {
    let folder = shell::target()?.join("vm");
    std::fs::create_dir_all(&folder)?;
    let kernel = image::fetch(&folder, &args.kernel)?;
    eprintln!("  · kernel {}", kernel.release);
    let initrd = image::initrd(&folder, &kernel)?;

    let shared = folder.join("shared");
    std::fs::create_dir_all(&shared)?;
    test::build()?;
    let mut list = cargo();
    list.args(["nextest", "list"]).args(test::WORKSPACE);
    list.args(["--list-type", "binaries-only", "--message-format", "json"]);
    write(&mut list, &shared.join("binaries.json"))?;
    write(cargo().args(["metadata", "--format-version", "1"]), &shared.join("workspace.json"))?;
    std::fs::write(shared.join("run"), script(&kernel, &shared, &args.tests)?)?;
    let status = shared.join("status");
    let _ = std::fs::remove_file(&status);

    shell::run(&mut machine(args, &kernel, &initrd, &shared))?;
    let status =
        std::fs::read_to_string(&status).context("the virtual machine ended before the tests did")?;
    Ok(ExitCode::from(status.trim().parse::<u8>().context("the status of the tests")?))
}

/// What the virtual machine runs when its file systems are there.
fn script(kernel: &image::Kernel, shared: &Path, tests: &[String]) -> Result<String> {
    let nextest = cargo_nextest()?;
    let words = tests.iter().map(String::as_str).map(quoted).collect::<Vec<_>>().join(" ");
    Ok(format!(
        "export PATH={path} HOME={home} PORTCULLIS_BIN={binary}\n\
         mkdir -p /lib/modules && ln -sfn {modules} /lib/modules/{release}\n\
         cd {root}\n\
         {nextest} nextest run --cargo-metadata {shared}/workspace.json --binaries-metadata {shared}/binaries.json \
         --test-threads 1 --no-fail-fast --color never --show-progress none {words}\n",
        path = quoted(&shell::path()),
        home = quoted(&std::env::var("HOME").context("there is no HOME")?),
        binary = show(&shell::target()?.join("debug/portcullis")),
        modules = show(&kernel.modules()),
        release = kernel.release,
        root = show(shell::root()),
        nextest = show(&nextest),
        shared = show(shared),
    ))
}

/// The program behind `cargo nextest`: there is no cargo in the virtual machine that could find it.
fn cargo_nextest() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let folders = std::env::split_paths(&path).chain(home.map(|home| home.join("bin")));
    let found = folders.map(|folder| folder.join("cargo-nextest")).find(|program| program.exists());
    found.context("cargo-nextest is neither on the PATH nor where cargo installs")
}

fn machine(args: &Args, kernel: &image::Kernel, initrd: &Path, shared: &Path) -> Command {
    let mut qemu = shell::as_root("qemu-system-x86_64");
    match args.kvm {
        true => qemu.args(["-accel", "kvm", "-cpu", "host"]),
        false => qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max"]),
    };
    qemu.args(["-smp", "2", "-m", &args.memory.to_string(), "-nographic", "-no-reboot", "-nic", "none"]);
    qemu.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(initrd);
    for (tag, path, how) in [(ROOT, Path::new("/"), "on"), (SHARED, shared, "off")] {
        let share = format!(
            "local,id={tag},path={},security_model=none,readonly={how},multidevs=remap",
            path.display()
        );
        qemu.args(["-fsdev", &share, "-device", &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
    }
    // After a panic it ends (`-no-reboot`) instead of standing there.
    qemu.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off rdinit=/init"]);
    qemu.stdin(Stdio::null());
    qemu
}

fn write(command: &mut Command, to: &Path) -> Result<()> {
    let file = std::fs::File::create(to).with_context(|| format!("{}", to.display()))?;
    shell::run(command.stdout(file))
}

/// What the program printed.
fn read(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot run {}", shell::show(command)))?;
    if !output.status.success() {
        bail!("{} failed ({})", shell::show(command), output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// A word of a POSIX shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn show(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_word_is_one_word_to_a_shell() {
        for word in ["plain", "with space", "it's", "$(false)", "a\\b", "test(/^gate::/)", "", "-E", "*"] {
            let script = format!("printf %s {}", quoted(word));
            assert_eq!(read(Command::new("sh").arg("-c").arg(script)).unwrap(), word);
        }
    }
}
