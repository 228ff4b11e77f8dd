//! `cargo xtask bench flood`: openings from random sources at a node, and who is served meanwhile. Exit status 1: a target
//! was missed.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use portcullis_tests::flood::{Load, Outcome, Served, run};

/// Of the handshakes of those who knock and of networks with a recent login.
const TARGET: f64 = 0.99;

#[derive(Parser)]
#[command(name = "cargo xtask bench flood", about = "Floods a node with openings, and counts who is served")]
struct Args {
    /// Packets in a second at most
    #[arg(long, default_value_t = 250_000)]
    rate: u64,
    /// Seconds
    #[arg(long, default_value_t = 10)]
    seconds: u32,
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
            attempts: 2_048,
            patience: Duration::from_secs(5),
        };
        let outcome = run(dark, load, 15 * args.seconds, pause)?;
        held &= report(dark, &outcome);
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
