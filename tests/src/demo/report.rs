//! What the person in front of the terminal sees.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::demo::{Outcome, Step};

pub trait Reporter {
    fn begin(&mut self, step: &Step, planted: bool);
    fn end(&mut self, step: &Step, outcome: &Outcome);
}

/// A tick or a cross for each step with its evidence under it; a spinner while it runs, on terminals only.
#[derive(Default)]
pub struct Terminal {
    spinner: Option<ProgressBar>,
    count: usize,
}

impl Terminal {
    /// Shows what is going on before the first step.
    pub fn say(&self, what: &str) {
        eprintln!("  · {what}");
    }
}

impl Reporter for Terminal {
    fn begin(&mut self, step: &Step, planted: bool) {
        self.count += 1;
        if planted {
            println!("\n  ! fault planted: {}", step.fault.what);
        }
        let spinner = ProgressBar::new_spinner().with_message(step.claim);
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} ({elapsed})") {
            spinner.set_style(style);
        }
        spinner.enable_steady_tick(Duration::from_millis(100));
        self.spinner = Some(spinner);
    }

    fn end(&mut self, step: &Step, outcome: &Outcome) {
        let took = self.spinner.take().map_or(Duration::ZERO, |spinner| {
            spinner.finish_and_clear();
            spinner.elapsed()
        });
        let mark = if outcome.failure.is_none() { "✔" } else { "✘" };
        println!("\n{mark} {}. {} [{}] {:.1} s", self.count, step.claim, step.name, took.as_secs_f32());
        for line in &outcome.evidence {
            println!("    {line}");
        }
        if let Some(failure) = &outcome.failure {
            for line in failure.lines() {
                println!("    ✘ {line}");
            }
        }
    }
}

/// Says nothing, for tests.
pub struct Silent;

impl Reporter for Silent {
    fn begin(&mut self, _: &Step, _: bool) {}
    fn end(&mut self, _: &Step, _: &Outcome) {}
}
