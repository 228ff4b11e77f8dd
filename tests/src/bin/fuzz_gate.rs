//! `cargo xtask fuzz gate`: see `portcullis_tests::gate::fuzz`. Exit status 0: kernel and host agreed on every packet.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use portcullis_common::Verdict;
use portcullis_tests::gate::fuzz::{self, Options};

#[derive(Parser)]
#[command(name = "cargo xtask fuzz gate", about = "Judges generated packets in the kernel and on the host")]
struct Args {
    /// How many packets
    #[arg(long, default_value_t = 10_000_000)]
    packets: u64,
    /// Gives the packets of an earlier run again
    #[arg(long)]
    seed: Option<u64>,
    /// Threads; by default, one for each CPU
    #[arg(long)]
    lanes: Option<u64>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let lanes = match args.lanes {
        Some(lanes) => lanes.max(1),
        None => u64::try_from(std::thread::available_parallelism()?.get())?,
    };
    let options =
        Options { packets: args.packets, seed: args.seed.unwrap_or_else(|| fastrand::u64(..)), lanes };
    println!("{} packets, seed {}, {lanes} lanes", options.packets, options.seed);
    let (started, told) = (Instant::now(), Mutex::new(Instant::now()));
    let report = fuzz::run(options, |done| tell(done, options.packets, started, &told))?;
    eprintln!();
    for verdict in Verdict::all() {
        let count = report.seen.get(&verdict).copied().unwrap_or_default();
        println!("{count:>12}  {} {}", verdict.action(), verdict.reason());
    }
    println!(
        "kernel and host agreed on {} packets in {:.1} s: {:.0} a second; the clock moved during {} of them; \
         maps are as they were",
        report.packets,
        report.took.as_secs_f64(),
        per_second(report.packets, report.took),
        report.clock_moved,
    );
    Ok(())
}

fn tell(done: u64, of: u64, started: Instant, told: &Mutex<Instant>) {
    let every = Duration::from_secs(if std::io::stderr().is_terminal() { 1 } else { 30 });
    let Ok(mut told) = told.lock() else { return };
    if told.elapsed() < every {
        return;
    }
    *told = Instant::now();
    let rate = per_second(done, started.elapsed());
    let end = if every.as_secs() == 1 { "\x1b[K\r" } else { "\n" };
    let percent = done * 100 / of.max(1);
    let _ = write!(std::io::stderr(), "  {done} of {of} ({percent} %), {rate:.0} a second{end}");
}

fn per_second(packets: u64, took: Duration) -> f64 {
    packets as f64 / took.as_secs_f64().max(0.001)
}
