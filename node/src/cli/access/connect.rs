//! `portcullis access connect FILE`: many forwards of one process, over one connection to the node.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;
use tokio::task::JoinSet;

use crate::access::forward::{Admits, Carried, Forwards, Target};
use crate::tunnel::wire::Authority;

use super::{forward, open, output};

/// Forwards of one file.
const MAX_FORWARDS: usize = 256;

#[derive(Args)]
pub(super) struct ConnectArgs {
    /// TOML: one `[[forward]]` with `application`, `listen` and, where they differ from the default, `protocol`
    /// (`tcp` or `udp`), `destination` and `any_user` for each
    file: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    node: Option<String>,
    #[serde(default)]
    forward: Vec<Forward>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Forward {
    application: String,
    listen: SocketAddr,
    #[serde(default = "tcp")]
    protocol: Carried,
    destination: Option<Authority>,
    /// As `--any-user` of `access tcp` and `access udp`.
    #[serde(default)]
    any_user: bool,
}

const fn tcp() -> Carried {
    Carried::Tcp
}

pub(super) async fn run(node: Option<&str>, args: ConnectArgs) -> anyhow::Result<()> {
    let file = read(&args.file)?;
    let profile = open(node.or(file.node.as_deref()))?;
    let forwards = Arc::new(Forwards::new(profile.clone())?);
    let mut running = JoinSet::new();
    let mut targets = Vec::new();
    // All ports or none: what is wrong with the file shows at once.
    for one in &file.forward {
        let target = Target { application: one.application.clone(), destination: one.destination.clone() };
        let address = match one.protocol {
            Carried::Tcp => {
                let admits = if one.any_user { Admits::Everybody } else { Admits::OwnUser };
                let forward = forwards.listen_tcp(&target, one.listen, admits).await?;
                let address = forward.address();
                running.spawn(forward.run());
                address
            }
            Carried::Udp => {
                let forward = forwards.listen_udp(&target, one.listen)?;
                let address = forward.address();
                forward::warn_of_udp(address, one.any_user);
                running.spawn(forward.run());
                address
            }
        };
        output::line(&format!("{}: listening on {address}", one.application))?;
        targets.push(target);
    }
    forward::until_signal(&forwards, &profile, async {
        // What is denied or away now may not be later: it is said, and tried again for whoever connects.
        for target in &targets {
            match forwards.prepare(target).await {
                Ok(()) => {}
                Err(error) => output::warning(&error.to_string()),
            }
        }
        while running.join_next().await.is_some() {}
        Ok(())
    })
    .await
}

fn read(path: &Path) -> anyhow::Result<File> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let file: File = toml::from_str(&text).with_context(|| path.display().to_string())?;
    anyhow::ensure!(!file.forward.is_empty(), "{}: there is no [[forward]]", path.display());
    let many = file.forward.len();
    anyhow::ensure!(many <= MAX_FORWARDS, "{}: {many} forwards, of at most {MAX_FORWARDS}", path.display());
    for (index, one) in file.forward.iter().enumerate() {
        let taken = file.forward.iter().take(index).any(|other| {
            (other.listen, other.protocol) == (one.listen, one.protocol) && one.listen.port() != 0
        });
        anyhow::ensure!(!taken, "{}: two forwards listen on {}", path.display(), one.listen);
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<File> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("forwards.toml");
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn a_file_says_what_leads_where() {
        let file = parse(
            r#"
            node = "https://access.example.com"
            [[forward]]
            application = "db"
            listen = "127.0.0.1:5432"
            [[forward]]
            application = "dns"
            listen = "127.0.0.1:5432"
            protocol = "udp"
            any_user = true
            destination = "10.0.0.1:53"
            "#,
        )
        .unwrap();
        assert_eq!(file.node.as_deref(), Some("https://access.example.com"));
        let [db, dns] = &file.forward[..] else { panic!("two") };
        assert_eq!((db.protocol, dns.protocol), (Carried::Tcp, Carried::Udp));
        assert_eq!((db.any_user, dns.any_user), (false, true));
        assert_eq!(dns.destination.as_ref().unwrap().as_str(), "10.0.0.1:53");
    }

    #[test]
    fn what_is_wrong_with_a_file_is_named() {
        for (text, named) in [
            ("", "there is no [[forward]]"),
            ("forwards = []", "unknown field `forwards`"),
            ("[[forward]]\napplication = \"db\"", "missing field `listen`"),
            ("[[forward]]\napplication = \"db\"\nlisten = \"localhost\"", "invalid socket address"),
            (
                "[[forward]]\napplication = \"db\"\nlisten = \"127.0.0.1:1\"\nprotocol = \"sctp\"",
                "unknown variant",
            ),
            (
                "[[forward]]\napplication = \"a\"\nlisten = \"127.0.0.1:1\"\n[[forward]]\napplication = \"b\"\nlisten = \"127.0.0.1:1\"",
                "two forwards listen on 127.0.0.1:1",
            ),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
    }
}
