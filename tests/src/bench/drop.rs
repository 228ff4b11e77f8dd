//! Packets that nobody authorised: how fast they are dropped.

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::Result;
use portcullis::gate::Gate;

use super::contender::{Contender, CountAt};
use super::figure::{Figure, Target, Unit};
use super::lab::Lab;
use super::measure::{Samples, rounds};
use super::traffic::{Stranger, Traffic};
use super::{Options, gate, program, sys};
use crate::process::Process;

/// The gate and its peers, each dropping the same mix of packets.
pub fn figures(options: &Options) -> Result<Vec<Figure>> {
    let traffic = Traffic::strangers(&Stranger::ALL);
    let cpu = options.cpu;
    let (portcullis, gate) = portcullis(&traffic, cpu)?;
    let contenders = [portcullis, bare(&traffic, cpu)?, nftables(&traffic, cpu)?, xdp_filter(&traffic, cpu)?];
    let passed = gate::passed(&gate)?;
    let samples = rounds(&contenders, options)?;
    let passed = gate::passed(&gate)? - passed;
    let [portcullis, bare, nftables, xdp_filter] = &samples[..] else { unreachable!("one for each") };
    let against =
        |peer: &Samples, target| Figure::ratio("unauthorised packets dropped", portcullis, peer, target);
    Ok(vec![
        against(bare, Target::AtLeast(0.80)),
        against(nftables, Target::AtLeast(1.5)),
        against(xdp_filter, Target::AtLeast(0.9)),
        Figure::new("unauthorised packets that passed meanwhile", passed as f64, Unit::Packets, Target::Zero),
    ])
}

/// Nanoseconds of the program alone, by `BPF_PROG_TEST_RUN`, on each kind of packet: without driver and generator.
pub fn nanoseconds(options: &Options) -> Result<Vec<(String, f64)>> {
    const REPEAT: u32 = 1_000_000;
    let lab = Lab::one_port("ns")?;
    gate::open(&lab)?;
    let (judge, bare) = (gate::program(&lab)?, program::bare_drop()?);
    let mut frames = Vec::new();
    for kind in Stranger::ALL {
        let traffic = Traffic::strangers(&[kind]);
        // Neighbours in the list differ in family or protocol: two of each suffice.
        frames.extend(
            traffic.templates()[..4]
                .iter()
                .enumerate()
                .map(|(nth, frame)| (format!("{}-{nth}", kind.name()), frame.clone())),
        );
    }
    let frame = frames[0].1.clone();
    let mut times = Vec::new();
    lab.node.enter(|| -> Result<()> {
        super::generator::pin(options.cpu)?;
        let mut time = |name: String, program: std::os::fd::BorrowedFd<'_>, frame: &[u8]| -> Result<()> {
            let runs: Result<Vec<f64>> =
                (0..options.runs).map(|_| Ok(f64::from(sys::time_run(program, frame, REPEAT)?))).collect();
            times.push((name, super::measure::median(runs?)));
            Ok(())
        };
        time("bare XDP_DROP".into(), bare.as_fd(), &frame)?;
        for (name, frame) in &frames {
            time(name.clone(), judge.as_fd(), frame)?;
        }
        Ok(())
    })??;
    Ok(times)
}

fn portcullis(traffic: &Traffic, cpu: usize) -> Result<(Contender, Gate)> {
    let mut lab = Lab::one_port("gate")?;
    let (gate, _) = gate::open(&lab)?;
    lab.absorb()?;
    Ok((Contender::new("Portcullis", lab, traffic, CountAt::Node, cpu, ())?, gate))
}

fn bare(traffic: &Traffic, cpu: usize) -> Result<Contender> {
    let mut lab = Lab::one_port("bare")?;
    lab.contend(program::bare_drop()?.as_fd())?;
    lab.absorb()?;
    Contender::new("bare XDP_DROP", lab, traffic, CountAt::Node, cpu, ())
}

/// One rule, on the earliest hook that nftables has: the least it can do.
fn nftables(traffic: &Traffic, cpu: usize) -> Result<Contender> {
    let mut lab = Lab::one_port("nft")?;
    lab.receive_by_stack()?;
    lab.node.nft(
        "table netdev t { chain c { type filter hook ingress device in0 priority 0; policy drop; }; }",
    )?;
    lab.absorb()?;
    Contender::new("nftables, drop at ingress", lab, traffic, CountAt::Node, cpu, ())
}

/// All features, and the policy that drops what no rule allows. There are no rules.
fn xdp_filter(traffic: &Traffic, cpu: usize) -> Result<Contender> {
    let mut lab = Lab::one_port("filter")?;
    // It pins below /sys/fs/bpf and cannot be told otherwise, so it gets a file system of its own there. The shell keeps it.
    let script = "mount -t bpf bpf /sys/fs/bpf && xdp-filter load -m native -p deny in0 && echo loaded && exec sleep 86400";
    let mut command = lab.node.command("unshare");
    command.args(["--mount", "sh", "-c", script]);
    let mut filter = Process::spawn("xdp-filter", command)?;
    filter.wait_for_output("loaded", Duration::from_secs(20))?;
    lab.absorb()?;
    Contender::new("xdp-filter, policy deny", lab, traffic, CountAt::Node, cpu, filter)
}
