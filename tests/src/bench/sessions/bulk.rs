//! Bulk data from the client's machine to the origin.

use std::time::Duration;

use anyhow::Result;

use super::super::figure::{Figure, Target, Unit};
use super::super::measure::Samples;
use super::Options;
use super::bare::Swap;
use super::direct::Direct;
use super::lab::World;
use super::peers::{self, Peer};

/// A connection gets so long to find its speed.
pub const WARM_UP: Duration = Duration::from_millis(300);

const BARE: &str = "bare XDP redirect";
const DIRECT: &str = "direct, UDP GSO kept whole";

/// One way to the origin; bits a second.
struct Contender<'a> {
    name: &'static str,
    measure: Box<dyn Fn() -> Result<f64> + 'a>,
}

pub fn figures(relayed: &World, swap: &Swap, options: &Options) -> Result<Vec<Figure>> {
    let peers = peers::start()?;
    let direct = Direct::start(options.length);
    let mut contenders = vec![
        Contender {
            name: "gate",
            measure: Box::new(|| {
                swap.to_gate()?;
                relayed.bulk(options.length)
            }),
        },
        Contender {
            name: BARE,
            measure: Box::new(|| {
                swap.to_bare()?;
                let rate = relayed.bulk(options.length);
                swap.to_gate()?;
                rate
            }),
        },
    ];
    if let Ok(direct) = &direct {
        contenders.push(Contender { name: DIRECT, measure: Box::new(|| direct.bulk(options.length)) });
    }
    for peer in peers.iter().filter(|peer| peer.runs()) {
        contenders.push(Contender { name: peer.name, measure: Box::new(|| peer.bulk(options.length)) });
    }
    let samples = rounds(&contenders, options.runs)?;
    let gate = &samples[0];
    let of = |name: &str| samples.iter().find(|samples| samples.name == name);
    let why_not = direct.as_ref().err().map_or_else(String::new, |error| format!("{error:#}"));
    let mut figures = vec![
        figure(gate, of(BARE), BARE, Target::AtLeast(0.9), ""),
        figure(gate, of(DIRECT), DIRECT, Target::Stated, &why_not),
    ];
    figures.extend(peers.iter().map(|peer: &Peer| {
        figure(gate, of(peer.name), peer.name, peer.target, peer.why_not().unwrap_or_default())
    }));
    Ok(figures)
}

/// Every contender once in each round, each round beginning with the next one.
fn rounds(contenders: &[Contender<'_>], runs: usize) -> Result<Vec<Samples>> {
    let mut samples: Vec<Samples> = contenders
        .iter()
        .map(|contender| Samples { name: contender.name.to_owned(), rates: Vec::new() })
        .collect();
    for contender in contenders {
        (contender.measure)()?;
    }
    for round in 0..runs {
        for turn in 0..contenders.len() {
            let which = (round + turn) % contenders.len();
            samples[which].rates.push((contenders[which].measure)()?);
        }
    }
    Ok(samples)
}

fn figure(gate: &Samples, peer: Option<&Samples>, name: &str, target: Target, why_not: &str) -> Figure {
    const WHAT: &str = "bulk, client to origin";
    let Some(peer) = peer else {
        let missing = Figure::unmeasured(WHAT, None, Unit::Ratio, target, why_not);
        return Figure { against: Some(name.to_owned()), ..missing };
    };
    let ratio = Figure::new(WHAT, gate.ratio_to(peer), Unit::Ratio, target);
    let note = format!("{:.2} : {:.2} Gbit/s", gate.median() / 1e9, peer.median() / 1e9);
    Figure { against: Some(name.to_owned()), ..ratio.with_note(note) }
}
