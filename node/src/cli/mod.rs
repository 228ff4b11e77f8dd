//! The command line: one binary, three roles. Secrets are never arguments.

mod access;
mod admin;
mod check;
mod events;
mod explain;
mod gate;
mod offline;
mod output;
mod saml;
mod service_token;
mod ssh_ca;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::role;

#[derive(Parser)]
#[command(name = "portcullis", version, about = "A self-hosted access node", propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the edge: gate, TLS, login, policy, tunnels
    Node {
        /// The configuration file
        #[arg(long)]
        config: PathBuf,
    },
    /// Run next to private applications: dials out to nodes, never listens
    Connector(ConnectorArgs),
    /// What a node starts beside itself; of no use by hand
    #[command(hide = true)]
    Helper {
        #[arg(long)]
        config: PathBuf,
    },
    /// Reach what is behind a node: log in, list, connect to SSH, RDP, databases, any TCP or UDP
    Access(access::AccessArgs),
    /// Check, inspect and change a node
    Admin(admin::AdminArgs),
}

#[derive(clap::Args)]
struct ConnectorArgs {
    /// The configuration file; its keys are the options below
    #[arg(long, conflicts_with_all = ["state", "token_file", "token_stdin", "allow", "connections"])]
    config: Option<PathBuf>,
    /// Directory of the connector's key
    #[arg(long)]
    state: Option<PathBuf>,
    /// File with the enrolment token, for the first start
    #[arg(long, conflicts_with = "token_stdin")]
    token_file: Option<PathBuf>,
    /// Read the enrolment token from standard input, for the first start
    #[arg(long)]
    token_stdin: bool,
    /// Dial these origins at the most (host:port, repeatable)
    #[arg(long)]
    allow: Vec<String>,
    /// Connections to each node
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=16))]
    connections: Option<u8>,
}

/// Runs the command line; the exit status is 0 where all went well, 1 on errors, 2 on wrong usage.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    let result = match command {
        Command::Node { config } => role::node::run(&config),
        Command::Connector(args) => role::connector::run(role::connector::Options {
            config: args.config,
            state: args.state,
            token_file: args.token_file,
            token_stdin: args.token_stdin,
            allow: args.allow,
            connections: args.connections,
        }),
        Command::Helper { config } => crate::helper::run(&config),
        Command::Access(args) => access::run(args),
        Command::Admin(args) => admin::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
