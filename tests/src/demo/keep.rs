//! `--keep`: the lab stays up for a browser on this machine.

use anyhow::{Context, Result};

use crate::demo::lab::{ALICE, BOB, CAROL, DOMAIN, EDGE, Lab};
use crate::netns::run;

const HOST: &str = "198.18.77.2/30";
const ROUTER: &str = "198.18.77.1";

/// Connects the machine itself to the lab's internet, says how to look around, and waits for Ctrl-C.
pub fn keep(lab: &mut Lab) -> Result<()> {
    let interface = format!("pclab{}", std::process::id() % 1_000_000);
    let netns = lab.internet.path();
    let ip = |line: &str| run(std::process::Command::new("ip").args(line.split_whitespace())).map(drop);
    ip(&format!("link add {interface} type veth peer name to-machine netns {}", netns.display()))?;
    lab.internet.run("ethtool -K to-machine tx off")?;
    lab.internet.address("to-machine", &format!("{ROUTER}/30"))?;
    lab.internet.run("ip link set dev to-machine up")?;
    ip(&format!("address add {HOST} dev {interface}"))?;
    ip(&format!("link set dev {interface} up"))?;
    ip(&format!("route add {}/32 via {ROUTER}", EDGE.v4)).context("is another lab still kept?")?;

    let ca = lab.ca.write(lab.path())?;
    let pin = "openssl x509 -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64";
    let certificate = lab.path().join("edge.pem");
    let spki =
        run(std::process::Command::new("sh").args(["-c", pin]).stdin(std::fs::File::open(certificate)?))?;
    println!(
        "
The lab stays up until Ctrl-C. From a browser on this machine (as root, Chromium wants --no-sandbox too):

  chromium --user-data-dir=$(mktemp -d) \\
    --host-resolver-rules='MAP *.{DOMAIN} {edge}' \\
    --ignore-certificate-errors-spki-list={spki} \\
    https://wiki.{DOMAIN}/

or with curl:

  curl --resolve wiki.{DOMAIN}:443:{edge} --cacert {ca} -i https://wiki.{DOMAIN}/

or add a line to /etc/hosts, and the authority {ca} to the browser:

  {edge} access.{DOMAIN} wiki.{DOMAIN} chat.{DOMAIN}

Accounts (user, password):",
        edge = EDGE.v4,
        spki = spki.trim(),
        ca = ca.display(),
    );
    for (person, may) in
        [(ALICE, "may use everything"), (CAROL, "may use everything"), (BOB, "is denied by policy")]
    {
        println!("  {:<6} {:<30} {may}", person.name, person.password);
    }
    println!(
        "\nAdministration: {} admin --config {}",
        crate::portcullis::binary()?.display(),
        lab.node.config().display()
    );
    println!("Inside a namespace: nsenter --net={} …", lab.edge.path().display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tokio::signal::ctrl_c())?;
    println!("taking the lab down");
    Ok(())
}
