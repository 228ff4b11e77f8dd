//! `portcullis admin …`.

use std::io::Read as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::admin::client::Target;
use crate::admin::service::{ConnectorRow, ElsewhereRow, SessionRow, ended_count, ended_text};
use crate::admin::wire::{Password, Request};
use crate::config::{Config, Secret};
use crate::flow::{Email, Kind, Session};
use crate::store::{SessionFilter, Store, User};
use crate::terminal::shown;
use crate::token::{KeyState, KeySummary};
use crate::tunnel::wire::Authority;

use super::{check, events, gate, offline, output, saml, service_token, ssh_ca};

#[derive(Args)]
pub(super) struct AdminArgs {
    /// The node's configuration file: says where its socket and store are
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    /// The admin socket, when it is not the one of the configuration
    #[arg(long, global = true)]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: AdminCommand,
}

#[derive(Subcommand)]
enum AdminCommand {
    /// Check a configuration without starting anything
    Check,
    /// What the node is doing
    Status,
    /// Local users
    #[command(subcommand)]
    User(UserCommand),
    /// Connectors
    #[command(subcommand)]
    Connector(ConnectorCommand),
    /// Service tokens: what programs prove who they are with
    #[command(subcommand)]
    ServiceToken(service_token::ServiceTokenCommand),
    /// Sessions of people
    #[command(subcommand)]
    Session(SessionCommand),
    /// Token signing keys
    #[command(subcommand)]
    Keys(KeysCommand),
    /// The SSH certificate authorities
    #[command(subcommand)]
    SshCa(ssh_ca::SshCaCommand),
    /// Applications elsewhere that speak SAML
    #[command(subcommand)]
    Saml(saml::SamlCommand),
    /// Read the access log
    Events(events::EventsArgs),
    /// The XDP gate
    #[command(subcommand)]
    Gate(gate::GateCommand),
    /// Write a consistent copy of the store to a new file
    Backup { file: PathBuf },
    /// Replace the store by a backup; the node must not be running
    Restore { file: PathBuf },
}

#[derive(Subcommand)]
enum UserCommand {
    /// Add a user; the password comes from a prompt or standard input
    Add {
        name: String,
        #[arg(long)]
        email: Email,
        /// A group the user is in (repeatable)
        #[arg(long = "group")]
        groups: Vec<String>,
        #[arg(long)]
        password_stdin: bool,
    },
    List,
    /// Set a new password
    Passwd {
        name: String,
        #[arg(long)]
        password_stdin: bool,
    },
    /// Remove a user and revoke the sessions
    Remove {
        name: String,
    },
}

#[derive(Subcommand)]
enum ConnectorCommand {
    /// Make a connector and print its enrolment token (single use, one hour)
    Create {
        name: String,
        /// Where the connector finds its nodes (host:port, repeatable), when not by the auth domain
        #[arg(long = "node")]
        nodes: Vec<Authority>,
        /// Write the token to a new file (mode 0600) instead
        #[arg(long)]
        out: Option<PathBuf>,
    },
    List,
    /// Void its key and its tokens and cut its connections
    Revoke {
        name: String,
    },
}

#[derive(Args)]
#[group(multiple = false)]
struct Which {
    #[arg(long)]
    id: Option<crate::flow::SessionId>,
    /// Email, or provider:subject
    #[arg(long)]
    user: Option<String>,
    /// Sessions that were granted this application
    #[arg(long)]
    app: Option<String>,
    #[arg(long)]
    all: bool,
}

impl Which {
    fn filter(self) -> Option<SessionFilter> {
        let by_id = self.id.map(SessionFilter::Id);
        let by_user = self.user.map(SessionFilter::User);
        let by_app = self.app.map(SessionFilter::Application);
        by_id.or(by_user).or(by_app).or(self.all.then_some(SessionFilter::All))
    }
}

#[derive(Subcommand)]
enum SessionCommand {
    List {
        #[command(flatten)]
        which: Which,
        #[arg(long)]
        json: bool,
    },
    /// End sessions now: tokens, open streams and WebSockets
    Revoke {
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Subcommand)]
enum KeysCommand {
    List,
    /// Publish a new key that signs in a day
    Rotate {
        /// The key is compromised: forget it at once; everybody logs in again
        #[arg(long)]
        now: bool,
    },
}

pub(super) fn run(args: AdminArgs) -> anyhow::Result<()> {
    crate::role::install_crypto()?;
    let AdminArgs { config: path, socket, command } = args;
    match command {
        AdminCommand::Check => {
            check::run(path.as_deref().context("`check` needs --config: the file to check")?)
        }
        AdminCommand::Gate(command) => {
            // A configuration with faults must not stand in the way of breaking glass.
            let config = path.as_deref().and_then(|path| Config::load(path).ok());
            gate::run(command, path.as_deref(), &target(socket, config))
        }
        AdminCommand::Restore { file } => {
            let config = Config::load(path.as_deref().context("`restore` needs --config")?)?;
            anyhow::ensure!(
                std::os::unix::net::UnixStream::connect(&config.node.admin_socket).is_err(),
                "the node is running: stop it first"
            );
            Store::restore(&config.node.state, &file)?;
            if let Some(path) = &path {
                offline::record(path, &format!("restore {}", file.display()));
            }
            output::line("restored")
        }
        AdminCommand::SshCa(command) => {
            let config = path.as_deref().map(Config::load).transpose()?;
            ssh_ca::run(command, config.as_ref())
        }
        command => {
            let config = path.as_deref().map(Config::load).transpose()?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(ask(&target(socket, config), command))
        }
    }
}

fn target(socket: Option<PathBuf>, config: Option<Config>) -> Target {
    let socket = socket
        .or_else(|| config.as_ref().map(|config| config.node.admin_socket.clone()))
        .unwrap_or_else(|| PathBuf::from(crate::config::DEFAULT_ADMIN_SOCKET));
    Target { socket, config }
}

async fn ask(target: &Target, command: AdminCommand) -> anyhow::Result<()> {
    match command {
        AdminCommand::Status => {
            one(target, Request::Status, |value| output::line(&serde_json::to_string_pretty(&value)?)).await
        }
        AdminCommand::User(command) => user(target, command).await,
        AdminCommand::Connector(command) => connector(target, command).await,
        AdminCommand::ServiceToken(command) => service_token::run(target, command).await,
        AdminCommand::Session(command) => session(target, command).await,
        AdminCommand::Keys(command) => keys(target, command).await,
        AdminCommand::Saml(command) => saml::run(target, command).await,
        AdminCommand::Events(args) => events::run(target, args).await,
        AdminCommand::Backup { file } => {
            // The node itself may not write where an administrator may.
            let file = std::path::absolute(file)?;
            target.ask_store(Request::Backup { file }, |_| output::line("done")).await
        }
        AdminCommand::Check
        | AdminCommand::Gate(_)
        | AdminCommand::SshCa(_)
        | AdminCommand::Restore { .. } => Ok(()),
    }
}

async fn user(target: &Target, command: UserCommand) -> anyhow::Result<()> {
    match command {
        UserCommand::Add { name, email, groups, password_stdin } => {
            let password = read_password(password_stdin)?;
            done(target, Request::UserAdd { name, email, groups, password }).await
        }
        UserCommand::Passwd { name, password_stdin } => {
            let password = read_password(password_stdin)?;
            one(target, Request::UserPassword { name, password }, |value| ended(target, &value)).await
        }
        UserCommand::Remove { name } => {
            one(target, Request::UserRemove { name }, |value| ended(target, &value)).await
        }
        UserCommand::List => {
            one(target, Request::UserList, |value| {
                let users: Vec<User> = serde_json::from_value(value)?;
                let rows: Vec<Vec<String>> = users
                    .into_iter()
                    .map(|user| {
                        vec![
                            user.name,
                            user.email.to_string(),
                            user.groups.join(","),
                            output::time(Some(user.created_at.0)),
                        ]
                    })
                    .collect();
                output::table(&["NAME", "EMAIL", "GROUPS", "CREATED"], &rows)
            })
            .await
        }
    }
}

async fn connector(target: &Target, command: ConnectorCommand) -> anyhow::Result<()> {
    match command {
        ConnectorCommand::Create { name, nodes, out } => {
            one(target, Request::ConnectorCreate { name, nodes }, |value| {
                let token = value["token"].as_str().context("the answer has no token")?.to_owned();
                match &out {
                    None => output::line(&token),
                    Some(path) => output::secret_file(path, &token),
                }
            })
            .await
        }
        ConnectorCommand::Revoke { name } => done(target, Request::ConnectorRevoke { name }).await,
        ConnectorCommand::List => {
            one(target, Request::ConnectorList, |value| {
                let connectors: Vec<ConnectorRow> = serde_json::from_value(value)?;
                let rows: Vec<Vec<String>> = connectors
                    .into_iter()
                    .map(|row| {
                        vec![
                            row.name,
                            row.connections.to_string(),
                            output::time(row.enrolled_at.map(|at| at.0)),
                            output::time(Some(row.created_at.0)),
                        ]
                    })
                    .collect();
                output::table(&["NAME", "CONNECTIONS", "ENROLLED", "CREATED"], &rows)
            })
            .await
        }
    }
}

async fn session(target: &Target, command: SessionCommand) -> anyhow::Result<()> {
    match command {
        SessionCommand::List { which, json } => {
            let filter = which.filter().unwrap_or(SessionFilter::All);
            one(target, Request::SessionList { filter }, |value| {
                if json {
                    return output::line(&serde_json::to_string_pretty(&value)?);
                }
                let sessions: Vec<SessionRow> = serde_json::from_value(value)?;
                let private = private_rows(&sessions);
                let rows: Vec<Vec<String>> = sessions
                    .into_iter()
                    .map(|SessionRow { session, .. }| {
                        vec![
                            session.id.to_string(),
                            user_of(&session),
                            session.person.provider,
                            session.address.to_string(),
                            output::time(Some(session.expires_at.0)),
                        ]
                    })
                    .collect();
                output::table(&["ID", "USER", "PROVIDER", "ADDRESS", "EXPIRES"], &rows)?;
                if private.is_empty() {
                    return Ok(());
                }
                output::line("")?;
                let head = ["APPLICATION", "USER", "CONNECTOR", "PATH", "UP", "DOWN", "OPENED", "EXPIRES"];
                output::table(&head, &private)
            })
            .await
        }
        SessionCommand::Revoke { which } => {
            let filter = which.filter().context("say which sessions: --id, --user, --app or --all")?;
            one(target, Request::SessionRevoke { filter }, |value| {
                output::line(&format!("{} revoked", ended_count(&value).unwrap_or(0)))?;
                elsewhere(target, &value)
            })
            .await
        }
    }
}

/// What a command that ends a user's sessions has done.
fn ended(target: &Target, value: &Value) -> anyhow::Result<()> {
    let count = ended_count(value).unwrap_or(0);
    output::line(&format!("done: {}", ended_text(count)))?;
    elsewhere(target, value)
}

fn elsewhere(target: &Target, value: &Value) -> anyhow::Result<()> {
    // A node that was not restarted since an upgrade does not say.
    let rows: Option<Vec<ElsewhereRow>> = serde_json::from_value(value["elsewhere"].clone())?;
    let lines = elsewhere_lines(target.config.as_ref(), &rows.unwrap_or_default());
    lines.iter().try_for_each(|text| output::line(text))
}

/// What becomes of the sessions that applications elsewhere keep by themselves.
fn elsewhere_lines(config: Option<&Config>, rows: &[ElsewhereRow]) -> Vec<String> {
    let is_told = |name: &str| {
        let mut applications = config.into_iter().flat_map(|config| &config.applications);
        applications.any(|application| match &application.kind {
            Kind::Saas(saas) => application.name == name && saas.is_told_of_ends(),
            Kind::Web(_) | Kind::Private(_) => false,
        })
    };
    rows.iter()
        .map(|row| {
            let (application, user) = (&row.application, user_of(&row.session));
            match (is_told(application), row.answers_over_at) {
                (true, None) => format!("{application} is told that the session of {user} has ended"),
                (true, Some(over_at)) => format!(
                    "{application} is told that the session of {user} has ended, and again at {}: until then it may take \
                     an answer that it was sent before",
                    output::time(Some(over_at.0))
                ),
                (false, _) => format!("{application} may go on with its own session of {user}: end it there"),
            }
        })
        .collect()
}

/// The private sessions of all logins.
fn private_rows(sessions: &[SessionRow]) -> Vec<Vec<String>> {
    let rows = sessions.iter().flat_map(|row| row.private.iter().map(|private| (&row.session, private)));
    rows.map(|(session, private)| {
        let application = match &private.destination {
            Some(destination) => format!("{} ({destination})", private.application),
            None => private.application.clone(),
        };
        vec![
            application,
            user_of(session),
            private.connector.clone(),
            private.path.clone().unwrap_or_else(|| "-".to_owned()),
            private.bytes_up.to_string(),
            private.bytes_down.to_string(),
            output::time(Some(private.opened_at.0)),
            output::time(Some(private.expires_at.0)),
        ]
    })
    .collect()
}

fn user_of(session: &Session) -> String {
    shown(&session.email.as_ref().map_or_else(|| session.person.to_string(), ToString::to_string))
}

async fn keys(target: &Target, command: KeysCommand) -> anyhow::Result<()> {
    let request = match command {
        KeysCommand::List => Request::KeysList,
        KeysCommand::Rotate { now } => Request::KeysRotate { now },
    };
    one(target, request, |value| {
        let keys: Vec<KeySummary> = serde_json::from_value(value)?;
        let rows: Vec<Vec<String>> = keys
            .into_iter()
            .map(|key| {
                let state = match key.state {
                    KeyState::Next => "next",
                    KeyState::Signing => "signing",
                    KeyState::Retired => "retired",
                };
                vec![
                    key.kid,
                    state.to_owned(),
                    output::time(Some(key.sign_from.0)),
                    output::time(Some(key.sign_until.0)),
                    output::time(Some(key.publish_until.0)),
                ]
            })
            .collect();
        output::table(&["KID", "STATE", "SIGNS FROM", "SIGNS UNTIL", "PUBLISHED UNTIL"], &rows)
    })
    .await
}

async fn one(
    target: &Target,
    request: Request,
    show: impl Fn(Value) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    target.ask(request, show).await
}

async fn done(target: &Target, request: Request) -> anyhow::Result<()> {
    one(target, request, |_| output::line("done")).await
}

/// From standard input (one line) or a prompt, twice.
fn read_password(stdin: bool) -> anyhow::Result<Password> {
    let text = if stdin {
        let mut text = String::new();
        std::io::stdin().lock().take(4096).read_to_string(&mut text)?;
        text.trim_end_matches(['\r', '\n']).to_owned()
    } else {
        let first = rpassword::prompt_password("Password: ")?;
        anyhow::ensure!(first == rpassword::prompt_password("Again: ")?, "the two differ");
        first
    };
    Ok(Password(Secret::new(text)))
}
