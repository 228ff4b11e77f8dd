//! The lab of one contender, made of namespaces of its own.
//!
//! ```text
//!   generator            node                     sink          one core carries a packet from end to end:
//!     g0 ═════════ in0 [contender] out0 ═══════════ s0          generator → veth → contender → veth → drop
//!   198.18.0.1     198.18.255.254  198.19.255.254   198.19.0.1
//! ```
//!
//! `out0` and the sink are there only for contenders that forward. `g0` and `s0` drop what reaches them by a bare `XDP_DROP`,
//! so that whatever a contender sends on ends alike and is counted alike: by the `xdp_packets` of the veth driver's statistics.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};

use super::program;
use super::sys;
use crate::netns::{Netns, veth};

pub const NODE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 255, 254));
pub const NODE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 0xfffe));
/// Where the node serves tunnels, and where flows are sent to be relayed.
pub const TUNNEL_PORT: u16 = 443;
pub const TUNNEL: SocketAddr = SocketAddr::new(NODE_V4, TUNNEL_PORT);
/// Where the flows end.
pub const SINK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 19, 0, 1)), 5_000);

pub struct Lab {
    pub generator: Netns,
    pub node: Netns,
    pub sink: Option<Netns>,
    /// Attachments that live as long as the lab.
    links: Vec<OwnedFd>,
}

/// An end of a link, and what arrives there.
pub struct Port<'a> {
    pub netns: &'a Netns,
    pub name: &'static str,
}

impl Lab {
    /// A node with one interface.
    pub fn one_port(label: &str) -> Result<Self> {
        let generator = Netns::new(&format!("{label}-gen"))?;
        let node = Netns::new(&format!("{label}-node"))?;
        for netns in [&generator, &node] {
            quiet(netns)?;
        }
        veth(&generator, "g0", &node, "in0")?;
        let lab = Self { generator, node, sink: None, links: Vec::new() };
        lab.generator.run("ip link set g0 address 02:00:00:00:00:02")?;
        lab.node.run("ip link set in0 address 02:00:00:00:00:01")?;
        lab.generator.address("g0", "198.18.0.1/16")?;
        lab.node.address("in0", "198.18.255.254/16")?;
        lab.node.address("in0", "2001:db8:18::fffe/64")?;
        Ok(lab)
    }

    /// A node that forwards from one interface to another.
    pub fn two_ports(label: &str) -> Result<Self> {
        let mut lab = Self::one_port(label)?;
        let sink = Netns::new(&format!("{label}-sink"))?;
        quiet(&sink)?;
        veth(&lab.node, "out0", &sink, "s0")?;
        sink.run("ip link set s0 address 02:00:00:00:00:04")?;
        sink.address("s0", "198.19.0.1/16")?;
        lab.node.run("ip link set out0 address 02:00:00:00:00:03")?;
        lab.node.address("out0", "198.19.255.254/16")?;
        lab.node.run("ip neigh replace 198.19.0.1 lladdr 02:00:00:00:00:04 dev out0 nud permanent")?;
        lab.sink = Some(sink);
        Ok(lab)
    }

    /// Attaches the programs that end what arrives. From here on nobody in the outer namespaces hears an answer.
    pub fn absorb(&mut self) -> Result<()> {
        let drop = program::bare_drop()?;
        let mut ends = vec![attach(&self.generator, "g0", drop.as_fd())?];
        if let Some(sink) = &self.sink {
            ends.push(attach(sink, "s0", drop.as_fd())?);
        }
        self.links.append(&mut ends);
        Ok(())
    }

    /// Puts a program on the interface where packets arrive.
    pub fn contend(&mut self, program: BorrowedFd<'_>) -> Result<()> {
        self.links.push(attach(&self.node, "in0", program)?);
        Ok(())
    }

    /// Lets the kernel's own stack take packets at `in0` in batches, as a network card's driver would: a veth without it, and without
    /// a program, takes no frame of the generator.
    pub fn receive_by_stack(&self) -> Result<()> {
        self.node.run("ethtool -K in0 gro on").map(drop)
    }

    /// Where packets reach the contender.
    pub fn at_node(&self) -> Port<'_> {
        Port { netns: &self.node, name: "in0" }
    }

    /// Where packets arrive that the contender sent back.
    pub fn at_generator(&self) -> Port<'_> {
        Port { netns: &self.generator, name: "g0" }
    }

    /// Where packets arrive that the contender forwarded.
    pub fn at_sink(&self) -> Result<Port<'_>> {
        Ok(Port { netns: self.sink.as_ref().context("a lab without a sink")?, name: "s0" })
    }
}

impl Port<'_> {
    /// Packets that the driver has handled so far, whatever became of them.
    pub fn packets(&self) -> Result<u64> {
        let statistics = self.netns.run(&format!("ethtool -S {}", self.name))?;
        let counts = statistics.lines().filter_map(|line| line.trim().split_once(": "));
        let handled =
            counts.filter(|(name, _)| name.starts_with("rx_queue_") && name.ends_with("_xdp_packets"));
        handled.map(|(_, count)| Ok(count.parse::<u64>()?)).sum()
    }
}

pub fn ifindex(netns: &Netns, interface: &'static str) -> Result<u32> {
    netns.enter(move || {
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
        Ok(rustix::net::netdevice::name_to_index(&socket, interface)?)
    })?
}

/// Puts a program on an interface until what comes back is dropped.
pub fn attach(netns: &Netns, interface: &'static str, program: BorrowedFd<'_>) -> Result<OwnedFd> {
    let ifindex = ifindex(netns, interface)?;
    netns.enter(|| sys::attach_xdp(program, ifindex))?
}

/// Nothing but the generator's packets on the links, and checksums complete in every frame that leaves a socket.
fn quiet(netns: &Netns) -> Result<()> {
    netns.sysctl("net/ipv6/conf/default/accept_ra", "0")?;
    netns.sysctl("net/ipv6/conf/default/router_solicitations", "0")?;
    netns.sysctl("net/ipv4/conf/default/rp_filter", "0")?;
    netns.sysctl("net/ipv4/conf/all/rp_filter", "0")
}
