//! The direct path: the same client and connector, whose datagrams the node's kernel forwards as large as they were handed over.
//!
//! The session is made through the gate as any other. Then the gate's links are detached, checksum and segmentation offloads are
//! turned on everywhere, and the node's namespace forwards the session's two legs by rules of nftables that rewrite the addresses as
//! the gate did. What UDP GSO has put together stays whole from one end's socket to the other's, as on no path with XDP. Nothing
//! decides or counts who may speak to whom, so this is no relay that anybody could run: it is what the pair could do at most.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portcullis_common::Address;

use super::bare;
use super::lab::{Plane, World};
use crate::netns::run;
use crate::process::Process;

/// The most that a packet has which was not put together of several.
const ONE_PACKET: u64 = 1_500;

/// Fields are in the order in which they must go.
pub struct Direct {
    _client: Process,
    world: World,
}

impl Direct {
    /// Runs bulk data for `length` to know the session.
    pub fn start(length: Duration) -> Result<Self> {
        let world = World::start(Plane::Xdp, None)?;
        let client = world.connect()?;
        world.bulk(length)?;
        let session = bare::busiest_session(&world.pin(), || Ok(()))?;
        let mut rules = [String::new(), String::new()];
        for (flow, entry) in &session {
            bare::detach(&world.pin(), entry)?;
            let came = format!("ip saddr {} udp sport {}", v4(flow.remote), flow.remote_port);
            let to = format!("{}:{}", v4(entry.destination), entry.destination_port);
            let from = format!("{}:{}", v4(entry.source), entry.source_port);
            rules[0] +=
                &format!("{came} ip daddr {} udp dport {} dnat to {to}\n", v4(flow.local), flow.local_port);
            rules[1] += &format!("{came} ip daddr {} snat to {from}\n", v4(entry.destination));
        }
        let line = &world.line;
        for (netns, interface) in
            [(&line.user, "eth0"), (&line.node, "eth0"), (&line.node, "eth1"), (&line.office, "eth0")]
        {
            netns.run(&format!("ethtool -K {interface} tx on sg on gso on tso on tx-udp-segmentation on"))?;
        }
        line.node.forward()?;
        let [dnat, snat] = rules;
        let mut file = tempfile::NamedTempFile::new()?;
        write!(
            file,
            "table ip direct {{
                counter passed {{ }}
                chain arriving {{ type nat hook prerouting priority dstnat; {dnat} }}
                chain leaving {{ type nat hook postrouting priority srcnat; {snat} }}
                chain between {{ type filter hook forward priority filter; counter name passed; }}
            }}"
        )?;
        run(line.node.command("nft").arg("-f").arg(file.path()))?;
        let direct = Self { _client: client, world };
        direct.bulk(length)?;
        Ok(direct)
    }

    /// Bits a second to the sink.
    pub fn bulk(&self, length: Duration) -> Result<f64> {
        let (packets, bytes, arrived) = self.so_far()?;
        let rate = self.world.bulk(length)?;
        let (packets_now, bytes_now, arrived_now) = self.so_far()?;
        let (packets, bytes) = (packets_now - packets, bytes_now - bytes);
        ensure!(bytes > arrived_now - arrived, "{bytes} bytes were forwarded, and more arrived");
        // Half of the packets are the other direction's, and small.
        ensure!(bytes / packets > ONE_PACKET, "{bytes} bytes were forwarded in {packets} packets");
        Ok(rate)
    }

    /// Packets and bytes that the kernel has forwarded, and bytes that have come to the origin.
    fn so_far(&self) -> Result<(u64, u64, u64)> {
        let mut command: Command = self.world.line.node.command("nft");
        let listed = run(command.args(["-j", "list", "counter", "ip", "direct", "passed"]))?;
        let listed: serde_json::Value = serde_json::from_str(&listed)?;
        let counter =
            listed["nftables"].as_array().and_then(|all| all.iter().find_map(|one| one.get("counter")));
        let counter = counter.context("no counter")?;
        let number = |name: &str| counter[name].as_u64().with_context(|| format!("no {name} in {counter}"));
        Ok((number("packets")?, number("bytes")?, self.world.origin.swallowed()))
    }
}

fn v4(address: Address) -> Ipv4Addr {
    Ipv4Addr::from(address.v4_word().to_ne_bytes())
}
