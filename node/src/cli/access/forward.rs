//! `portcullis access tcp|ssh|rdp|udp`.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::access::Profile;
use crate::access::forward::{Admits, ForwardError, Forwards, Target};
use crate::tunnel::wire::Authority;

use super::{output, status};

/// RDP clients that are looked for, the newest first.
const RDP_CLIENTS: [&str; 4] = ["xfreerdp3", "wlfreerdp3", "xfreerdp", "wlfreerdp"];

/// Which application.
#[derive(Args)]
pub(super) struct Which {
    /// The application, as the node calls it
    application: String,
    /// Where in it, for an application that is a network
    #[arg(long, value_name = "HOST:PORT")]
    destination: Option<Authority>,
}

/// Who may connect to a port on loopback.
#[derive(Args)]
struct Users {
    /// Let every user of this machine connect to a port on loopback, and not only this one and root: whoever does acts as you
    #[arg(long)]
    any_user: bool,
}

impl Users {
    const fn admits(&self) -> Admits {
        if self.any_user { Admits::Everybody } else { Admits::OwnUser }
    }
}

#[derive(Args)]
pub(super) struct TcpArgs {
    #[command(flatten)]
    which: Which,
    /// Listen here; without it, standard input and output are one connection
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    users: Users,
}

#[derive(Args)]
pub(super) struct SshArgs {
    /// The application, or the host of its address
    host: String,
    /// Where in it, for an application that is a network
    #[arg(long, value_name = "HOST:PORT")]
    destination: Option<Authority>,
}

#[derive(Args)]
pub(super) struct RdpArgs {
    #[command(flatten)]
    which: Which,
    /// Listen here; without it, on a free port of this machine's own
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    users: Users,
    /// Start an RDP client (FreeRDP) and end with it; what follows `--` is for the client
    #[arg(long)]
    launch: bool,
    #[arg(last = true, requires = "launch")]
    options: Vec<String>,
}

#[derive(Args)]
pub(super) struct UdpArgs {
    #[command(flatten)]
    which: Which,
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// Say nothing of it that every user of this machine can send to a port on loopback, and acts as you
    #[arg(long)]
    any_user: bool,
}

impl From<Which> for Target {
    fn from(which: Which) -> Self {
        Self { application: which.application, destination: which.destination }
    }
}

pub(super) async fn tcp(profile: Profile, args: TcpArgs) -> anyhow::Result<()> {
    let target = Target::from(args.which);
    let Some(address) = args.listen else { return stdio(profile, &target).await };
    let forwards = Arc::new(Forwards::new(profile.clone())?);
    let forward = forwards.listen_tcp(&target, address, args.users.admits()).await?;
    // What is wrong shows now, and not to whoever connects.
    until_signal(&forwards, &profile, forwards.prepare(&target)).await?;
    output::line(&format!("listening on {}", forward.address()))?;
    until_signal(&forwards, &profile, async {
        forward.run().await;
        Ok(())
    })
    .await
}

pub(super) async fn udp(profile: Profile, args: UdpArgs) -> anyhow::Result<()> {
    let target = Target::from(args.which);
    let forwards = Arc::new(Forwards::new(profile.clone())?);
    let forward = forwards.listen_udp(&target, args.listen)?;
    warn_of_udp(forward.address(), args.any_user);
    until_signal(&forwards, &profile, forwards.prepare(&target)).await?;
    output::line(&format!("listening on {} (UDP)", forward.address()))?;
    until_signal(&forwards, &profile, async {
        forward.run().await;
        Ok(())
    })
    .await
}

/// Where a UDP port takes everybody's datagrams, and that is not what was asked for, it is said.
pub(super) fn warn_of_udp(address: SocketAddr, any_user: bool) {
    if let Some(warning) = open_to_all(address, any_user) {
        output::warning(&warning);
    }
}

fn open_to_all(address: SocketAddr, any_user: bool) -> Option<String> {
    (address.ip().to_canonical().is_loopback() && !any_user).then(|| {
        format!(
            "every user of this machine can use UDP port {} and acts as you, since the kernel does not say who has sent a \
             datagram; `--any-user` says that this is meant",
            address.port()
        )
    })
}

pub(super) async fn ssh(profile: Profile, args: SshArgs) -> anyhow::Result<()> {
    let application = name_of(&profile, args.host).await?;
    stdio(profile, &Target { application, destination: args.destination }).await
}

pub(super) async fn rdp(profile: Profile, args: RdpArgs) -> anyhow::Result<()> {
    let target = Target::from(args.which);
    let forwards = Arc::new(Forwards::new(profile.clone())?);
    let address = args.listen.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, 0).into());
    let forward = forwards.listen_tcp(&target, address, args.users.admits()).await?;
    until_signal(&forwards, &profile, forwards.prepare(&target)).await?;
    let address = forward.address();
    if !args.launch {
        output::line(&format!("listening on {address}: connect an RDP client there"))?;
        return until_signal(&forwards, &profile, async {
            forward.run().await;
            Ok(())
        })
        .await;
    }
    let program = RDP_CLIENTS.into_iter().find(|name| is_installed(name));
    let program =
        program.with_context(|| format!("no RDP client is installed: {}", RDP_CLIENTS.join(", ")))?;
    let mut client = tokio::process::Command::new(program);
    client.arg(format!("/v:{address}")).args(args.options).stdin(Stdio::inherit()).kill_on_drop(true);
    let mut client = client.spawn().with_context(|| format!("starting {program}"))?;
    let status = async {
        tokio::select! {
            () = forward.run() => Ok(None),
            status = client.wait() => Ok(Some(status)),
        }
    };
    match until_signal(&forwards, &profile, status).await? {
        Some(status) => {
            let status = status?;
            anyhow::ensure!(status.success(), "{program} ended with {status}");
            Ok(())
        }
        None => Ok(()),
    }
}

async fn stdio(profile: Profile, target: &Target) -> anyhow::Result<()> {
    let forwards = Arc::new(Forwards::new(profile.clone())?);
    until_signal(&forwards, &profile, forwards.stdio(target)).await?;
    forwards.stop().await;
    Ok(())
}

/// Waits for `work`, listed for `access status` meanwhile, or for a signal, after which the process ends as one does
/// that the signal has killed. Either way the node is told that the sessions are over.
pub(super) async fn until_signal<T>(
    forwards: &Arc<Forwards>,
    profile: &Profile,
    work: impl Future<Output = Result<T, ForwardError>>,
) -> anyhow::Result<T> {
    let listing = status::serve(profile, Arc::clone(forwards));
    let mut signals = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        signals.push((kind, signal(kind)?));
    }
    let killed = async {
        let each = signals.iter_mut().map(|(kind, signal)| {
            Box::pin(async move {
                signal.recv().await;
                *kind
            })
        });
        futures_util::future::select_all(each).await.0
    };
    tokio::select! {
        outcome = work => {
            if outcome.is_err() {
                forwards.stop().await;
            }
            Ok(outcome?)
        }
        kind = killed => {
            forwards.stop().await;
            drop(listing);
            std::process::exit(128 + kind.as_raw_value());
        }
    }
}

/// What the node calls the application whose address has this host; the name itself where none has.
async fn name_of(profile: &Profile, host: String) -> anyhow::Result<String> {
    if !host.contains('.') {
        return Ok(host);
    }
    let apps = profile.apps().await?;
    if apps.iter().any(|app| app.name == host) {
        return Ok(host);
    }
    let of_host =
        |url: &str| url::Url::parse(url).is_ok_and(|url| url.host_str() == Some(&host.to_lowercase()));
    let found = apps.into_iter().find(|app| app.url.as_deref().is_some_and(of_host));
    Ok(found.map_or(host, |app| app.name))
}

fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|place| place.join(program).is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_udp_port_that_is_every_users_says_so_unless_it_is_meant_to_be() {
        let warning = |address: &str, any_user| open_to_all(address.parse().unwrap(), any_user);
        for address in ["127.0.0.1:5353", "127.9.9.9:5353", "[::1]:5353", "[::ffff:127.0.0.1]:5353"] {
            assert!(warning(address, false).unwrap().contains("port 5353"), "{address}");
            assert_eq!(warning(address, true), None, "{address}");
        }
        // Who listens there wants others to come.
        assert_eq!((warning("192.0.2.1:5353", false), warning("[::]:5353", false)), (None, None));
    }
}
