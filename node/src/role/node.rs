//! The node, put together.
//!
//! 1. With privileges: read the configuration, bind every socket, put the gate up, open the log.
//! 2. Give the privileges up, on the one thread there is.
//! 3. Start the runtime and the parts, and run until SIGTERM.
//!
//! If any step of 1 or 2 fails, the node does not start; a gate that is up by then stays up and drops.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::clients::Clients;
use crate::clock;
use crate::config::{Active, Config};
use crate::context::Context;
use crate::edge;
use crate::event::{Action, Event, Events, FileTarget, install_panic_hook, log_before, open_log};
use crate::flow::Kind;
use crate::gate::{Dataplane, Gate, GateMode};
use crate::helper::Helper;
use crate::identity::service::Services;
use crate::metadata::Metadata;
use crate::metrics::Metrics;
use crate::ops;
use crate::portal::{Portal, TunnelFacts};
use crate::privilege;
use crate::recent::Recent;
use crate::saas::saml::SamlProvider;
use crate::seal::Seal;
use crate::session::Sessions;
use crate::store::{SessionFilter, Store};
use crate::token::Tokens;
use crate::tunnel;
use crate::tunnel::carrier::Carried;
use crate::tunnel::wire::Authority;

use super::{feed, reload};

/// How long running requests may take to end after SIGTERM.
const DRAIN: Duration = Duration::from_secs(45);
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Runs a node until SIGTERM.
pub fn run(path: &Path) -> anyhow::Result<()> {
    super::start_logging();
    super::install_crypto()?;
    let path = std::path::absolute(path)?;
    let config = Config::load(&path)?;
    super::check_files(&config)?;
    let tls = edge::Tls::load(&config.node.certificates)?;
    let sockets = Sockets::bind(&config)?;
    let mode = super::gate_mode(&config)?;
    let gate = open_gate(&config, mode)?;
    let helper = match &gate {
        Some(_) if config.gate.dataplane == Dataplane::Xdp => Some(Helper::start(&path)?),
        _ => None,
    };
    prepare_files(&config)?;

    privilege::drop(config.node.user.as_deref(), &paths(&config, &path))?;

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(serve(path, config, tls, sockets, gate, helper));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Every socket of the node, bound while it may.
struct Sockets {
    browsers: Vec<TcpListener>,
    tunnels: Vec<UdpSocket>,
    metrics: TcpListener,
    admin: admin::Listener,
}

impl Sockets {
    fn bind(config: &Config) -> anyhow::Result<Self> {
        let node = &config.node;
        Ok(Self {
            browsers: node.listen.iter().map(|at| listen(*at)).collect::<Result<_, _>>()?,
            tunnels: node.listen.iter().map(|at| bind_udp(*at)).collect::<Result<_, _>>()?,
            metrics: listen(node.metrics)?,
            admin: admin::Listener::bind(&node.admin_socket)?,
        })
    }
}

/// `[::]` takes both families; an IPv6 address of its own takes one.
fn socket(at: SocketAddr, kind: socket2::Type) -> std::io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(at), kind, None)?;
    if at.is_ipv6() {
        socket.set_only_v6(!at.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn listen(at: SocketAddr) -> anyhow::Result<TcpListener> {
    let bind = || {
        let socket = socket(at, socket2::Type::STREAM)?;
        socket.set_reuse_address(true)?;
        socket.bind(&at.into())?;
        socket.listen(BACKLOG)?;
        std::io::Result::Ok(socket.into())
    };
    bind().with_context(|| format!("cannot listen on {at} (TCP)"))
}

fn bind_udp(at: SocketAddr) -> anyhow::Result<UdpSocket> {
    let bind = || {
        let socket = socket(at, socket2::Type::DGRAM)?;
        socket.bind(&at.into())?;
        let socket = socket.into();
        // While it still may go beyond the system's limits; the tunnel says where that was not enough.
        tunnel::size_buffers(&socket)?;
        std::io::Result::Ok(socket)
    };
    bind().with_context(|| format!("cannot listen on {at} (UDP)"))
}

/// Puts the gate up, or says why not; `ungated = true` lets the node start without one.
fn open_gate(config: &Config, mode: GateMode) -> anyhow::Result<Option<Gate>> {
    let settings = &config.gate;
    if settings.interfaces.is_empty() {
        tracing::warn!("no gate: [gate] names no interface and `ungated = true`");
        return Ok(None);
    }
    match Gate::open(&config.gate_config(mode)) {
        Ok(gate) => {
            for (interface, mode) in gate.interfaces() {
                tracing::info!(interface, ?mode, "the gate is up");
            }
            if config.tunnel.dark {
                // At once: with the keys of before, or with none until the store is open.
                let dark = gate.control().update_settings(|settings| settings.dark = 1);
                dark.context("the tunnel's port cannot be made dark")?;
            }
            Ok(Some(gate))
        }
        Err(error) if settings.ungated && !config.tunnel.dark => {
            tracing::error!(%error, "no gate: starting without one, as `ungated = true` says");
            Ok(None)
        }
        Err(error) => Err(error).context("the gate cannot be put up"),
    }
}

/// Makes what the daemon writes to, while it may.
fn prepare_files(config: &Config) -> anyhow::Result<()> {
    std::fs::create_dir_all(&config.node.state).with_context(|| config.node.state.display().to_string())?;
    if let Some(FileTarget::Path(path)) = &config.events.file {
        for path in [path.clone(), log_before(path)] {
            open_log(&path).context("the event log cannot be opened")?;
        }
    }
    Ok(())
}

/// What a reload may have to read again: the configuration's directory and those of the files it names.
fn paths(config: &Config, path: &Path) -> privilege::Paths {
    let directory = |file: &Path| file.parent().map(Path::to_owned);
    let named = config
        .node
        .certificates
        .iter()
        .flat_map(|files| [directory(&files.cert), directory(&files.key)])
        .chain(config.applications.iter().map(|application| match &application.kind {
            Kind::Web(web) => web.origin.ca.as_deref().and_then(directory),
            Kind::Private(_) => None,
            Kind::Saas(saas) => saas.ca().and_then(directory),
        }))
        .chain(
            config
                .applications
                .iter()
                .flat_map(|application| match &application.kind {
                    Kind::Saas(saas) => saas.files(),
                    Kind::Web(_) | Kind::Private(_) => &[],
                })
                .map(|file| directory(file)),
        )
        .chain(config.identity_providers.iter().flat_map(|provider| provider.files().map(directory)))
        .flatten();
    let log = match &config.events.file {
        Some(FileTarget::Path(path)) => vec![path.clone(), log_before(path)],
        Some(FileTarget::Stdout) | None => vec![],
    };
    privilege::Paths {
        read: directory(path).into_iter().chain(named).collect(),
        own: vec![config.node.state.clone()],
        write: log.into_iter().chain([config.node.admin_socket.clone()]).collect(),
    }
}

async fn serve(
    path: PathBuf,
    config: Config,
    tls: edge::Tls,
    sockets: Sockets,
    gate: Option<Gate>,
    helper: Option<Helper>,
) -> anyhow::Result<()> {
    let now = clock::now();
    let store = Store::open(&config.node.state)?;
    let metrics = Arc::new(Metrics::new()?);
    let events = Events::start(config.events.clone(), store.clone(), Arc::clone(&metrics))
        .context("the event log cannot be opened")?;
    install_panic_hook(events.clone());
    let tokens = Tokens::load(store.clone(), &config.node.authority(), now).await?;
    let saml = SamlProvider::load(store.clone(), now).await?;
    let sessions = Sessions::load(store.clone(), Arc::clone(&metrics), now).await?;
    let clients = Clients::load(store.clone(), &sessions, Arc::clone(&metrics), now).await?;
    let services = Services::load(store.clone()).await?;
    let key = store.secret("seal", || clock::random::<{ Seal::KEY_LEN }>().to_vec()).await?;
    let seal = Seal::new(&key)?;
    let tunnels = Arc::new(tunnel::Registry::default());
    let address = Authority::new(&config.node.domain, config.node.public_port);

    let metadata = Metadata::default();
    metadata.configure(&config, &events, &metrics)?;
    let active = Arc::new(Active::new(config));
    tunnels.configure(&active.policies);
    let (publish, active) = watch::channel(active);
    let recent = Recent::default();
    for session in sessions.matching(&SessionFilter::All, now).await? {
        recent.remember(&session.person.to_string(), session.address, session.created_at);
    }
    let control = gate.as_ref().map(Gate::control);
    let devices = tunnel::Devices::load(store.clone(), control.clone()).await?;
    if let Some(gate) = &control {
        feed::first(gate, &devices, active.borrow().config.tunnel.dark).await?;
    }
    let carried = Carried::new(gate.as_ref().map(Gate::streams), &metrics);
    let private = tunnel::PrivateSessions::new(tunnel::PrivateParts {
        store: store.clone(),
        sessions: sessions.clone(),
        clients: clients.clone(),
        tokens: tokens.clone(),
        events: events.clone(),
        metrics: Arc::clone(&metrics),
        active: active.clone(),
        gate: gate.as_ref().and_then(Gate::relay),
        carried: carried.clone(),
    })
    .await?;
    let context = Arc::new(Context {
        active,
        store,
        sessions,
        clients,
        services,
        tokens,
        saml,
        metadata,
        seal,
        events,
        carried,
        metrics,
        tunnels,
        recent,
    });
    let recent_drops = ops::RecentDrops::default();
    let service = Arc::new(admin::service::Service {
        store: context.store.clone(),
        sessions: context.sessions.clone(),
        services: context.services.clone(),
        tokens: context.tokens.clone(),
        saml: context.saml.clone(),
        events: context.events.clone(),
        address: address.clone(),
        tunnels: Some(Arc::clone(&context.tunnels)),
        devices: devices.clone(),
        private: Some(private.clone()),
        gate: gate.as_ref().map(|gate| admin::GateDesk {
            control: gate.control(),
            dataplane: context.active().config.gate.dataplane,
            mode: context.active().config.gate.mode,
            recent: recent_drops.clone(),
        }),
    });

    let shutdown = CancellationToken::new();
    super::stop_on_signal(shutdown.clone())?;
    let reloader = reload::Reloader {
        path,
        publish,
        context: Arc::clone(&context),
        tls: tls.clone(),
        gate: control.clone().map(|gate| (gate, devices.keys())),
    };
    reload::watch(reloader, shutdown.clone())?;

    let health = ops::Health::new(gate.is_some() || context.active().config.gate.ungated, gate.is_some());
    let datagrams = gate.as_ref().and_then(Gate::datagrams);
    if let Some(gate) = &control {
        tokio::spawn(feed::keep(gate.clone(), devices.clone(), Arc::clone(&context), shutdown.clone()));
    }
    ops::watch_gate(gate, helper, Arc::clone(&context), private.clone(), health.clone(), recent_drops);
    tokio::spawn(ops::serve(sockets.metrics, Arc::clone(&context), health.clone(), shutdown.clone()));
    tokio::spawn(tend(Arc::clone(&context), shutdown.clone()));
    tokio::spawn(crate::saas::backchannel::keep(Arc::clone(&context), shutdown.clone()));
    tokio::spawn(crate::metadata::keep(Arc::clone(&context), shutdown.clone()));
    tokio::spawn(admin::serve(sockets.admin, service, shutdown.clone()));
    let facts = TunnelFacts {
        address,
        key: tunnel::enrolment::key_of_node(&context.store).await?,
        devices: devices.clone(),
        ticket: {
            let private = private.clone();
            Arc::new(move || private.ticket())
        },
    };
    let portal = Arc::new(Portal::new(Arc::clone(&context), facts));
    let connectors = tunnel::node::NodeTunnel {
        store: context.store.clone(),
        events: context.events.clone(),
        registry: Arc::clone(&context.tunnels),
        datagrams,
        gate: control,
        recent: context.recent.clone(),
        devices,
        carried: context.carried.clone(),
        private,
    };
    // Later than the edge: what it still serves may need a stream to its origin.
    let tunnel_shutdown = CancellationToken::new();
    let mut tunnel = tokio::spawn(tunnel::node::serve(connectors, sockets.tunnels, tunnel_shutdown.clone()));
    let mut edge = tokio::spawn(edge::serve(
        Arc::clone(&context),
        portal,
        tls,
        sockets.browsers,
        shutdown.clone(),
        edge::Patience::default(),
    ));

    context.events.emit(Event::new(Action::Start, true).detail(env!("CARGO_PKG_VERSION")));
    health.up();
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(domain = %context.active().config.node.domain, "the node is up");

    // A part that ends before it was asked to takes the node down: half a node is worse than a restart. Asked comes
    // first, since then both are so.
    let result = tokio::select! {
        biased;
        () = shutdown.cancelled() => Ok(()),
        ended = &mut edge => Err(match ended {
            Ok(()) => anyhow::anyhow!("the edge ended"),
            Err(error) => anyhow::anyhow!("the edge failed: {error}"),
        }),
        ended = &mut tunnel => Err(match ended {
            Ok(Ok(())) => anyhow::anyhow!("the tunnel ended"),
            Ok(Err(error)) => anyhow::Error::new(error).context("the tunnel failed"),
            Err(error) => anyhow::anyhow!("the tunnel failed: {error}"),
        }),
    };
    if result.is_ok() {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        let drained = async {
            let _ = edge.await;
            tunnel_shutdown.cancel();
            tunnel.await
        };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("requests were still running after {} s", DRAIN.as_secs());
        }
    }
    shutdown.cancel();
    context.events.emit(Event::new(Action::Stop, result.is_ok()));
    context.events.flush().await;
    result
}

/// Ends what expires, and makes the next key when it is due.
async fn tend(context: Arc<Context>, shutdown: CancellationToken) {
    let mut second = tokio::time::interval(Duration::from_millis(500));
    let mut hour = tokio::time::interval(Duration::from_secs(3600));
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = second.tick() => {
                context.sessions.expire(clock::now());
                context.clients.expire(clock::now());
                context.services.expire(clock::now());
                context.recent.expire(clock::now());
            }
            _ = hour.tick() => {
                let now = clock::now();
                let (keys, saml) = (context.tokens.rotate_if_due(now).await, context.saml.rotate_if_due(now).await);
                let made = [("keys", keys.map_err(|e| e.to_string())), ("saml", saml.map_err(|e| e.to_string()))];
                for (which, made) in made {
                    match made {
                        Ok(true) => {
                            let event = Event::new(Action::Admin, true);
                            context.events.emit(event.detail(format!("{which} rotate: the keys have changed")));
                        }
                        Ok(false) => {}
                        Err(error) => tracing::error!(%error, "the next {which} signing key could not be made"),
                    }
                }
            },
        }
    }
}
