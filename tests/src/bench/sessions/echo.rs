//! A byte there and back through an open session: what the gate adds to a bare program in its place.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::super::figure::{Figure, Target, Unit};
use super::super::measure::median;
use super::Options;
use super::bare::Swap;
use super::lab::{ECHO, World, local};
use super::origin;

/// Bytes of one run, one after the other.
const BYTES: usize = 2_000;

pub fn figure(relayed: &World, options: &Options) -> Result<Figure> {
    let mut stream = origin::connect(&relayed.line.user, local(ECHO))?;
    origin::echo(&mut stream, BYTES)?;
    // The session of the echo has no more packets than others; it is the one that grows.
    let swap = Swap::of_what_grows(&relayed.pin(), || origin::echo(&mut stream, BYTES).map(drop))?;
    let (mut with_gate, mut with_bare, mut added) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..2 * options.runs {
        let mut measure = |bare: bool| -> Result<f64> {
            if bare {
                swap.to_bare()?
            } else {
                swap.to_gate()?
            }
            p50(origin::echo(&mut stream, BYTES)?)
        };
        let first_bare = round % 2 == 1;
        let (first, second) = (measure(first_bare)?, measure(!first_bare)?);
        let (gate, bare) = if first_bare { (second, first) } else { (first, second) };
        with_gate.push(gate);
        with_bare.push(bare);
        added.push(gate - bare);
    }
    let figure =
        Figure::new("1-byte echo, p50 added", median(added), Unit::Microseconds, Target::AtMost(5.0));
    let note =
        format!("p50 {:.0} : {:.0} µs, client to origin and back", median(with_gate), median(with_bare));
    Ok(Figure { against: Some("bare XDP redirect".to_owned()), ..figure.with_note(note) })
}

/// Microseconds.
fn p50(mut times: Vec<Duration>) -> Result<f64> {
    times.sort_unstable();
    Ok(times.get(times.len() / 2).context("no echo")?.as_secs_f64() * 1e6)
}
