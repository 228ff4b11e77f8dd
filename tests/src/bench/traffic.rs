//! The packets that the generator sends: templates, and for flows the ports to choose among.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};

use super::lab::{NODE_V4, NODE_V6, TUNNEL_PORT};
use crate::gate::packet::{self, Path, SYN, TCP, UDP};

/// Bytes of a stranger's frame: what the longest headers and a connection ID need, the same for all kinds.
const STRANGER_FRAME: usize = 104;
/// Bytes of a flow's frame: the smallest that Ethernet has.
const FLOW_FRAME: usize = 64;
/// Templates of each kind of stranger, each from an address of its own.
const STRANGERS: usize = 256;
/// Flows of one address: ports `FIRST_PORT..FIRST_PORT + PORTS`.
const PORTS: u16 = 1 << 14;
const FIRST_PORT: u16 = 1 << 14;

pub struct Traffic {
    templates: Vec<Vec<u8>>,
    ports: Option<Ports>,
}

/// A choice of source ports: the template's with any of the low bits set.
#[derive(Clone, Copy)]
pub struct Ports {
    /// Where in the frame the source port is.
    pub offset: usize,
    /// A power of two.
    pub count: u16,
}

/// What a packet is that nobody authorised. The measured mix has as many of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stranger {
    /// IPv4: half of them UDP, half TCP SYN, each to a port that is not served.
    V4,
    /// The same over IPv6.
    V6,
    /// Both of them, with a VLAN tag.
    Vlan,
    /// A QUIC short header to the tunnel's port, with a connection ID that the node did not mint. Both families.
    ForgedQuic,
}

impl Stranger {
    pub const ALL: [Self; 4] = [Self::V4, Self::V6, Self::Vlan, Self::ForgedQuic];

    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
            Self::Vlan => "vlan",
            Self::ForgedQuic => "forged-quic",
        }
    }

    fn frame(self, nth: usize, random: &mut Random) -> Vec<u8> {
        let is_v6 = match self {
            Self::V4 => false,
            Self::V6 => true,
            Self::Vlan | Self::ForgedQuic => nth.is_multiple_of(2),
        };
        let path = Path { remote: random.address(is_v6), local: if is_v6 { NODE_V6 } else { NODE_V4 } };
        let tags: &[u16] = if self == Self::Vlan { &[0x8100] } else { &[] };
        let room = STRANGER_FRAME - 14 - 4 * tags.len() - if is_v6 { 40 } else { 20 };
        let source = 1_024 | random.next() as u16;
        // Above every port that is served, below what the kernel chooses by itself.
        let closed = 10_000 + (random.next() % 10_000) as u16;
        let (protocol, mut segment) = if self == Self::ForgedQuic {
            let mut data: Vec<u8> = (0..room - 8).map(|_| random.next() as u8).collect();
            data[0] = 0x40 | data[0] & 0x3f;
            (UDP, packet::udp(source, TUNNEL_PORT, &data))
        } else if nth % 4 < 2 {
            (UDP, packet::udp(source, closed, &vec![0; room - 8]))
        } else {
            (TCP, packet::tcp(source, closed, SYN))
        };
        segment.resize(room, 0);
        path.tagged(tags, protocol, &segment)
    }
}

impl Traffic {
    /// Packets that nobody authorised, as many of each kind.
    pub fn strangers(kinds: &[Stranger]) -> Self {
        let mut random = Random(1);
        let templates = (0..STRANGERS)
            .flat_map(|nth| kinds.iter().map(move |kind| (*kind, nth)))
            .map(|(kind, nth)| kind.frame(nth, &mut random));
        Self { templates: templates.collect(), ports: None }
    }

    /// UDP over IPv4 from [`sources`] to one address and port, at random.
    pub fn flows(count: u32, to: SocketAddr) -> Result<Self> {
        ensure!(count.is_power_of_two());
        let ports = u16::try_from(count.min(PORTS.into()))?;
        let mut templates = Vec::new();
        for from in sources(count).step_by(ports.into()) {
            let data = vec![0x40; FLOW_FRAME - 14 - 20 - 8];
            templates.push(udp_frame(from, to, &data));
        }
        let ports = (ports > 1).then_some(Ports { offset: 14 + 20, count: ports });
        Ok(Self { templates, ports })
    }

    /// One UDP flow, with this payload.
    pub fn datagram(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Self {
        Self { templates: vec![udp_frame(from, to, data)], ports: None }
    }

    pub fn templates(&self) -> &[Vec<u8>] {
        &self.templates
    }

    pub fn ports(&self) -> Option<Ports> {
        self.ports
    }

    pub fn frame_length(&self) -> usize {
        self.templates.first().map_or(0, Vec::len)
    }
}

/// The far ends of flows, IPv4: all ports of an address, then the next address.
pub fn sources(count: u32) -> impl Iterator<Item = SocketAddr> {
    (0..count).map(|nth| {
        let (address, port) = (nth / u32::from(PORTS), nth % u32::from(PORTS));
        let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 1, 0)) + address);
        SocketAddr::new(ip.into(), FIRST_PORT + port as u16)
    })
}

/// IPv4, with the UDP checksum set: the kernel aggregates no datagram without one.
fn udp_frame(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Vec<u8> {
    let path = Path { remote: from.ip(), local: to.ip() };
    let mut datagram = packet::udp(from.port(), to.port(), data);
    let sum = path.checksum(UDP, &datagram);
    datagram[6..8].copy_from_slice(&sum);
    path.frame(UDP, &datagram)
}

/// SplitMix64: the same packets in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// In 203.0.0.0/8 or 2001:db8:203::/48: on no link of the lab.
    fn address(&mut self, is_v6: bool) -> IpAddr {
        let word = self.next();
        if is_v6 {
            let prefix = 0x2001_0db8_0203u128 << 80;
            Ipv6Addr::from(prefix | u128::from(word)).into()
        } else {
            Ipv4Addr::from(203 << 24 | (word as u32 & 0x00ff_ffff)).into()
        }
    }
}
