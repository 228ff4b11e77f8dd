//! Development commands. `cargo xtask demo` and `cargo xtask test` are the two to know; each does its own set-up.
//!
//! | command | does |
//! |---|---|
//! | `setup` | installs what this machine lacks (Debian 12, as root or with sudo) |
//! | `demo` | set-up, build, and the lab that shows every promise with its control |
//! | `test` | set-up and every test, real kernel included |
//! | `vm` | tests on another kernel, by default Debian's own, in a virtual machine |
//! | `bench` | measures beside bare programs and peers; a command, never a timed test |
//! | `fuzz gate` | generated packets through the kernel and the host, as many as asked for |
//! | `fuzz saml` | changed SAML documents through everything that reads them, for as long as asked |
//! | `mutants gate` | plants bugs in the gate, one by one, and runs its tests: each must be caught |
//! | `check` | formatting, clippy, rustdoc, cargo deny, purity of the modules that must not act |
//! | `ci` | `check`, then `test` |

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod check;
mod demo;
mod fuzz;
mod mutants;
mod setup;
mod shell;
mod test;
mod vm;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Development commands of Portcullis")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what this machine lacks for building, tests and the demo
    Setup,
    /// Stand up the lab and show, step by step, what holds
    Demo {
        /// Arguments of the demo itself: --keep, --break STEP, --list
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run every test; arguments go to `cargo nextest run`
    Test {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run tests on another kernel in a virtual machine: `vm binary(gate)`
    Vm(vm::Args),
    /// Measure something beside its peers: `bench gate`, `bench flood`, `bench sessions`, `bench saas`
    Bench {
        what: bench::Subject,
        /// Arguments of the measurement: --check, --runs N, --json FILE, --svg FILE
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Try generated packets or changed documents on what reads them
    Fuzz {
        #[command(subcommand)]
        what: Fuzz,
    },
    /// Plant bugs, one by one, and see whether the tests catch each
    Mutants {
        #[command(subcommand)]
        what: Mutants,
    },
    /// Formatting, clippy, rustdoc, cargo deny, purity
    Check,
    /// `check`, then `test`, as CI runs them
    Ci,
}

#[derive(Subcommand)]
enum Fuzz {
    /// The gate; arguments are the fuzzer's own: --packets N, --seed S, --lanes N
    Gate {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// SAML; arguments are the fuzzer's own: --seconds N, --seed S, --corpus DIR
    Saml {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

#[derive(Subcommand)]
enum Mutants {
    /// The gate
    Gate {
        /// Plant this bug alone (repeatable)
        #[arg(long, value_name = "NAME")]
        only: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Setup => setup::run(setup::Scope::All)?,
        Command::Demo { args } => {
            setup::run(setup::Scope::Demo)?;
            return demo::run(&args);
        }
        Command::Test { args } => {
            setup::run(setup::Scope::Test)?;
            test::run(&args)?;
        }
        Command::Vm(args) => {
            setup::run(setup::Scope::Vm)?;
            return vm::run(&args);
        }
        Command::Bench { what, args } => {
            setup::run(setup::Scope::Bench)?;
            return bench::run(what, &args);
        }
        Command::Fuzz { what: Fuzz::Gate { args } } => {
            setup::run(setup::Scope::Test)?;
            return fuzz::gate(&args);
        }
        Command::Fuzz { what: Fuzz::Saml { args } } => {
            setup::run(setup::Scope::Check)?;
            return fuzz::saml(&args);
        }
        Command::Mutants { what: Mutants::Gate { only } } => {
            setup::run(setup::Scope::Test)?;
            return mutants::gate(&only);
        }
        Command::Check => {
            setup::run(setup::Scope::Check)?;
            check::run()?;
        }
        Command::Ci => {
            setup::run(setup::Scope::All)?;
            check::run()?;
            test::run(&[])?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
