//! `portcullis admin ssh-ca …`. Straight on the store: the key is made on first use, whether a node runs or not.

use anyhow::Context as _;
use clap::Subcommand;

use crate::config::Config;
use crate::flow::{Kind, Protocol};
use crate::ssh_ca::SshCa;
use crate::store::Store;

use super::output;

#[derive(Subcommand)]
pub(super) enum SshCaCommand {
    /// Print what goes into the file that sshd's TrustedUserCAKeys names: one key for each application of type `ssh`
    PublicKey {
        /// This application's only
        application: Option<String>,
    },
}

pub(super) fn run(command: SshCaCommand, config: Option<&Config>) -> anyhow::Result<()> {
    let SshCaCommand::PublicKey { application } = command;
    let config = config.context("this command needs --config")?;
    let names = config.applications.iter().filter(|application| match &application.kind {
        Kind::Private(private) => private.protocol == Protocol::Ssh,
        Kind::Web(_) | Kind::Saas(_) => false,
    });
    let names: Vec<&str> = names.map(|application| application.name.as_str()).collect();
    let wanted = match &application {
        None => names,
        Some(wanted) => {
            let known = names.contains(&wanted.as_str());
            anyhow::ensure!(known, "there is no application `{wanted}` of type `ssh` in the configuration");
            vec![wanted.as_str()]
        }
    };
    anyhow::ensure!(!wanted.is_empty(), "there is no application of type `ssh` in the configuration");
    let ca = SshCa::new(Store::open(&config.node.state)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    wanted.iter().try_for_each(|name| output::line(&runtime.block_on(ca.public_key(name))?))
}
