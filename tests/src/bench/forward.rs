//! Flows that are carried on: the peers of the relay.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::Result;

use super::contender::{Contender, CountAt};
use super::figure::{Figure, Target, Unit};
use super::lab::{Lab, SINK, TUNNEL, ifindex};
use super::measure::{Samples, rounds};
use super::traffic::Traffic;
use super::{Options, coturn, program, relay, userspace};

/// How many flows the curve of packets a second is drawn for.
const COUNTS: [u32; 5] = [1, 16, 256, 4_096, 65_536];
/// Loads that a program in userspace is tried with: one frame in so many of those that the generator could send.
const SHARES: [u32; 7] = [1, 4, 8, 16, 32, 64, 128];

/// Packets a second of one contender by number of flows.
pub struct Curve {
    pub name: String,
    pub points: Vec<(u32, f64)>,
}

/// One flow, beside programs that only send it on.
pub fn bare(options: &Options) -> Result<Vec<Figure>> {
    let mut contenders = vec![bare_tx(1, options)?, bare_redirect(1, options)?];
    contenders.extend(relay::install_relay(1, options)?);
    let samples = rounds(&contenders, options)?;
    let [tx, redirect, relay @ ..] = &samples[..] else { unreachable!("one for each") };
    Ok([tx, redirect].map(|peer| ratio(ONE_FLOW, relay, peer, 0.85)).into())
}

/// One flow, beside those that do the same job.
pub fn peers(options: &Options) -> Result<Vec<Figure>> {
    let mut contenders = vec![ip_forward(1, options)?, dnat(1, options)?];
    for peer in [userspace::aggregating(options)?, userspace::plain(options)?, coturn::contender(options)?] {
        let (mut peer, traffic) = peer;
        peer.find_best_load(&traffic, options, &SHARES)?;
        contenders.push(peer);
    }
    contenders.extend(relay::install_relay(1, options)?);
    let samples = rounds(&contenders, options)?;
    let [forward, dnat, aggregating, plain, coturn, relay @ ..] = &samples[..] else {
        unreachable!("one for each")
    };
    let targets = [(forward, 2.0), (dnat, 3.0), (aggregating, 3.0), (plain, 8.0), (coturn, 10.0)];
    Ok(targets.map(|(peer, bound)| ratio(ONE_FLOW, relay, peer, bound)).into())
}

/// 65,536 flows, of which each packet is one at random.
pub fn many_flows(options: &Options) -> Result<Vec<Figure>> {
    let mut contenders = vec![bare_tx(65_536, options)?, bare_redirect(65_536, options)?];
    contenders.extend(relay::install_relay(65_536, options)?);
    let samples = rounds(&contenders, options)?;
    let [tx, redirect, relay @ ..] = &samples[..] else { unreachable!("one for each") };
    Ok([tx, redirect].map(|peer| ratio("relay, 65,536 random flows", relay, peer, 0.50)).into())
}

pub fn curves(options: &Options) -> Result<Vec<Curve>> {
    let mut curves: Vec<Curve> = Vec::new();
    for count in COUNTS {
        let mut contenders = in_kernel(count, options)?;
        contenders.extend(relay::install_relay(count, options)?);
        for samples in rounds(&contenders, options)? {
            let point = (count, samples.median());
            match curves.iter_mut().find(|curve| curve.name == samples.name) {
                Some(curve) => curve.points.push(point),
                None => curves.push(Curve { name: samples.name, points: vec![point] }),
            }
        }
    }
    Ok(curves)
}

/// The relay that leaves by the interface that the packet came by is compared with the bare program that does so too.
fn ratio(what: &str, relay: &[Samples], peer: &Samples, bound: f64) -> Figure {
    let same = if peer.name == TX { relay::ONE_PORT } else { relay::TWO_PORTS };
    let target = Target::AtLeast(bound);
    match relay.iter().find(|samples| samples.name == same) {
        Some(relay) => Figure::ratio(what, relay, peer, target),
        None => Figure::unmeasured(what, Some(peer), Unit::Ratio, target, relay::ABSENT),
    }
}

const ONE_FLOW: &str = "relay, one flow";
const TX: &str = "bare XDP_TX";

fn in_kernel(flows: u32, options: &Options) -> Result<Vec<Contender>> {
    Ok(vec![
        bare_tx(flows, options)?,
        bare_redirect(flows, options)?,
        ip_forward(flows, options)?,
        dnat(flows, options)?,
    ])
}

fn bare_tx(flows: u32, options: &Options) -> Result<Contender> {
    let mut lab = Lab::one_port("tx")?;
    lab.contend(program::bare_tx()?.as_fd())?;
    lab.absorb()?;
    Contender::new(TX, lab, &Traffic::flows(flows, TUNNEL)?, CountAt::Generator, options.cpu, ())
}

fn bare_redirect(flows: u32, options: &Options) -> Result<Contender> {
    let mut lab = Lab::two_ports("redirect")?;
    lab.contend(program::bare_redirect(ifindex(&lab.node, "out0")?)?.as_fd())?;
    lab.absorb()?;
    Contender::new("bare redirect", lab, &Traffic::flows(flows, TUNNEL)?, CountAt::Sink, options.cpu, ())
}

/// Routed as it is: no address changes, nothing is remembered.
fn ip_forward(flows: u32, options: &Options) -> Result<Contender> {
    forwarding("kernel ip_forward", "forward", flows, SINK, "", options)
}

/// The kernel's own relay: one rule, and a conntrack entry for each flow.
fn dnat(flows: u32, options: &Options) -> Result<Contender> {
    let rules = format!(
        "table ip t {{ chain c {{ type nat hook prerouting priority dstnat; \
         ip daddr {} udp dport {} dnat to {SINK}; }}; }}",
        TUNNEL.ip(),
        TUNNEL.port()
    );
    forwarding("nftables DNAT, conntrack", "dnat", flows, TUNNEL, &rules, options)
}

fn forwarding(
    name: &'static str,
    label: &str,
    flows: u32,
    to: SocketAddr,
    rules: &str,
    options: &Options,
) -> Result<Contender> {
    let mut lab = Lab::two_ports(label)?;
    lab.receive_by_stack()?;
    lab.node.forward()?;
    if !rules.is_empty() {
        lab.node.nft(rules)?;
    }
    lab.absorb()?;
    let contender = Contender::new(name, lab, &Traffic::flows(flows, to)?, CountAt::Sink, options.cpu, ())?;
    // Every flow must have its entry before it counts: a new one costs what only its first packet pays.
    contender.measure(Duration::from_millis(200))?;
    Ok(contender)
}
