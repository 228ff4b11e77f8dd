//! What was measured, as a table and as JSON.

use serde_json::{Value, json};

use super::super::figure::Figure;
use super::super::report::{figures_json, machine_json, machine_line, table};
use super::Options;

pub struct Report {
    options: Options,
    pub figures: Vec<Figure>,
}

impl Report {
    pub(super) fn new(options: &Options) -> Self {
        Self { options: options.clone(), figures: Vec::new() }
    }

    /// Whether every figure reaches its target.
    pub fn is_met(&self) -> bool {
        self.figures.iter().all(Figure::is_met)
    }

    pub fn table(&self) -> String {
        let Options { runs, length, .. } = &self.options;
        format!(
            "{}\nmedian of {runs} interleaved runs of {} ms; everything shares {} CPUs\n\n{}",
            machine_line(),
            length.as_millis(),
            std::thread::available_parallelism().map_or(0, usize::from),
            table(&self.figures, "")
        )
    }

    pub fn json(&self) -> Value {
        let mut method = machine_json();
        method["runs"] = self.options.runs.into();
        method["run_seconds"] = self.options.length.as_secs_f64().into();
        json!({ "method": method, "met": self.is_met(), "figures": figures_json(&self.figures) })
    }
}
