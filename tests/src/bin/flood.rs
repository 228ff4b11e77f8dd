//! `cargo xtask bench flood`: openings from random sources at a node, and who is served meanwhile. Exit status 1: a target
//! was missed.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use portcullis_tests::bench::{Flooded, Options};
use portcullis_tests::flood::{Load, Outcome, Served, relay, run};

/// Of the handshakes of those who knock and of networks with a recent login.
const TARGET: f64 = 0.99;
/// Of the relay's rate when one comparison drops the flood.
const RELAY_TARGET: f64 = 0.8;
/// How much faster than asked for the relay's flood may be, on average over the rounds.
const RELAY_FLOOD: f64 = 1.1;
/// Different first packets.
const ATTEMPTS: usize = 2_048;

#[derive(Parser)]
#[command(name = "cargo xtask bench flood", about = "Floods a node with openings, and counts who is served")]
struct Args {
    /// Packets in a second at most
    #[arg(long, default_value_t = 250_000)]
    rate: u64,
    /// Seconds
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Rounds of the relay, of which the median counts
    #[arg(long, default_value_t = 9)]
    runs: usize,
    /// Exit with 1 when a target is missed
    #[arg(long)]
    check: bool,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let mut held = true;
    for dark in [false, true] {
        // Fifteen a second, of each kind.
        let pause = Duration::from_micros(66_667);
        let load = Load {
            packets: u64::MAX,
            per_second: args.rate.max(1),
            attempts: ATTEMPTS,
            patience: Duration::from_secs(5),
        };
        let outcome = run(dark, load, 15 * args.seconds, pause)?;
        held &= report(dark, &outcome);
        let cpu = std::thread::available_parallelism()?.get() - 1;
        let options = Options { runs: args.runs, length: Duration::from_millis(500), cpu };
        held &= report_relay(&relay(dark, ATTEMPTS, args.rate, &options)?, args.rate);
    }
    Ok(if held || !args.check { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(dark: bool, outcome: &Outcome) -> bool {
    let seconds = outcome.took.as_secs_f64();
    println!("tunnel.dark = {dark}");
    println!(
        "  flood          {:>9.0} packets/s for {seconds:.1} s; the gate counted {}, passed {}",
        outcome.sent as f64 / seconds,
        outcome.counted,
        outcome.passed
    );
    println!("  daemon         {:>9.2} CPU", outcome.daemon);
    let mut held = true;
    for (name, served, target) in [
        ("knocking", outcome.knocking, true),
        ("recent login", outcome.recent, !dark),
        ("unknown", outcome.unknown, false),
    ] {
        held &= line(name, &served, target);
    }
    held
}

/// A flood of another rate than asked for decides nothing.
fn report_relay(found: &Flooded, rate: u64) -> bool {
    let ratio = found.gate.ratio_to(&found.compared);
    let rate = rate as f64;
    let honest = found.flood.iter().all(|flood| (rate..=RELAY_FLOOD * rate).contains(flood));
    let good = ratio >= RELAY_TARGET && honest;
    println!(
        "  relay          {:>8.2} × of the same with the flood dropped by one comparison ({:.2} : {:.2} M packets/s, \
         flood {:.0} : {:.0} packets/s){}",
        ratio,
        found.gate.median() / 1e6,
        found.compared.median() / 1e6,
        found.flood[0],
        found.flood[1],
        match (good, honest) {
            (true, _) => "  reached",
            (false, true) => "  MISSED",
            (false, false) => "  UNDECIDED: the flood did not have its rate",
        }
    );
    good
}

fn line(name: &str, served: &Served, target: bool) -> bool {
    let good = !target || served.share() >= TARGET;
    let verdict = match (target, good) {
        (false, _) => "",
        (true, true) => "  reached",
        (true, false) => "  MISSED",
    };
    println!(
        "  {name:<14} {:>8.1} % of {} handshakes, slowest {:.2} s{verdict}",
        100.0 * served.share(),
        served.tried,
        served.slowest.as_secs_f64()
    );
    good
}
