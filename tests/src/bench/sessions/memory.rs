//! What ten thousand idle sessions cost the node: the memory of its processes that is in use, with them and without. The gate's maps
//! are allocated when it starts and are in neither.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::super::figure::{Figure, Target, Unit};
use super::lab::{Plane, World};
use crate::process::{Process, wait_until};

/// Devices that are logged in, the processes of each, and the sessions of each process: 10,000 in all.
const DEVICES: usize = 10;
const PROCESSES: usize = 4;
const SESSIONS: usize = 250;

/// All of them are there by then.
const PATIENCE: Duration = Duration::from_secs(300);

/// What was allocated for the moment is given back by then.
const SETTLE: Duration = Duration::from_secs(5);

const KIB: f64 = 1024.0;

pub fn figure() -> Result<Figure> {
    let world = World::start(Plane::Xdp, None)?;
    // What the first sessions of each kind make the node keep for good is no session's share.
    let mut clients = start(&world, 0)?;
    wait_for(&world, &mut clients, SESSIONS * PROCESSES)?;
    let before = resident(&world)?;
    let began = Instant::now();
    for device in 1..DEVICES {
        clients.extend(start(&world, device)?);
    }
    wait_for(&world, &mut clients, SESSIONS * PROCESSES * DEVICES)?;
    let took = began.elapsed();
    let after = resident(&world)?;
    let sessions = SESSIONS * PROCESSES * (DEVICES - 1);
    let each = (after - before) / sessions as f64;
    let note = format!(
        "{:.1} MiB with {}, {:.1} MiB with {}; opened within {:.0} s",
        after / KIB / KIB,
        SESSIONS * PROCESSES * DEVICES,
        before / KIB / KIB,
        SESSIONS * PROCESSES,
        took.as_secs_f64(),
    );
    let figure = Figure::new(
        "memory of the node for each of 10,000 idle sessions",
        each / KIB,
        Unit::KibiBytes,
        Target::AtMost(16.0),
    );
    Ok(figure.with_note(note))
}

/// The processes of a device of its own, which open their sessions one after the other.
fn start(world: &World, device: usize) -> Result<Vec<Process>> {
    let machine = world.log_in(&format!("device-{device}"))?;
    let start = |process: usize| {
        let forwards = (0..SESSIONS).map(|number| {
            let number = process * SESSIONS + number;
            let (high, low) = (number / 250, number % 250 + 1);
            format!(
                "[[forward]]\napplication = \"many\"\nlisten = \"127.0.0.1:0\"\n\
                 destination = \"10.{device}.{high}.{low}:7\"\n"
            )
        });
        let file = machine.home().join(format!("forwards-{process}.toml"));
        fs::write(&file, forwards.collect::<String>())?;
        let command = machine.command(&["connect", file.to_str().context("a path that is no text")?])?;
        world.line.user.enter(|| Process::spawn("access", command))?
    };
    (0..PROCESSES).map(start).collect()
}

/// Waits until so many are relayed.
fn wait_for(world: &World, clients: &mut [Process], count: usize) -> Result<()> {
    let relayed = "portcullis_private_sessions{path=\"kernel\"} ";
    wait_until(&format!("{count} sessions"), PATIENCE, || {
        thread::sleep(Duration::from_millis(200));
        let metrics = world.node.metrics()?;
        let now = metrics.lines().find_map(|line| line.strip_prefix(relayed)).context("no gauge")?;
        ensure!(now.parse::<usize>()? >= count, "{now} of {count}");
        Ok(Some(()))
    })?;
    for client in clients {
        ensure!(client.is_running(), "a client has ended:\n{}", client.output());
    }
    thread::sleep(SETTLE);
    Ok(())
}

/// Bytes of memory of the node's processes that are in use (`VmRSS`).
fn resident(world: &World) -> Result<f64> {
    let mut kilobytes = 0.0;
    for pid in world.line.node.pids()? {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        kilobytes += line.trim().trim_end_matches(" kB").trim().parse::<f64>()?;
    }
    Ok(kilobytes * KIB)
}
