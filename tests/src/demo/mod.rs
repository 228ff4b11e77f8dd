//! The demo: a lab of four parties, and steps that each show one promise and its control.
//!
//! ```text
//!   stranger ─┐                              ┌─ edge    portcullis node, XDP gate on eth0
//!             ├─── internet (a plain router) ┤
//!   user ─────┘                              └─ office  firewall: no inbound; nginx, a chat, portcullis connector
//! ```
//!
//! Every step also knows a fault: what would be wrong if its promise did not hold. `--break STEP` plants it, and then
//! that step, and no other, must fail. A step makes its own sessions and traffic, so steps do not lean on each other.

use anyhow::Result;

mod browser;
mod form;
mod keep;
mod lab;
mod office;
mod planted;
mod report;
mod scan;
mod steps;

pub use keep::keep;
pub use lab::Lab;
pub use report::{Reporter, Silent, Terminal};
pub use steps::all;

/// One promise.
pub struct Step {
    /// As on the command line.
    pub name: &'static str,
    /// What holds when the step passes.
    pub claim: &'static str,
    /// Shows it: an error is a cross.
    pub run: fn(&mut Lab, &mut Evidence) -> Result<()>,
    pub fault: Fault,
}

/// What a step guards against.
pub struct Fault {
    pub what: &'static str,
    pub plant: fn(&mut Lab) -> Result<()>,
    /// Undoes `plant`; also brings back what a step that failed half-way left.
    pub heal: fn(&mut Lab) -> Result<()>,
    /// Part of what the failed step then says: it shows that the step saw the fault and not something else.
    pub symptom: &'static str,
}

/// The lines under a step.
#[derive(Default)]
pub struct Evidence {
    pub lines: Vec<String>,
}

impl Evidence {
    pub fn see(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }

    /// What the control showed: that the step would have noticed.
    pub fn control(&mut self, line: impl Into<String>) {
        self.lines.push(format!("control: {}", line.into()));
    }
}

pub struct Outcome {
    pub step: &'static str,
    pub evidence: Vec<String>,
    /// Why the promise does not hold.
    pub failure: Option<String>,
}

/// Runs steps in their order, the fault of `broken` planted around its own step.
pub fn run(
    lab: &mut Lab,
    steps: impl IntoIterator<Item = Step>,
    broken: Option<&str>,
    reporter: &mut dyn Reporter,
) -> Result<Vec<Outcome>> {
    lab.office.forget_requests()?;
    let mut outcomes = Vec::new();
    for step in steps {
        let plant = broken == Some(step.name);
        reporter.begin(&step, plant);
        if plant {
            (step.fault.plant)(lab)?;
        }
        let mut evidence = Evidence::default();
        let failure = (step.run)(lab, &mut evidence).err().map(|error| format!("{error:#}"));
        if plant || failure.is_some() {
            (step.fault.heal)(lab)?;
        }
        let outcome = Outcome { step: step.name, evidence: evidence.lines, failure };
        reporter.end(&step, &outcome);
        outcomes.push(outcome);
    }
    Ok(outcomes)
}
