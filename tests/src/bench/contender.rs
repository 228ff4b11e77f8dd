//! What is measured: something that is given packets in a lab of its own, and how many of them it got through with.

use std::time::Duration;

use anyhow::{Context, Result};

use super::generator::Generator;
use super::lab::{Lab, Port};
use super::traffic::Traffic;

pub struct Contender {
    pub name: &'static str,
    lab: Lab,
    generator: Generator,
    count: CountAt,
    /// The load at which it does best, packets a second; `None` is all that one CPU can offer.
    rate: Option<f64>,
    /// Whatever has to live as long.
    _keep: Box<dyn Send>,
}

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
        let generator = Generator::new(&lab, traffic, cpu)?;
        Ok(Self { name, lab, generator, count, rate: None, _keep: Box::new(keep) })
    }

    /// Packets a second over a run of about this length.
    pub fn measure(&self, length: Duration) -> Result<f64> {
        self.measure_at(length, self.rate).with_context(|| format!("measuring {}", self.name))
    }

    /// Offers less and less than all, and keeps to the load at which most got through: a program in userspace that is flooded spends
    /// its time on what it cannot take.
    pub fn find_best_load(&mut self, length: Duration, rates: &[f64]) -> Result<()> {
        let mut best = self.measure_at(length, None)?;
        for rate in rates {
            let got = self.measure_at(length, Some(*rate))?;
            if got > best {
                (best, self.rate) = (got, Some(*rate));
            }
        }
        Ok(())
    }

    fn measure_at(&self, length: Duration, rate: Option<f64>) -> Result<f64> {
        let port = self.port()?;
        let before = port.packets()?;
        let sent = self.generator.send(length, rate)?;
        let packets = port.packets()? - before;
        anyhow::ensure!(packets > 0, "none of {} packets got through", sent.packets);
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
