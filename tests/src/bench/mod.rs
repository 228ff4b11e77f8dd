//! `cargo xtask bench gate`: the gate beside bare programs and its peers, in one run. See `docs/benchmarks.md`.
//!
//! | module | gives |
//! |---|---|
//! | `drop`, `forward`, `size` | the figures |
//! | `relay`, `userspace`, `coturn` | the relay as it is measured, and two of its peers |
//! | `contender`, `measure` | something that is given packets; interleaved runs of several |
//! | `lab`, `generator`, `traffic` | where, by whom and which packets are sent |
//! | `gate`, `front` | the gate as it is measured; a small program in front of it |
//! | `flooded` | the relay of a node under a flood, for `cargo xtask bench flood` |
//! | `program`, `asm`, `sys` | the bench's own XDP programs |
//! | `figure`, `report`, `plot` | a figure against its target; the table, JSON, SVG |
//! | [`command`] | what the commands have in common |
//! | [`edge`] | another bench: who waits while the edge is flooded |
//! | [`saas`] | another bench: SAML sign-ins |
//! | [`sessions`] | another bench, of private sessions as a whole |

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

pub(crate) mod asm;
pub mod command;
mod contender;
mod coturn;
mod drop;
pub mod edge;
mod figure;
mod flooded;
mod forward;
mod front;
mod gate;
mod generator;
pub(crate) mod lab;
mod measure;
mod plot;
mod program;
mod relay;
mod report;
pub mod saas;
pub mod sessions;
mod size;
pub(crate) mod sys;
mod traffic;
mod userspace;

pub use flooded::{Flooded, under_flood};
pub use front::Front;
pub use relay::map as gate_map;
pub use report::Report;

/// How to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rounds of each group, of which the median counts.
    pub runs: usize,
    /// Length of one run of one contender.
    pub length: Duration,
    /// The CPU that carries the packets.
    pub cpu: usize,
}

/// Rows that are measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// Unauthorised packets
    Drop,
    /// The relay of one flow beside bare programs
    Relay,
    /// The relay of one flow beside the kernel's forwarding and programs in userspace
    Peers,
    /// 65,536 flows at random
    Many,
    /// One flow among idle ones
    Among,
    /// Packets of revoked sessions
    Revoked,
    /// Nanoseconds of the program alone
    Alone,
    /// Memory, load time, work for the verifier
    Size,
    /// Packets a second against the number of flows
    Curves,
}

/// Measures the groups. `say` is told what comes next.
pub fn run(options: &Options, groups: &[Group], say: &dyn Fn(&str)) -> Result<Report> {
    let mut report = Report::new(options);
    for group in groups {
        if let Some(name) = group.to_possible_value() {
            say(name.get_name());
        }
        match group {
            Group::Drop => report.figures.extend(drop::figures(options)?),
            Group::Relay => report.figures.extend(forward::bare(options)?),
            Group::Peers => report.figures.extend(forward::peers(options)?),
            Group::Many => report.figures.extend(forward::many_flows(options)?),
            Group::Among => report.figures.extend(relay::among(options)?),
            Group::Revoked => report.figures.push(relay::revoked(options)?),
            Group::Alone => report.nanoseconds = drop::nanoseconds(options)?,
            Group::Size => report.figures.extend(size::figures(options)?),
            Group::Curves => report.curves = forward::curves(options)?,
        }
    }
    Ok(report)
}

/// A program that passes everything, on an interface until it is dropped. What XDP sends back over a veth is only received at an end
/// that has a program.
pub fn pass_everything(netns: &crate::netns::Netns, interface: &'static str) -> Result<std::os::fd::OwnedFd> {
    use std::os::fd::AsFd as _;
    let index = lab::ifindex(netns, interface)?;
    netns.enter(|| sys::attach_xdp(program::bare_pass()?.as_fd(), index))?
}

/// Drop does not run after a signal, so a thread takes the namespaces down.
pub fn clean_up_on_signals() {
    std::thread::spawn(|| {
        use tokio::signal::unix::{SignalKind, signal};
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            crate::netns::remove_own();
            std::process::exit(130);
        });
    });
}

/// A CPU that does not carry the packets, for a program in userspace; with only one it is that one.
fn other_cpu(cpu: usize) -> usize {
    if cpu > 0 {
        cpu - 1
    } else {
        std::thread::available_parallelism().map_or(0, |cpus| 1.min(cpus.get() - 1))
    }
}
