//! `portcullis access ssh-cert` and `ssh-config`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use crate::access::SshConfig;

use super::super::output;
use super::Node;

#[derive(Args)]
pub(super) struct CertArgs {
    /// The application, as the node calls it
    application: String,
    #[command(flatten)]
    node: Node,
}

#[derive(Args)]
pub(super) struct ConfigArgs {
    /// Applications; without any, all of type `ssh` that are open to you
    applications: Vec<String>,
    /// Write it to a file of its own and include that in ~/.ssh/config; writing twice changes nothing
    #[arg(long)]
    write: bool,
    #[command(flatten)]
    node: Node,
}

pub(super) async fn certificate(args: CertArgs) -> anyhow::Result<()> {
    let identity = args.node.profile()?.ssh_identity(&args.application).await?;
    output::line(&identity.certificate.display().to_string())
}

pub(super) async fn config(args: ConfigArgs) -> anyhow::Result<()> {
    let profile = args.node.profile()?;
    let applications = if args.applications.is_empty() {
        let open = profile.apps().await?.into_iter().filter(|app| app.kind == "ssh").map(|app| app.name);
        let open: Vec<String> = open.collect();
        anyhow::ensure!(!open.is_empty(), "no application of type `ssh` is open to you at {}", profile.url());
        open
    } else {
        args.applications
    };
    // The profile's own address rather than what was typed: it ends up in a command line.
    let options = args.node.node.map_or_else(String::new, |_| format!(" --node {}", profile.url()));
    let config = SshConfig::new(&profile, &applications, &options)?;
    if !args.write {
        return output::line(config.text().trim_end());
    }
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let ssh = home.context("HOME does not say where .ssh is")?.join(".ssh");
    let changed = config.write(&ssh)?;
    if changed.is_empty() {
        return output::line("nothing to change");
    }
    changed.iter().try_for_each(|path| output::line(&format!("written: {}", path.display())))
}
