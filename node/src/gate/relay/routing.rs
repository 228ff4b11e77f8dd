//! Questions to the kernel's routing (rtnetlink(7)), one answer each, and news of its changes. Reading needs no
//! capability.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::link::{
    InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, VlanProtocol,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_ROUTE};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

/// Longer than the kernel ever takes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the kernel would send a packet. Not how long it may be on the way: of that the kernel believes ICMP errors, which
/// anybody can send, and next hops are shared. The ends find it out by themselves (RFC 8899).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) interface: u32,
    /// Whose link-layer address it needs.
    pub(super) neighbour: IpAddr,
    /// It ends at this host.
    pub(super) is_local: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) is_ethernet: bool,
    pub(super) is_up: bool,
    pub(super) address: Option<[u8; 6]>,
    pub(super) mtu: u32,
    /// Of a VLAN: the interface that its frames leave by, and type and number of its tag.
    pub(super) vlan: Option<(u32, [u8; 4])>,
}

/// A socket of the network namespace that it was made in.
pub(super) struct Routing {
    socket: Socket,
    sequence: u32,
}

impl Routing {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddr::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// `None`: there is no way there.
    pub(super) fn route(&mut self, from: IpAddr, to: IpAddr) -> io::Result<Option<Route>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(to);
        message.header.destination_prefix_length = bits(to);
        message.header.source_prefix_length = bits(from);
        message.attributes.push(RouteAttribute::Destination(to.into()));
        message.attributes.push(RouteAttribute::Source(from.into()));
        let answer = match self.ask(RouteNetlinkMessage::GetRoute(message), 0) {
            Ok(Some(RouteNetlinkMessage::NewRoute(answer))) => answer,
            Ok(_) => return Ok(None),
            Err(error) if is_unroutable(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_local = match answer.header.kind {
            RouteType::Unicast => false,
            RouteType::Local => true,
            _ => return Ok(None),
        };
        let mut route = Route { interface: 0, neighbour: to, is_local };
        for attribute in answer.attributes {
            match attribute {
                RouteAttribute::Oif(index) => route.interface = index,
                RouteAttribute::Gateway(RouteAddress::Inet(via)) => route.neighbour = via.into(),
                RouteAttribute::Gateway(RouteAddress::Inet6(via)) => route.neighbour = via.into(),
                RouteAttribute::Via(RouteVia::Inet(via)) => route.neighbour = via.into(),
                RouteAttribute::Via(RouteVia::Inet6(via)) => route.neighbour = via.into(),
                _ => {}
            }
        }
        Ok((route.interface != 0).then_some(route))
    }

    /// The link-layer address of a neighbour, as far as the kernel knows and has not found it wrong.
    pub(super) fn neighbour(&mut self, interface: u32, address: IpAddr) -> io::Result<Option<[u8; 6]>> {
        let message = neighbour_message(interface, address);
        let answer = match self.ask(RouteNetlinkMessage::GetNeighbour(message), 0) {
            Ok(Some(RouteNetlinkMessage::NewNeighbour(answer))) => answer,
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_known = matches!(
            answer.header.state,
            NeighbourState::Reachable
                | NeighbourState::Stale
                | NeighbourState::Delay
                | NeighbourState::Probe
                | NeighbourState::Permanent
        );
        Ok(answer.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) if is_known => bytes.as_slice().try_into().ok(),
            _ => None,
        }))
    }

    /// `None`: there is no such interface.
    pub(super) fn link(&mut self, interface: u32) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.header.index = interface;
        match self.ask(RouteNetlinkMessage::GetLink(message), 0) {
            Ok(Some(RouteNetlinkMessage::NewLink(answer))) => Ok(Some(link_of(&answer))),
            Ok(_) => Ok(None),
            Err(error) if is_no_device(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn keep_neighbour(&mut self, interface: u32, address: IpAddr) -> io::Result<()> {
        let mut message = neighbour_message(interface, address);
        message.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        let flags = NLM_F_CREATE | NLM_F_REPLACE | NLM_F_ACK;
        self.ask(RouteNetlinkMessage::NewNeighbour(message), flags).map(drop)
    }

    /// The answer; `None` where it is a bare acknowledgement.
    fn ask(&mut self, question: RouteNetlinkMessage, flags: u16) -> io::Result<Option<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(question));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let answer =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).map_err(io::Error::other)?;
            // An answer that an earlier question did not wait for.
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            return match answer.payload {
                NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
                NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
                _ => Ok(None),
            };
        }
    }
}

/// Has the kernel find a neighbour on an interface and keep it found (`NTF_EXT_MANAGED`, Linux 5.16): it does not see
/// what is relayed, and would forget who it never speaks to. For a process that has CAP_NET_ADMIN, on behalf of
/// [`Relay::set_keeper`](super::Relay::set_keeper).
///
/// # Errors
///
/// Without that capability, or such an interface.
pub fn keep_neighbour(interface: u32, address: IpAddr) -> io::Result<()> {
    Routing::open()?.keep_neighbour(interface, address)
}

/// News of neighbours, links and routes.
pub(super) struct Changes {
    socket: Socket,
}

/// `enum rtnetlink_groups` of include/uapi/linux/rtnetlink.h.
const GROUPS: [u32; 6] = [
    1,  // RTNLGRP_LINK
    3,  // RTNLGRP_NEIGH
    7,  // RTNLGRP_IPV4_ROUTE
    8,  // RTNLGRP_IPV4_RULE
    11, // RTNLGRP_IPV6_ROUTE
    19, // RTNLGRP_IPV6_RULE
];

impl Changes {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        Ok(Self { socket })
    }

    /// Whether anything has changed within so long a time. What has is left to be asked for: the news may be many,
    /// and some of them lost.
    pub(super) fn wait(&self, timeout: Duration) -> io::Result<bool> {
        set_socket_timeout(&self.socket, Timeout::Recv, Some(timeout))?;
        match self.socket.recv_from(&mut Vec::with_capacity(64), 0) {
            Ok(_) => Ok(true),
            // More than the socket's buffer holds has changed.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(true),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

fn neighbour_message(interface: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = interface;
    message.attributes.push(NeighbourAttribute::Destination(match address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    }));
    message
}

fn link_of(message: &LinkMessage) -> Link {
    let mut link = Link {
        name: String::new(),
        is_ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        is_up: message.header.flags.contains(LinkFlags::Up),
        address: None,
        mtu: 0,
        vlan: None,
    };
    let (mut parent, mut tag) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.address = bytes.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Link(index) => parent = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Data(InfoData::Vlan(vlan)) = info {
                        tag = Some(tag_of(vlan));
                    }
                }
            }
            _ => {}
        }
    }
    link.vlan = parent.zip(tag);
    link
}

/// Type and number as they lie in the frame, of priority 0.
fn tag_of(vlan: &[InfoVlan]) -> [u8; 4] {
    let (mut protocol, mut number) = (VlanProtocol::Ieee8021Q as u16, 0);
    for info in vlan {
        match info {
            InfoVlan::Id(id) => number = *id,
            InfoVlan::Protocol(kind) => protocol = *kind as u16,
            _ => {}
        }
    }
    let ([p0, p1], [n0, n1]) = (protocol.to_be_bytes(), number.to_be_bytes());
    [p0, p1, n0, n1]
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => u8::try_from(Ipv4Addr::BITS).unwrap_or(0),
        IpAddr::V6(_) => u8::try_from(Ipv6Addr::BITS).unwrap_or(0),
    }
}

/// No route, or none from that source address.
fn is_unroutable(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL | libc::EACCES | libc::EADDRNOTAVAIL)
    )
}

fn is_no_device(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO))
}
