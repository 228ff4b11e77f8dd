//! Maps and sockets under which packets of every kind have a chance to pass, and to be refused at each step.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Result;
use portcullis_common::layout::{FlowEntry, HOST_FLOW_NS, Hop, HostFlowKey};
use portcullis_common::{Address, Family, Flow};
use rustix::net::{AddressFamily, SocketType};

use crate::gate::kernel::monotonic_ns;
use crate::gate::model::{INGRESS_IFINDEX, Model, TO_HOST_PORTS};
use crate::gate::packet::Path;
use crate::netns::Netns;
use crate::process::wait_until;

pub const LOCAL: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
pub const REMOTE: [&str; 2] = ["198.51.100.7", "2001:db8:bad::7"];
pub const ADMIN: [&str; 2] = ["203.0.113.9", "2001:db8:ad::9"];
/// A network with a recent login.
pub const RECENT: [&str; 2] = ["192.88.99.7", "2001:db8:7ec::7"];
pub const LINK: [&str; 2] = ["169.254.0.7", "fe80::7"];
/// Remote port of the connections that the host has.
pub const FAR_PORT: u16 = 5_000;
/// Flows of sessions come from remote ports below this.
pub const RELAYED: u16 = TO_HOST_PORTS.end;
/// What is no revoked, expired or missing thing by itself is one in these seconds of the wall clock.
const WALL_OFFSET: u64 = 1_790_000_000 * 1_000_000_000;

pub struct World {
    pub model: Model,
    /// Local port of the connection that the host has to `REMOTE`, per family.
    pub opened: [u16; 2],
    pub recent: Vec<IpAddr>,
    _sockets: Vec<(TcpListener, TcpListener, TcpStream, TcpStream)>,
}

impl World {
    /// The model, and its sockets for real.
    pub fn in_namespace(netns: &Netns) -> Result<Self> {
        for address in LOCAL.iter().chain(&REMOTE) {
            netns.address("lo", &format!("{address}/{}", if address.contains(':') { 128 } else { 32 }))?;
        }
        let mut world = Self {
            model: model(),
            opened: [0; 2],
            recent: addresses(&RECENT).collect(),
            _sockets: Vec::new(),
        };
        for (family, (remote, local)) in REMOTE.iter().zip(LOCAL).enumerate() {
            let path = Path::new(remote, local);
            let sockets = netns.enter(|| sockets(&path))??;
            let (local, remote) = (sockets.2.local_addr()?, sockets.2.peer_addr()?);
            world.opened[family] = local.port();
            // The far end is in the namespace too.
            world.model.connections.extend([(local, remote), (remote, local)]);
            world.model.listeners.extend([sockets.0.local_addr()?, sockets.1.local_addr()?]);
            world._sockets.push(sockets);
        }
        Ok(world)
    }
}

/// Without the sockets.
pub fn model() -> Model {
    let mut model = Model::serving().with_keys().with_relay(REMOTE, LOCAL);
    model.settings.wall_offset = WALL_OFFSET;
    model.networks = addresses(&REMOTE).chain(addresses(&ADMIN)).chain(addresses(&RECENT)).collect();
    model.revoked.insert(66);
    // Next hops that cannot be: more tags than a frame takes, and none at all.
    let impossible = Hop { ifindex: INGRESS_IFINDEX, mtu: 1_500, tags: 3, ..Hop::default() };
    model.hops.insert(4, impossible);
    for (remote, local) in REMOTE.iter().zip(LOCAL) {
        let path = Path::new(remote, local);
        for port in 16..TO_HOST_PORTS.start {
            let arriving = flow(&path, 443, port);
            let entry = FlowEntry {
                hop: u32::from(port >> 2),
                generation: 1,
                ..FlowEntry::rewrite(&arriving, &arriving)
            };
            model.flows.push((arriving, entry));
        }
        let (asked, now) = (flow(&path, 40_000, 53), monotonic_ns());
        // A run may be longer than a flow lives.
        let sent = now + 1_000 * HOST_FLOW_NS;
        model.host_flows.insert(HostFlowKey::udp(&asked), sent);
        model.host_flows.insert(HostFlowKey::echo(asked.local, asked.remote, 77), sent);
        let stale = Flow { remote_port: 54, ..asked };
        model.host_flows.insert(HostFlowKey::udp(&stale), now.saturating_sub(200_000_000_000).max(1));
    }
    model
}

pub fn flow(path: &Path, local_port: u16, remote_port: u16) -> Flow {
    Flow {
        family: if path.is_v4() { Family::V4 } else { Family::V6 },
        local: Address::from(path.local),
        remote: Address::from(path.remote),
        local_port,
        remote_port,
    }
}

fn addresses(texts: &'static [&'static str]) -> impl Iterator<Item = IpAddr> {
    texts.iter().filter_map(|text| text.parse().ok())
}

/// A listener of the host, one of the far end, and the two ends of a connection from the host to that one.
fn sockets(path: &Path) -> Result<(TcpListener, TcpListener, TcpStream, TcpStream)> {
    let served = TcpListener::bind((path.local, 443))?;
    let far = TcpListener::bind((path.remote, FAR_PORT))?;
    let family = if path.is_v4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket: OwnedFd = rustix::net::socket(family, SocketType::STREAM, None)?;
    // Both ends are addresses of the namespace; left alone, the kernel would connect an address to itself.
    rustix::net::bind(&socket, &SocketAddr::new(path.local, 0))?;
    // The kernel routes to a new IPv6 address a little later than it takes it.
    wait_until("a route to the far end", Duration::from_secs(10), || {
        Ok(rustix::net::connect(&socket, &SocketAddr::new(path.remote, FAR_PORT)).ok())
    })?;
    let (answering, _) = far.accept()?;
    Ok((served, far, TcpStream::from(socket), answering))
}
