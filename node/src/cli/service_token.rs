//! `portcullis admin service-token …`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::Value;

use crate::admin::client::Target;
use crate::admin::wire::Request;
use crate::clock;
use crate::config::parse_duration;
use crate::store::ServiceToken;

use super::output;

#[derive(Subcommand)]
pub(super) enum ServiceTokenCommand {
    /// Make a service token and print its client id and secret, which is shown this once
    Create {
        name: String,
        #[command(flatten)]
        shown: Shown,
    },
    List,
    /// Make a new secret for the same client id; the old one is void at once, and what runs on it is cut
    Rotate {
        name: String,
        #[command(flatten)]
        shown: Shown,
    },
    /// Void it and cut what runs on it
    Revoke {
        name: String,
    },
}

#[derive(clap::Args)]
pub(super) struct Shown {
    /// How long the secret is good
    #[arg(long, value_parser = parse_duration, default_value = "365d")]
    expires: Duration,
    /// Write client id and secret to a new file (mode 0600) instead
    #[arg(long)]
    out: Option<PathBuf>,
}

pub(super) async fn run(target: &Target, command: ServiceTokenCommand) -> anyhow::Result<()> {
    match command {
        ServiceTokenCommand::Create { name, shown } => {
            let request = Request::ServiceTokenCreate { name, seconds: shown.expires.as_secs() };
            target.ask(request, |value| show(&value, &shown)).await
        }
        ServiceTokenCommand::Rotate { name, shown } => {
            let request = Request::ServiceTokenRotate { name, seconds: shown.expires.as_secs() };
            target.ask(request, |value| show(&value, &shown)).await
        }
        ServiceTokenCommand::Revoke { name } => {
            target.ask(Request::ServiceTokenRevoke { name }, |_| output::line("done")).await
        }
        ServiceTokenCommand::List => target.ask(Request::ServiceTokenList, list).await,
    }
}

/// In the form of an environment file, so that programs can take it as it is.
fn show(value: &Value, shown: &Shown) -> anyhow::Result<()> {
    let part = |name: &str| value[name].as_str().with_context(|| format!("the answer has no {name}"));
    let text = format!(
        "CF_ACCESS_CLIENT_ID={}\nCF_ACCESS_CLIENT_SECRET={}",
        part("client_id")?,
        part("client_secret")?
    );
    match &shown.out {
        None => output::line(&text),
        Some(path) => output::secret_file(path, &text),
    }
}

fn list(value: Value) -> anyhow::Result<()> {
    let tokens: Vec<ServiceToken> = serde_json::from_value(value)?;
    let now = clock::now();
    let rows: Vec<Vec<String>> = tokens
        .into_iter()
        .map(|token| {
            vec![
                token.name,
                token.client_id.to_string(),
                output::time(Some(token.created_at.0)),
                output::time(Some(token.rotated_at.0)),
                output::time(Some(token.expires_at.0)),
                if token.expires_at <= now { "expired" } else { "good" }.to_owned(),
            ]
        })
        .collect();
    output::table(&["NAME", "CLIENT ID", "CREATED", "ROTATED", "EXPIRES", "STATE"], &rows)
}
