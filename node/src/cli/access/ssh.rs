//! `portcullis access ssh-cert` and `ssh-config`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use crate::access::{Profile, SshConfig};

use super::output;

#[derive(Args)]
pub(super) struct ConfigArgs {
    /// Applications, as the node calls them; without any, all of type `ssh` that are open to you
    applications: Vec<String>,
    /// Write it to a file of its own and include that in ~/.ssh/config; writing twice changes nothing
    #[arg(long)]
    write: bool,
}

pub(super) async fn certificate(profile: &Profile, application: &str) -> anyhow::Result<()> {
    let identity = profile.ssh_identity(application).await?;
    output::line(&identity.certificate.display().to_string())
}

/// `named` says that the node was named, and so must be in the commands that `ssh` will run.
pub(super) async fn config(profile: &Profile, named: bool, args: ConfigArgs) -> anyhow::Result<()> {
    let applications = if args.applications.is_empty() {
        let open = profile.apps().await?.into_iter().filter(|app| app.kind == "ssh").map(|app| app.name);
        let open: Vec<String> = open.collect();
        anyhow::ensure!(!open.is_empty(), "no application of type `ssh` is open to you at {}", profile.url());
        open
    } else {
        args.applications
    };
    // The profile's own address rather than what was typed: it ends up in a command line.
    let options = if named { format!(" --node {}", profile.url()) } else { String::new() };
    let config = SshConfig::new(profile, &applications, &options)?;
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
