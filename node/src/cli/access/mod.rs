//! `portcullis access …`: the person's end of what is not a web page.

mod connect;
mod curl;
mod forward;
mod login;
mod ssh;
mod status;
mod token;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use time::OffsetDateTime;

use crate::access::Profile;
use crate::flow::UnixTime;
use crate::terminal::shown;

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
    /// Log in at a node: in the browser, or with a code where there is none
    Login(login::LoginArgs),
    /// End this machine's login
    Logout,
    /// Say who is logged in, and until when
    Whoami {
        #[arg(long)]
        json: bool,
    },
    /// List the applications that are open to you
    Apps {
        #[arg(long)]
        json: bool,
    },
    /// Run curl with a token for the application
    Curl(curl::CurlArgs),
    /// Print a token for an application, for clients that send it as `Cf-Access-Token`
    Token(token::TokenArgs),
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
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let node = node.as_deref();
        match command {
            AccessCommand::Login(args) => login::login(args).await,
            AccessCommand::Logout => login::logout(&open(node)?).await,
            AccessCommand::Whoami { json } => whoami(&open(node)?, json).await,
            AccessCommand::Apps { json } => apps(&open(node)?, json).await,
            AccessCommand::Curl(args) => curl::run(&open(node)?, args).await,
            AccessCommand::Token(args) => token::run(&open(node)?, args).await,
            AccessCommand::Tcp(args) => forward::tcp(open(node)?, args).await,
            AccessCommand::Ssh(args) => forward::ssh(open(node)?, args).await,
            AccessCommand::Rdp(args) => forward::rdp(open(node)?, args).await,
            AccessCommand::Udp(args) => forward::udp(open(node)?, args).await,
            AccessCommand::Connect(args) => connect::run(node, args).await,
            AccessCommand::Status(args) => status::run(&open(node)?, args).await,
            AccessCommand::SshCert { application } => ssh::certificate(&open(node)?, &application).await,
            AccessCommand::SshConfig(args) => ssh::config(&open(node)?, node.is_some(), args).await,
        }
    });
    // A read of standard input that nobody waits for must not keep the process.
    runtime.shutdown_background();
    outcome
}

fn open(node: Option<&str>) -> anyhow::Result<Profile> {
    Ok(Profile::open(node)?)
}

async fn whoami(profile: &Profile, json: bool) -> anyhow::Result<()> {
    let who = profile.whoami().await?;
    if json {
        return output::line(&serde_json::to_string_pretty(&who)?);
    }
    let groups = if who.groups.is_empty() { "-".to_owned() } else { who.groups.join(", ") };
    for (name, value) in [
        ("node", profile.url()),
        ("person", who.email.as_deref().unwrap_or(&who.name)),
        ("id", &who.id),
        ("groups", &groups),
        ("device", &who.device),
        ("until", &time(UnixTime(who.login_expires_at))),
    ] {
        output::line(&format!("{name:7} {}", shown(value)))?;
    }
    Ok(())
}

async fn apps(profile: &Profile, json: bool) -> anyhow::Result<()> {
    let apps = profile.apps().await?;
    if json {
        return output::line(&serde_json::to_string_pretty(&apps)?);
    }
    if apps.is_empty() {
        return output::line("no application is open to you");
    }
    let rows: Vec<Vec<String>> = apps
        .iter()
        .map(|app| [&app.name, &app.kind, app.url.as_deref().unwrap_or("-")].map(str::to_owned).to_vec())
        .collect();
    output::table(&["NAME", "TYPE", "ADDRESS"], &rows)
}

/// `2026-05-01 17:30 UTC`.
fn time(at: UnixTime) -> String {
    let form = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    OffsetDateTime::from_unix_timestamp(at.0)
        .ok()
        .and_then(|at| at.format(&form).ok())
        .unwrap_or_else(|| at.0.to_string())
}

/// The home directory.
fn home() -> anyhow::Result<std::path::PathBuf> {
    std::env::var_os("HOME")
        .map(std::path::PathBuf::from)
        .filter(|path| path.is_absolute())
        .context("HOME says no directory")
}
