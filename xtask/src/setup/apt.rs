//! Debian packages.

use anyhow::{Context, Result};

use crate::setup::Scope;
use crate::shell;

/// A program that must answer, and the package that brings it.
pub struct Tool {
    probe: &'static [&'static str],
    package: &'static str,
}

const fn tool(probe: &'static [&'static str], package: &'static str) -> Tool {
    Tool { probe, package }
}

const BUILD: &[Tool] = &[tool(&["cc", "--version"], "build-essential")];

const LAB: &[Tool] = &[
    tool(&["ip", "-V"], "iproute2"),
    tool(&["nft", "--version"], "nftables"),
    tool(&["ethtool", "--version"], "ethtool"),
    tool(&["nsenter", "--version"], "util-linux"),
    tool(&["nginx", "-v"], "nginx-light"),
    tool(&["nmap", "--version"], "nmap"),
    tool(&["curl", "--version"], "curl"),
    tool(&["openssl", "version"], "openssl"),
    tool(&["jq", "--version"], "jq"),
    tool(&["node", "--version"], "nodejs"),
    tool(&["npm", "--version"], "npm"),
];

const TEST: &[Tool] = &[
    tool(&["chromium", "--version"], "chromium"),
    tool(&["chromedriver", "--version"], "chromium-driver"),
    tool(&["python3", "--version"], "python3"),
    tool(&["/usr/bin/python3", "-c", "import onelogin.saml2"], "python3-onelogin-saml2"),
    tool(&["/usr/bin/python3", "-c", "import saml2.client"], "python3-pysaml2"),
    tool(&["test", "-d", "/usr/share/simplesamlphp/www"], "simplesamlphp"),
    tool(&["php", "--version"], "php-cli"),
    tool(&["php", "-r", "new SQLite3(':memory:');"], "php-sqlite3"),
    tool(&["php", "-r", "new DOMDocument();"], "php-xml"),
    tool(&["php", "-r", "mb_strlen('');"], "php-mbstring"),
    tool(&["xmlsec1", "--version"], "xmlsec1"),
    tool(&["xmllint", "--version"], "libxml2-utils"),
    tool(&["tcpdump", "--version"], "tcpdump"),
    tool(&["ssh", "-V"], "openssh-client"),
    tool(&["sshd", "-V"], "openssh-server"),
    tool(&["iperf3", "--version"], "iperf3"),
    tool(&["dnsmasq", "--version"], "dnsmasq-base"),
    tool(&["dig", "-v"], "bind9-dnsutils"),
    tool(&["/usr/lib/postgresql/15/bin/postgres", "--version"], "postgresql"),
    tool(&["/usr/sbin/xrdp", "--version"], "xrdp"),
    tool(&["which", "xfreerdp"], "freerdp2-x11"),
    tool(&["which", "Xvfb"], "xvfb"),
];

/// What the gate and private sessions are measured against. (`xdp-filter` and `wireguard-go` have no command that succeeds by itself.)
const BENCH: &[Tool] = &[
    tool(&["which", "xdp-filter"], "xdp-tools"),
    tool(&["turnserver", "--version"], "coturn"),
    tool(&["ssh", "-V"], "openssh-client"),
    tool(&["sshd", "-V"], "openssh-server"),
    tool(&["wg", "--version"], "wireguard-tools"),
    tool(&["which", "wireguard-go"], "wireguard-go"),
];

/// What brings up another kernel.
const VM: &[Tool] = &[
    tool(&["qemu-system-x86_64", "--version"], "qemu-system-x86"),
    tool(&["/bin/busybox", "true"], "busybox-static"),
    tool(&["cpio", "--version"], "cpio"),
    tool(&["modprobe", "--version"], "kmod"),
];

pub fn tools(scope: Scope) -> Vec<&'static Tool> {
    let parts: &[&[Tool]] = match scope {
        Scope::Check => &[BUILD],
        Scope::Demo => &[BUILD, LAB],
        Scope::Bench => &[BUILD, LAB, BENCH],
        Scope::Vm => &[BUILD, LAB, TEST, VM],
        Scope::Test | Scope::All => &[BUILD, LAB, TEST],
    };
    parts.iter().copied().flatten().collect()
}

/// Installs the packages of the tools that do not answer.
pub fn install(tools: Vec<&Tool>) -> Result<()> {
    let missing = missing(&tools);
    if missing.is_empty() {
        return Ok(());
    }
    install_packages(&missing)?;
    let still: Vec<_> = tools.iter().filter(|tool| !answers(tool)).map(|tool| tool.probe.join(" ")).collect();
    anyhow::ensure!(still.is_empty(), "installed, but not working: {}", still.join(", "));
    Ok(())
}

/// Installs packages by name, whatever is there. The list is refreshed first: a fresh machine has none.
pub fn install_packages(packages: &[&str]) -> Result<()> {
    let why = "this set-up is for Debian 12; elsewhere install the equivalents yourself";
    anyhow::ensure!(shell::probe(shell::command("apt-get").arg("--version")).is_some(), "no apt-get: {why}");
    shell::long("apt-get update", apt(&["update"]).env("DEBIAN_FRONTEND", "noninteractive"))?;
    let mut args = vec!["install", "-y", "--no-install-recommends"];
    args.extend(packages);
    let what = format!("installing Debian packages: {}", packages.join(" "));
    shell::long(&what, apt(&args).env("DEBIAN_FRONTEND", "noninteractive")).context(why)
}

fn apt(args: &[&str]) -> std::process::Command {
    let mut apt = shell::as_root("apt-get");
    apt.args(["-q", "-o", "DPkg::Lock::Timeout=600"]).args(args);
    apt
}

/// Asks all of them at once: some take a tenth of a second to say their version.
fn missing(tools: &[&Tool]) -> Vec<&'static str> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = tools.iter().map(|tool| (tool.package, scope.spawn(|| answers(tool)))).collect();
        asked
            .into_iter()
            .filter_map(|(package, answer)| (!answer.join().unwrap_or(false)).then_some(package))
            .collect()
    })
}

fn answers(tool: &Tool) -> bool {
    let Some((program, args)) = tool.probe.split_first() else { return false };
    shell::probe(shell::command(program).args(args)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_is_not_there_asks_for_its_package() {
        let there = Tool { probe: &["true"], package: "coreutils" };
        let absent = Tool { probe: &["no-such-program"], package: "wanted" };
        let broken = Tool { probe: &["false"], package: "broken" };
        assert_eq!(missing(&[&there, &absent, &broken]), ["wanted", "broken"]);
    }
}
