//! What a relayed byte costs the node.
//!
//! Counted are the CPU time of the daemon's threads (as the scheduler accounts for them) and the time that the gate's programs run
//! (as the kernel times them). The driver's and the stack's share of interrupt context is in neither figure, except where a thread
//! of the daemon happens to do it: that is most of sending, for the userspace relay.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::super::figure::{Figure, Target, Unit};
use super::super::measure::median;
use super::super::sys;
use super::Options;
use super::bare::Swap;
use super::bulk::WARM_UP;
use super::lab::{Plane, SINK, World, local};

const GIB: f64 = (1u64 << 30) as f64;

pub fn figures(relayed: &World, swap: &Swap, options: &Options) -> Result<Vec<Figure>> {
    swap.to_gate()?;
    let timing = sys::count_run_time()?;
    let kernel = median(each(options, || {
        let gate = swap.gate_time()?;
        let (daemon, bytes) = spent(relayed, options.length)?;
        let gate = Duration::from_nanos(swap.gate_time()? - gate);
        Ok((daemon + gate).as_secs_f64() / bytes)
    })?);
    drop(timing);
    let plain = World::start(Plane::Userspace, None)?;
    let _client = plain.connect()?;
    let mut figures = Vec::new();
    for (gro, name, target) in [
        ("on", "userspace relay, GRO+GSO", Target::AtMost(1.0 / 3.0)),
        ("off", "userspace relay, unaggregated", Target::AtMost(1.0 / 8.0)),
    ] {
        for interface in ["eth0", "eth1"] {
            plain.line.node.run(&format!("ethtool -K {interface} gro {gro}"))?;
        }
        let userspace = median(each(options, || {
            let (daemon, bytes) = spent(&plain, options.length)?;
            Ok(daemon.as_secs_f64() / bytes)
        })?);
        let figure = Figure::new("CPU of the node for each GiB", kernel / userspace, Unit::Ratio, target);
        let note = format!("{:.3} : {:.3} s/GiB", kernel * GIB, userspace * GIB);
        figures.push(Figure { against: Some(name.to_owned()), ..figure.with_note(note) });
    }
    Ok(figures)
}

fn each(options: &Options, measure: impl FnMut() -> Result<f64>) -> Result<Vec<f64>> {
    std::iter::repeat_with(measure).take(options.runs).collect()
}

/// CPU time of the daemon during a bulk run, and the bytes of the run, the warm-up included in both.
fn spent(world: &World, length: Duration) -> Result<(Duration, f64)> {
    let (daemon, bytes) = (daemon_time(world)?, world.origin.swallowed());
    world.origin.bulk(&world.line.user, local(SINK), WARM_UP, length)?;
    Ok((daemon_time(world)?.saturating_sub(daemon), (world.origin.swallowed() - bytes) as f64))
}

/// CPU time of all threads of the node and its helper so far (`/proc/PID/task/TID/schedstat`).
fn daemon_time(world: &World) -> Result<Duration> {
    let mut nanoseconds = 0;
    for pid in world.line.node.pids()? {
        for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            let Ok(schedstat) = fs::read_to_string(task.path().join("schedstat")) else { continue };
            let spent: u64 = schedstat.split(' ').next().context("an empty schedstat")?.parse()?;
            nanoseconds += spent;
        }
    }
    Ok(Duration::from_nanos(nanoseconds))
}
