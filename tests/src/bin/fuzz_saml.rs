//! What strangers send by SAML, changed in every way that comes to mind, for as long as asked: `cargo xtask fuzz saml`.
//!
//! Each round takes a document of the corpus, changes it (bytes, tokens, whole elements, pieces of another one) and gives it
//! to whatever reads it: XML, canonical form, the bindings, requests, answers, metadata, what peers say of logouts by SOAP. Beside "no panic" it holds the
//! readers to what they promise: what is written is read as the same, and a signature that still holds after a change is
//! over what was signed. Memory is measured all the while.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use portcullis_tests::saml_fuzz::{Corpus, Outcome, Target, resident};

#[derive(Parser)]
struct Args {
    /// How long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Where randomness begins; printed, so that a run can be done again
    #[arg(long)]
    seed: Option<u64>,
    /// Documents to begin with, one folder each for `xml`, `messages`, `metadata`, `answers` and `soap`
    #[arg(long)]
    corpus: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/saml/corpus");
    let corpus = Corpus::read(&args.corpus.unwrap_or(home)).context("corpus")?;
    println!("seed {seed}, {} documents", corpus.len());
    let mut random = fastrand::Rng::with_seed(seed);
    let (start, end) = (Instant::now(), Duration::from_secs(args.seconds));
    let mut tally = [Outcome::default(); Target::ALL.len()];
    let (mut told, mut settled) = (Instant::now(), None);
    while start.elapsed() < end {
        for (target, outcome) in Target::ALL.iter().zip(&mut tally) {
            for _ in 0..64 {
                let document = corpus.changed(*target, &mut random);
                outcome.add(target.read(&document, &corpus).map_err(|broken| {
                    anyhow::anyhow!("{target:?}: {broken}\n{}", String::from_utf8_lossy(&document))
                })?);
            }
        }
        // What is allocated once is, by then.
        if settled.is_none() && start.elapsed() > Duration::from_secs(20).min(end / 2) {
            settled = Some(resident()?);
        }
        if told.elapsed() > Duration::from_secs(60) {
            told = Instant::now();
            report(&tally, start.elapsed())?;
        }
    }
    report(&tally, start.elapsed())?;
    let (settled, now) = (settled.unwrap_or_default(), resident()?);
    println!("memory: {settled} KiB after the start, {now} KiB at the end; no panic");
    ensure!(now < settled + settled / 4 + 4096, "memory grew from {settled} to {now} KiB");
    Ok(())
}

fn report(tally: &[Outcome], elapsed: Duration) -> Result<()> {
    let total: u64 = tally.iter().map(|outcome| outcome.tried).sum();
    let rate = total as f64 / elapsed.as_secs_f64();
    println!("{:>5} s: {total} executions, {rate:.0} a second, {} KiB", elapsed.as_secs(), resident()?);
    for (target, outcome) in Target::ALL.iter().zip(tally) {
        println!("    {target:?}: {} tried, {} accepted", outcome.tried, outcome.accepted);
    }
    Ok(())
}
