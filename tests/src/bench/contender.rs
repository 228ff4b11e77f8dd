//! What is measured: something that is given packets in a lab of its own, and how many of them it got through with.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Options;
use super::generator::Generator;
use super::lab::{Lab, Port};
use super::traffic::Traffic;

pub struct Contender {
    pub name: &'static str,
    /// Whatever has to live as long; it goes before the namespaces that it is in.
    _keep: Box<dyn Send>,
    lab: Lab,
    generator: Generator,
    count: CountAt,
}

/// Packets that a link may carry of its own accord: neighbour discovery, an answer of the kernel.
const OTHERS: u64 = 64;

/// Which packets count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountAt {
    /// Those that reached the contender and that it was done with.
    Node,
    /// Those that it sent back.
    Generator,
    /// Those that it forwarded.
    Sink,
}

impl Contender {
    pub fn new(
        name: &'static str,
        lab: Lab,
        traffic: &Traffic,
        count: CountAt,
        cpu: usize,
        keep: impl Send + 'static,
    ) -> Result<Self> {
        let generator = Generator::new(&lab, traffic, cpu, 1)?;
        Ok(Self { name, _keep: Box::new(keep), lab, generator, count })
    }

    /// Packets a second over a run of about this length.
    pub fn measure(&self, length: Duration) -> Result<f64> {
        self.measure_with(&self.generator, length).with_context(|| format!("measuring {}", self.name))
    }

    /// Offers less and less than all, and keeps to the load at which most got through: a program in userspace that is flooded spends
    /// its time on what it cannot take.
    pub fn find_best_load(&mut self, traffic: &Traffic, options: &Options, shares: &[u32]) -> Result<()> {
        let mut best = 0.0;
        for one_in in shares {
            let generator = Generator::new(&self.lab, traffic, options.cpu, *one_in)?;
            // Once to learn how many packets make a run.
            self.measure_with(&generator, options.length).ok();
            let rate = self.measure_with(&generator, options.length).unwrap_or(0.0);
            if rate > best {
                (best, self.generator) = (rate, generator);
            }
        }
        ensure!(best > 0.0, "nothing got through {} at any load", self.name);
        Ok(())
    }

    fn measure_with(&self, generator: &Generator, length: Duration) -> Result<f64> {
        let port = self.port()?;
        let before = port.packets()?;
        let sent = generator.send(length)?;
        let packets = port.packets()? - before;
        ensure!(packets > 0, "nothing got through");
        let most = u64::from(sent.frames) + OTHERS;
        ensure!(packets <= most, "{packets} packets counted of {} sent", sent.frames);
        Ok(packets as f64 / sent.elapsed.as_secs_f64())
    }

    fn port(&self) -> Result<Port<'_>> {
        match self.count {
            CountAt::Node => Ok(self.lab.at_node()),
            CountAt::Generator => Ok(self.lab.at_generator()),
            CountAt::Sink => self.lab.at_sink(),
        }
    }
}
