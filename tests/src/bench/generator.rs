//! Sends traffic into `g0` as fast as one CPU can, or at a given rate.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::thread::{CpuSet, sched_setaffinity};

use super::lab::{Lab, ifindex};
use super::program;
use super::sys;
use super::traffic::Traffic;
use crate::netns::Netns;

/// Frames that one system call sends when nothing holds it back; some 20 ms.
const CHUNK: u32 = 1 << 16;
/// The same for a paced run: the kernel's own batch, so that no queue sees more at once.
const PACED_CHUNK: u32 = 64;

pub struct Generator {
    program: OwnedFd,
    netns: Netns,
    frame: Vec<u8>,
    cpu: usize,
}

/// What a run offered.
pub struct Sent {
    pub packets: u64,
    pub elapsed: Duration,
}

impl Generator {
    /// It runs on `cpu`, and so does what the veth driver does with its frames.
    pub fn new(lab: &Lab, traffic: &Traffic, cpu: usize) -> Result<Self> {
        let program = program::generator(traffic, ifindex(&lab.generator, "g0")?)?;
        let frame = vec![0; traffic.frame_length()];
        Ok(Self { program, netns: lab.generator.clone(), frame, cpu })
    }

    /// Sends for about as long as said; `rate` is in packets a second.
    pub fn send(&self, length: Duration, rate: Option<f64>) -> Result<Sent> {
        self.netns.enter(|| {
            pin(self.cpu)?;
            let started = Instant::now();
            let mut packets = 0u64;
            while started.elapsed() < length {
                let chunk = if rate.is_some() { PACED_CHUNK } else { CHUNK };
                sys::run_live(self.program.as_fd(), &self.frame, chunk)?;
                packets += u64::from(chunk);
                if let Some(rate) = rate {
                    let due = Duration::from_secs_f64(packets as f64 / rate);
                    while started.elapsed() < due {
                        std::hint::spin_loop();
                    }
                }
            }
            Ok(Sent { packets, elapsed: started.elapsed() })
        })?
    }
}

/// Binds the calling thread to a CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}
