//! `portcullis access …`: the person's end of what is not a web page.

mod connect;
mod forward;
mod status;

use clap::{Args, Subcommand};

use crate::access::Profile;

use super::output;

#[derive(Args)]
pub(super) struct AccessArgs {
    /// The node, where more than one is known here; otherwise the one of the last login
    #[arg(long, value_name = "URL", global = true)]
    node: Option<String>,
    #[command(subcommand)]
    command: AccessCommand,
}

#[derive(Subcommand)]
enum AccessCommand {
    /// Connect to an application: standard input and output, or a local port
    Tcp(forward::TcpArgs),
    /// Connect standard input and output to an SSH server: `ssh -o ProxyCommand='portcullis access ssh %h' NAME`
    Ssh(forward::SshArgs),
    /// Open a local port for an RDP client
    Rdp(forward::RdpArgs),
    /// Open a local UDP port
    Udp(forward::UdpArgs),
    /// Keep many local ports open, as a file says
    Connect(connect::ConnectArgs),
    /// List the forwards of this machine's processes, and which path they take
    Status(status::StatusArgs),
}

pub(super) fn run(args: AccessArgs) -> anyhow::Result<()> {
    crate::role::install_crypto()?;
    let AccessArgs { node, command } = args;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        match command {
            AccessCommand::Tcp(args) => forward::tcp(open(node.as_deref())?, args).await,
            AccessCommand::Ssh(args) => forward::ssh(open(node.as_deref())?, args).await,
            AccessCommand::Rdp(args) => forward::rdp(open(node.as_deref())?, args).await,
            AccessCommand::Udp(args) => forward::udp(open(node.as_deref())?, args).await,
            AccessCommand::Connect(args) => connect::run(node.as_deref(), args).await,
            AccessCommand::Status(args) => status::run(&open(node.as_deref())?, args).await,
        }
    });
    // A read of standard input that nobody waits for must not keep the process.
    runtime.shutdown_background();
    outcome
}

fn open(node: Option<&str>) -> anyhow::Result<Profile> {
    Ok(Profile::open(node)?)
}
