//! What was measured, as a table and as JSON.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::Options;
use super::figure::Figure;
use super::forward::Curve;
use super::plot;

pub struct Report {
    options: Options,
    pub figures: Vec<Figure>,
    /// Nanoseconds of a program by itself, by name.
    pub nanoseconds: Vec<(String, f64)>,
    pub curves: Vec<Curve>,
}

impl Report {
    pub(super) fn new(options: &Options) -> Self {
        Self { options: options.clone(), figures: Vec::new(), nanoseconds: Vec::new(), curves: Vec::new() }
    }

    /// Whether every figure reaches its target.
    pub fn is_met(&self) -> bool {
        self.figures.iter().all(Figure::is_met)
    }

    pub fn table(&self) -> String {
        let mut text = self.method();
        text.push('\n');
        if !self.figures.is_empty() {
            text += &table(&self.figures, "packets/s (M)");
        }
        if !self.nanoseconds.is_empty() {
            text += "\nnanoseconds of the program alone (BPF_PROG_TEST_RUN, the harness included)\n";
        }
        for (name, ns) in &self.nanoseconds {
            let _ = writeln!(text, "  {name:<20} {ns:>6.0}");
        }
        text
    }

    /// Draws packets a second against the number of flows.
    pub fn write_svg(&self, path: &Path) -> Result<()> {
        plot::write(path, &self.curves)
    }

    pub fn json(&self) -> Value {
        let mut method = machine_json();
        method["runs"] = self.options.runs.into();
        method["run_seconds"] = self.options.length.as_secs_f64().into();
        method["cpu"] = self.options.cpu.into();
        json!({
            "method": method,
            "met": self.is_met(),
            "figures": figures_json(&self.figures),
            "nanoseconds": self.nanoseconds.iter().map(|(name, ns)| json!({ "program": name, "ns": ns })).collect::<Vec<_>>(),
            "curves": self.curves.iter().map(|curve| json!({
                "contender": curve.name,
                "points": curve.points.iter().map(|(flows, rate)| json!({ "flows": flows, "packets_per_second": rate })).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
        })
    }

    fn method(&self) -> String {
        let Options { runs, length, cpu } = &self.options;
        format!(
            "{}\nmedian of {runs} interleaved runs of {} ms; generator, veth, contender and counter share CPU {cpu}\n",
            machine_line(),
            length.as_millis(),
        )
    }
}

/// The figures as a table, whose last column has this title.
pub(super) fn table(figures: &[Figure], last: &str) -> String {
    let mut rows = vec![["figure", "against", "measured", "target", "", last].map(str::to_owned)];
    for figure in figures {
        rows.push([
            figure.what.clone(),
            figure.against.clone().unwrap_or_default(),
            figure.value(),
            figure.target.to_string(),
            if figure.is_met() { "✔" } else { "✘" }.to_owned(),
            match (figure.rates, &figure.note) {
                (Some((own, peer)), _) => format!("{:.3} : {:.3}", own / 1e6, peer / 1e6),
                (None, note) => note.clone().unwrap_or_default(),
            },
        ]);
    }
    align(&rows)
}

pub(super) fn figures_json(figures: &[Figure]) -> Value {
    let each = figures.iter().map(|figure| {
        json!({
            "figure": figure.what,
            "against": figure.against,
            "value": figure.value,
            "unit": figure.unit.name(),
            "target": figure.target.to_string(),
            "met": figure.is_met(),
            "packets_per_second": figure.rates.map(|(own, peer)| json!({ "subject": own, "peer": peer })),
            "note": figure.note,
        })
    });
    each.collect()
}

/// On what this was measured.
pub(super) fn machine_json() -> Value {
    json!({ "kernel": kernel(), "processor": processor(), "load_average": load_average() })
}

pub(super) fn machine_line() -> String {
    format!("{} · Linux {} · load {}", processor(), kernel(), load_average())
}

fn align(rows: &[[String; 6]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..6).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or("unknown processor", |(_, name)| name).to_owned()
}

fn load_average() -> String {
    let average = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    average.split(' ').take(3).collect::<Vec<_>>().join(" ")
}
