//! Interleaved runs: in each round every contender runs once, so that what else the machine does falls on all of them.

use anyhow::{Result, ensure};

use super::Options;
use super::contender::Contender;

/// What one contender did, round by round; packets a second.
#[derive(Clone, Debug)]
pub struct Samples {
    pub name: String,
    pub rates: Vec<f64>,
}

impl Samples {
    pub fn median(&self) -> f64 {
        median(self.rates.clone())
    }

    /// The median of the rounds' quotients: the two of a round were measured within the same second or two.
    pub fn ratio_to(&self, other: &Self) -> f64 {
        median(self.rates.iter().zip(&other.rates).map(|(own, other)| own / other).collect())
    }
}

/// Runs every contender once in each round, each round beginning with the next one.
pub fn rounds(contenders: &[Contender], options: &Options) -> Result<Vec<Samples>> {
    ensure!(!contenders.is_empty());
    let mut samples: Vec<_> = contenders
        .iter()
        .map(|contender| Samples { name: contender.name.to_owned(), rates: Vec::new() })
        .collect();
    for contender in contenders {
        // Caches, tables that fill on first use, and how many packets make a run.
        contender.measure(options.length)?;
        contender.measure(options.length)?;
    }
    for round in 0..options.runs {
        for turn in 0..contenders.len() {
            let which = (round + turn) % contenders.len();
            samples[which].rates.push(contenders[which].measure(options.length)?);
        }
    }
    Ok(samples)
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn a_ratio_is_taken_within_rounds() {
        // The machine was half as fast in the last two rounds, and both felt it.
        let own = Samples { name: "a".into(), rates: vec![8.0, 4.0, 4.0] };
        let other = Samples { name: "b".into(), rates: vec![10.0, 5.0, 5.0] };
        assert_eq!(own.ratio_to(&other), 0.8);
    }
}
