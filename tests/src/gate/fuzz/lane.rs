//! One thread's comparison: a loaded program, the host's side of it, and packets for both.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;

use anyhow::{Result, bail};
use fastrand::Rng;
use portcullis_common::layout::Settings;
use portcullis_common::{Address, DropReason, Family, Outcome, RateClass, RelayReason, Verdict};

use super::exact::Exact;
use super::generate::Generator;
use super::world::World;
use crate::gate::kernel::{Kernel, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX, monotonic_ns};
use crate::gate::model::{BY_NETWORK, Bytes};

pub struct Lane {
    kernel: Kernel,
    exact: Exact,
    rng: Rng,
    generator: Generator,
    /// The settings of the world, which batches vary.
    settings: Settings,
    /// What the kernel should have counted.
    expected: HashMap<Verdict, u64>,
    /// What the kernel has counted.
    counted: HashMap<Verdict, u64>,
    out: Vec<u8>,
    clock_moved: u64,
    name: String,
}

/// How the two sides differ.
type Difference = String;

/// More tries than a reduced packet ever takes.
const REDUCTIONS: usize = 4_000;

impl Lane {
    pub fn new(world: &World, seed: u64, nth: u64) -> Result<Self> {
        let mut kernel = Kernel::load()?;
        kernel.adopt(&world.model)?;
        let settings = world.model.settings;
        let recent = world.recent.iter().map(|address| {
            let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
            settings.network_hash(family, Address::from(*address))
        });
        let recent: HashSet<u64> = recent.collect();
        for hash in &recent {
            kernel.set_recent(*hash)?;
        }
        if nth % 2 == 1 {
            kernel.move_hops(&world.model)?;
        }
        let mut rng = Rng::with_seed(seed ^ nth.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Ok(Self {
            counted: kernel.counters()?,
            kernel,
            exact: Exact::new(world.model.clone(), recent),
            generator: Generator::new(rng.fork(), &world.model, world.opened),
            rng,
            settings,
            expected: HashMap::new(),
            out: Vec::new(),
            clock_moved: 0,
            name: format!("lane {nth}"),
        })
    }

    pub fn clock_moved(&self) -> u64 {
        self.clock_moved
    }

    pub fn counters(&self) -> Result<HashMap<Verdict, u64>> {
        self.kernel.counters()
    }

    /// What the maps hold, under the settings of the world.
    pub fn contents(&mut self) -> Result<BTreeMap<&'static str, Vec<Vec<u8>>>> {
        self.kernel.set_settings(self.settings)?;
        self.kernel.contents()
    }

    /// Judges so many packets, first those of `first`.
    ///
    /// # Errors
    ///
    /// With the packet on which the two sides differ.
    pub fn batch(&mut self, packets: u64, first: &mut impl Iterator<Item = Vec<u8>>) -> Result<()> {
        self.deal()?;
        let mut frames = Vec::new();
        for _ in 0..packets {
            let frame = match first.next() {
                Some(frame) => frame,
                None => self.generator.frame(),
            };
            frames.push(frame);
            let mark = self.exact.mark();
            let frame = &frames[frames.len() - 1];
            match step(&mut self.kernel, &self.exact, &mut self.out, frame, &mut self.clock_moved)? {
                Ok(verdict) => *self.expected.entry(verdict).or_default() += 1,
                Err(difference) => {
                    self.restore(mark)?;
                    return self.report(frame, &difference);
                }
            }
        }
        if let Some(difference) = self.settle()? {
            return self.find(&frames, &difference);
        }
        self.exact.commit();
        self.generator.renew();
        Ok(())
    }

    /// Sets modes and budgets for a batch: most full, some partly or wholly used up.
    fn deal(&mut self) -> Result<()> {
        let mut settings = self.settings;
        settings.dark = u64::from(self.rng.u8(..8) == 0);
        settings.audit_from = u64::from(self.rng.u8(..8) == 0);
        self.kernel.set_settings(settings)?;
        self.exact.model.settings = settings;
        let now = monotonic_ns();
        let one_for_all = RateClass::ALL.into_iter().filter(|class| class.slot(u64::MAX) == class.slot(0));
        let mut slots: Vec<_> = one_for_all.map(|class| (class.slot(0), class)).collect();
        let payers = self.exact.model.payers();
        slots.extend(payers.into_iter().zip(BY_NETWORK.into_iter().cycle()));
        let words: Vec<_> =
            slots.into_iter().map(|(slot, class)| (slot, deal_word(&mut self.rng, class, now))).collect();
        for (slot, word) in &words {
            self.exact.set_word(*slot, *word);
        }
        self.kernel.set_words(words)
    }

    /// Compares what has been counted, and what is left of budgets, since the last time.
    fn settle(&mut self) -> Result<Option<Difference>> {
        let counted = self.kernel.counters()?;
        let mut difference = String::new();
        for verdict in Verdict::all() {
            let kernel = counted[&verdict] - self.counted[&verdict];
            let host = self.expected.get(&verdict).copied().unwrap_or_default();
            if kernel != host {
                write!(difference, "the kernel counted {verdict:?} {kernel} times, the host {host}; ")?;
            }
        }
        self.counted = counted;
        self.expected.clear();
        for (slot, kernel) in self.kernel.words(self.exact.asked_by_all())? {
            let host = self.exact.word(slot);
            if kernel != host {
                write!(difference, "bucket {slot} is {kernel} in the kernel, {host} on the host; ")?;
            }
        }
        let (kernel, host) = (self.kernel.relayed(&self.exact.model.flows)?, self.exact.relayed());
        if kernel != host {
            write!(difference, "flows counted {kernel:?} in the kernel, {host:?} on the host")?;
        }
        Ok(if difference.is_empty() { None } else { Some(difference) })
    }

    /// Budgets as they were at the mark, on both sides.
    fn restore(&mut self, mark: usize) -> Result<()> {
        let mut words = self.exact.undo(mark);
        // The kernel may have taken what the host did not.
        words.extend(self.exact.asked().into_iter().map(|slot| (slot, self.exact.word(slot))));
        self.kernel.set_words(words)
    }

    /// Runs a batch again, one by one, for the packet that made it differ.
    fn find(&mut self, frames: &[Vec<u8>], difference: &str) -> Result<()> {
        self.restore(0)?;
        for frame in frames {
            let mark = self.exact.mark();
            if let Some(difference) = self.trial(frame)? {
                self.restore(mark)?;
                return self.report(frame, &difference);
            }
        }
        bail!("{}: {difference}, but no packet does so by itself", self.name)
    }

    /// One packet, with its counter.
    fn trial(&mut self, frame: &[u8]) -> Result<Option<Difference>> {
        let before = self.kernel.counters()?;
        let verdict = match step(&mut self.kernel, &self.exact, &mut self.out, frame, &mut self.clock_moved)?
        {
            Ok(verdict) => verdict,
            Err(difference) => return Ok(Some(difference)),
        };
        let after = self.kernel.counters()?;
        let moved: Vec<_> = Verdict::all().filter(|verdict| after[verdict] != before[verdict]).collect();
        if moved != [verdict] {
            return Ok(Some(format!("the kernel counted {moved:?}, the host {verdict:?}")));
        }
        for (slot, kernel) in self.kernel.words(self.exact.asked())? {
            let host = self.exact.word(slot);
            if kernel != host {
                return Ok(Some(format!("bucket {slot} is {kernel} in the kernel, {host} on the host")));
            }
        }
        Ok(None)
    }

    /// Fails with the packet, and with as little of it as still makes the sides differ. Budgets are as they were
    /// before it.
    fn report(&mut self, frame: &[u8], difference: &str) -> Result<()> {
        let mark = self.exact.mark();
        let mut small = frame.to_vec();
        let mut why = difference.to_owned();
        let mut tries = 0;
        let mut cut = small.len() / 2;
        while cut > 0 && tries < REDUCTIONS {
            let shorter = small[..small.len() - cut].to_vec();
            tries += 1;
            match if shorter.len() < 14 { None } else { self.trial_and_back(&shorter, mark)? } {
                Some(difference) => (small, why) = (shorter, difference),
                None => cut /= 2,
            }
        }
        for at in 0..small.len().min(REDUCTIONS) {
            let zeroed = std::mem::take(&mut small[at]);
            match if zeroed == 0 { None } else { self.trial_and_back(&small.clone(), mark)? } {
                Some(difference) => why = difference,
                None => small[at] = zeroed,
            }
        }
        bail!(
            "{}: {why}\n  packet:  {}\n  reduced: {}\n  first difference: {difference}",
            self.name,
            hex(frame),
            hex(&small)
        )
    }

    fn trial_and_back(&mut self, frame: &[u8], mark: usize) -> Result<Option<Difference>> {
        let difference = self.trial(frame)?;
        self.restore(mark)?;
        Ok(difference)
    }
}

fn deal_word(rng: &mut Rng, class: RateClass, now: u64) -> u64 {
    match rng.u8(..16) {
        0..=9 => 0,
        10..=11 => u64::MAX / 2,
        // Up to the last few packets.
        12..=13 => now + class.cost() * (class.burst() - rng.u64(..4.min(class.burst()))),
        _ => now + rng.u64(..class.burst() * class.cost()),
    }
}

/// One packet on both sides: the verdict that both give, or how they differ.
fn step(
    kernel: &mut Kernel,
    exact: &Exact,
    out: &mut Vec<u8>,
    frame: &[u8],
    clock_moved: &mut u64,
) -> Result<Result<Verdict, Difference>> {
    out.resize(out.len().max(frame.len() + 64), 0);
    let before = monotonic_ns();
    let (action, length) = kernel.act(frame, out)?;
    let after = monotonic_ns();
    let left = &out[..length];
    if before == after {
        return Ok(judge(exact, frame, before, action, left));
    }
    *clock_moved += 1;
    explain(kernel, exact, frame, (before, after), action, left)
}

/// The verdict on a packet during which the clock moved: that of a time between, at which the host gives, and takes,
/// what the kernel did. A bucket that the kernel took from tells the time.
fn explain(
    kernel: &mut Kernel,
    exact: &Exact,
    frame: &[u8],
    (before, after): (u64, u64),
    action: u32,
    left: &[u8],
) -> Result<Result<Verdict, Difference>> {
    let mark = exact.mark();
    let mut times = vec![before, after];
    let mut asked = BTreeSet::new();
    // Once for the buckets that may have been asked, and once more to compare them all.
    for now in [before, after] {
        exact.undo(mark);
        let _ = judge(exact, frame, now, action, left);
        asked.extend(exact.asked());
    }
    for (slot, word) in kernel.words(asked.iter().copied())? {
        let class = RateClass::ALL.into_iter().rev().find(|class| class.slot(0) <= slot);
        let at = class.and_then(|class| word.checked_sub(class.cost()));
        times.extend(at.filter(|at| (before..=after).contains(at)));
    }
    let mut why = String::new();
    for now in times {
        exact.undo(mark);
        match judge(exact, frame, now, action, left) {
            Ok(verdict) => {
                asked.extend(exact.asked());
                if kernel.words(asked.iter().copied())?.iter().all(|(slot, word)| exact.word(*slot) == *word)
                {
                    return Ok(Ok(verdict));
                }
                why = format!("no time from {before} to {after} explains the budgets after {verdict:?}");
            }
            Err(difference) => why = difference,
        }
    }
    exact.undo(mark);
    kernel.set_words(asked.into_iter().map(|slot| (slot, exact.word(slot))))?;
    Ok(Err(why))
}

/// What the host makes of a packet at `now`, if that is what the kernel did.
fn judge(exact: &Exact, frame: &[u8], now: u64, action: u32, left: &[u8]) -> Result<Verdict, Difference> {
    let mut bytes = Bytes(frame.to_vec());
    let Outcome { verdict, .. } = exact.process(&mut bytes, now);
    let expected = match verdict {
        Verdict::Pass(_) => XDP_PASS,
        Verdict::Drop(_) if exact.model.settings.enforces(now) => XDP_DROP,
        Verdict::Drop(_) => XDP_PASS,
        Verdict::Relay(RelayReason::Transmit) => XDP_TX,
        Verdict::Relay(RelayReason::Redirect) => XDP_REDIRECT,
    };
    if action != expected {
        return Err(format!("the host says {verdict:?}, the kernel's action is {action}"));
    }
    // A rewrite that failed half-way leaves bytes that nobody reads.
    if left != bytes.0 && verdict != Verdict::Drop(DropReason::RelayNoHop) {
        return Err(format!("{verdict:?}: the kernel leaves {}, the host {}", hex(left), hex(&bytes.0)));
    }
    Ok(verdict)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
