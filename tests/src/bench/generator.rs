//! Sends traffic into `g0` as fast as one CPU can, or a share of that.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::thread::{CpuSet, sched_setaffinity};

use super::lab::{Lab, ifindex};
use super::program;
use super::sys;
use super::traffic::Traffic;
use crate::netns::Netns;

/// Frames of a first run, before the rate is known.
const FIRST: u32 = 1 << 16;
const MOST: f64 = (1u32 << 28) as f64;

pub struct Generator {
    program: OwnedFd,
    netns: Netns,
    frame: Vec<u8>,
    cpu: usize,
    /// Frames that a run sends. A run is one system call: each ends with a wait for other CPUs, which would otherwise come
    /// more often the faster the contender is.
    count: AtomicU32,
}

/// What a run took.
pub struct Sent {
    /// Frames that the kernel prepared, sent or not.
    pub frames: u32,
    pub elapsed: Duration,
}

impl Generator {
    /// It runs on `cpu`, and so does what the veth driver does with its frames. Of `one_in` frames that the kernel prepares, one
    /// at random is sent: a power of two, by which it offers less.
    pub fn new(lab: &Lab, traffic: &Traffic, cpu: usize, one_in: u32) -> Result<Self> {
        let program = program::generator(traffic, ifindex(&lab.generator, "g0")?, one_in)?;
        Ok(Self::of(program, &lab.generator, traffic.frame_length(), cpu))
    }

    /// Runs a program of its own that writes frames of this length.
    pub fn of(program: OwnedFd, netns: &Netns, length: usize, cpu: usize) -> Self {
        Self { program, netns: netns.clone(), frame: vec![0; length], cpu, count: AtomicU32::new(FIRST) }
    }

    /// Sends for about as long as said, as far as the run before tells; the first run is short.
    pub fn send(&self, length: Duration) -> Result<Sent> {
        self.netns.enter(|| {
            pin(self.cpu)?;
            let count = self.count.load(Ordering::Relaxed);
            let started = Instant::now();
            sys::run_live(self.program.as_fd(), &self.frame, count)?;
            let elapsed = started.elapsed();
            let next = f64::from(count) * length.as_secs_f64() / elapsed.as_secs_f64();
            self.count.store(next.clamp(f64::from(FIRST), MOST) as u32, Ordering::Relaxed);
            Ok(Sent { frames: count, elapsed })
        })?
    }
}

/// Binds the calling thread to a CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}
