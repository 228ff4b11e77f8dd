//! `portcullis access …`: the person's end of what is not a web page.

mod ssh;

use clap::{Args, Subcommand};

use crate::access::Profile;

use super::output;

#[derive(Args)]
pub(super) struct AccessArgs {
    /// The node, where more than one is known here; otherwise the one of the last login
    #[arg(long, value_name = "URL")]
    node: Option<String>,
    #[command(subcommand)]
    command: AccessCommand,
}

#[derive(Subcommand)]
enum AccessCommand {
    /// Get a short-lived SSH certificate for an application, for an ephemeral key beside it
    SshCert {
        /// As the node calls it
        application: String,
    },
    /// Print what makes `ssh NAME` go through the node
    SshConfig(ssh::ConfigArgs),
}

pub(super) fn run(args: AccessArgs) -> anyhow::Result<()> {
    crate::role::install_crypto()?;
    let AccessArgs { node, command } = args;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            AccessCommand::SshCert { application } => {
                ssh::certificate(&open(node.as_deref())?, &application).await
            }
            AccessCommand::SshConfig(args) => {
                ssh::config(&open(node.as_deref())?, node.is_some(), args).await
            }
        }
    })
}

fn open(node: Option<&str>) -> anyhow::Result<Profile> {
    Ok(Profile::open(node)?)
}
