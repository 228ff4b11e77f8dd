//! `cargo xtask demo`: see `portcullis_tests::demo`. Exit status 0: every promise held; 1: one did not; 2: the lab
//! could not be built.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use clap::Parser;
use portcullis_tests::demo::{self, Lab, Terminal};
use portcullis_tests::netns;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(name = "cargo xtask demo", about = "Shows every promise of Portcullis in a lab, with its control")]
struct Args {
    /// Leave the lab up afterwards and say how a browser on this machine gets there
    #[arg(long)]
    keep: bool,
    /// Plant the fault that this step guards against: it, and no other, must fail
    #[arg(long = "break", value_name = "STEP")]
    broken: Option<String>,
    /// Run this step alone (repeatable)
    #[arg(long, value_name = "STEP")]
    only: Vec<String>,
    /// List the steps and their faults
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        for step in demo::all() {
            println!("{:<10} {}\n{:<10} fault: {}", step.name, step.claim, "", step.fault.what);
        }
        return ExitCode::SUCCESS;
    }
    clean_up_on_signals();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    let names: Vec<_> = demo::all().iter().map(|step| step.name).collect();
    for name in args.broken.iter().chain(&args.only) {
        ensure!(names.contains(&name.as_str()), "no step is called {name}; there are {}", names.join(", "));
    }
    let steps = demo::all()
        .into_iter()
        .filter(|step| args.only.is_empty() || args.only.iter().any(|name| name == step.name));
    let mut terminal = Terminal::default();
    println!("Portcullis: the lab");
    let mut lab = Lab::new(&|what| Terminal::default().say(what))?;
    let outcomes = demo::run(&mut lab, steps, args.broken.as_deref(), &mut terminal)?;
    let failed: Vec<_> = outcomes.iter().filter(|outcome| outcome.failure.is_some()).collect();
    let held = outcomes.len() - failed.len();
    println!("\n{held} of {} promises held", outcomes.len());
    for outcome in &failed {
        println!("✘ {}", outcome.step);
    }
    if args.keep {
        KEPT.store(true, Ordering::Relaxed);
        demo::keep(&mut lab)?;
    }
    Ok(failed.is_empty())
}

/// Whether the lab waits for Ctrl-C by itself.
static KEPT: AtomicBool = AtomicBool::new(false);

/// Drop does not run after a signal, so a thread takes the namespaces down.
fn clean_up_on_signals() {
    std::thread::spawn(|| {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            loop {
                tokio::select! {
                    _ = interrupt.recv() => if KEPT.load(Ordering::Relaxed) { continue },
                    _ = terminate.recv() => {}
                }
                netns::remove_own();
                std::process::exit(130);
            }
        });
    });
}
