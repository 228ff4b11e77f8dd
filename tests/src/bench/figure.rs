//! A figure, its target, and whether it is reached.

use std::fmt;

use super::measure::Samples;

/// One row of the table.
#[derive(Clone, Debug)]
pub struct Figure {
    pub what: String,
    /// The peer, if it is a ratio.
    pub against: Option<String>,
    /// `None` if it could not be measured; then [`note`](Self::note) says why.
    pub value: Option<f64>,
    pub unit: Unit,
    pub target: Target,
    /// Medians behind a ratio, packets a second: the subject's, the peer's.
    pub rates: Option<(f64, f64)>,
    pub note: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Ratio,
    KibiBytes,
    MebiBytes,
    Milliseconds,
    Microseconds,
    Instructions,
    Packets,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
    Zero,
    /// None: it is there to compare.
    Stated,
}

impl Unit {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ratio => "ratio",
            Self::KibiBytes => "KiB",
            Self::MebiBytes => "MiB",
            Self::Milliseconds => "ms",
            Self::Microseconds => "µs",
            Self::Instructions => "instructions",
            Self::Packets => "packets",
        }
    }
}

impl Figure {
    pub fn new(what: &str, value: f64, unit: Unit, target: Target) -> Self {
        Self {
            what: what.to_owned(),
            against: None,
            value: Some(value),
            unit,
            target,
            rates: None,
            note: None,
        }
    }

    /// The subject's rate as a multiple of the peer's.
    pub fn ratio(what: &str, subject: &Samples, peer: &Samples, target: Target) -> Self {
        Self {
            against: Some(peer.name.clone()),
            rates: Some((subject.median(), peer.median())),
            ..Self::new(what, subject.ratio_to(peer), Unit::Ratio, target)
        }
    }

    /// A figure that this gate does not have yet: it counts as missed.
    pub fn unmeasured(what: &str, against: Option<&Samples>, unit: Unit, target: Target, why: &str) -> Self {
        let rate = against.map(|peer| format!("; the peer does {:.3}", peer.median() / 1e6));
        Self {
            against: against.map(|peer| peer.name.clone()),
            value: None,
            note: Some(format!("{why}{}", rate.unwrap_or_default())),
            ..Self::new(what, f64::NAN, unit, target)
        }
    }

    pub fn with_note(self, note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..self }
    }

    pub fn is_met(&self) -> bool {
        self.value.is_some_and(|value| self.target.is_met_by(value))
    }

    pub fn value(&self) -> String {
        let Some(value) = self.value else { return "—".to_owned() };
        match self.unit {
            Unit::Ratio => format!("{value:.2}×"),
            Unit::KibiBytes => format!("{value:.1} KiB"),
            Unit::MebiBytes => format!("{value:.1} MiB"),
            Unit::Milliseconds => format!("{value:.0} ms"),
            Unit::Microseconds => format!("{value:.1} µs"),
            Unit::Instructions => format!("{value:.0} insns"),
            Unit::Packets => format!("{value:.0}"),
        }
    }
}

impl Target {
    pub fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
            Self::Below(bound) => value < bound,
            Self::Zero => value == 0.0,
            Self::Stated => !value.is_nan(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, "≥ {bound}"),
            Self::AtMost(bound) => write!(f, "≤ {}", (bound * 1000.0).round() / 1000.0),
            Self::Below(bound) => write!(f, "< {bound}"),
            Self::Zero => f.write_str("0"),
            Self::Stated => f.write_str("stated"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_missed() {
        for target in [Target::AtLeast(0.0), Target::AtMost(f64::MAX), Target::Zero, Target::Stated] {
            assert!(!Figure::unmeasured("x", None, Unit::Ratio, target, "no").is_met());
            assert!(!Figure::new("x", f64::NAN, Unit::Ratio, target).is_met());
        }
    }

    #[test]
    fn a_bound_belongs_to_at_least_and_at_most() {
        assert!(Target::AtLeast(2.0).is_met_by(2.0) && !Target::AtLeast(2.0).is_met_by(1.99));
        assert!(Target::AtMost(2.0).is_met_by(2.0) && !Target::AtMost(2.0).is_met_by(2.01));
        assert!(!Target::Below(2.0).is_met_by(2.0));
    }
}
