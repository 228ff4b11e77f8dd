//! `portcullis access …`: the person's end.

mod ssh;

use clap::{Args, Subcommand};

use crate::access::Profile;

#[derive(Args)]
pub(super) struct AccessArgs {
    #[command(subcommand)]
    command: AccessCommand,
}

#[derive(Subcommand)]
enum AccessCommand {
    /// Get a short-lived SSH certificate for an application, for an ephemeral key beside it
    SshCert(ssh::CertArgs),
    /// Print what makes `ssh NAME` go through the node
    SshConfig(ssh::ConfigArgs),
}

/// Which node is meant.
#[derive(Args)]
struct Node {
    /// The node's auth domain, where it is not the one that was logged in to last
    #[arg(long, value_name = "URL")]
    node: Option<String>,
}

impl Node {
    fn profile(&self) -> anyhow::Result<Profile> {
        Ok(Profile::open(self.node.as_deref())?)
    }
}

pub(super) fn run(args: AccessArgs) -> anyhow::Result<()> {
    crate::role::install_crypto()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match args.command {
        AccessCommand::SshCert(args) => runtime.block_on(ssh::certificate(args)),
        AccessCommand::SshConfig(args) => runtime.block_on(ssh::config(args)),
    }
}
