//! Generated and damaged packets through the loaded program and through the host's copy of it: same verdict, same
//! bytes, same counters, same budgets.
//!
//! | module | gives |
//! |---|---|
//! | [`world`] | the maps and sockets that packets are judged by |
//! | [`generate`] | packets |
//! | [`exact`] | the host's side, budgets and counts included |
//! | [`lane`] | one thread with a program of its own: both sides, compared |
//! | [`maps`] | what the program's maps hold |

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portcullis_common::Verdict;

use crate::netns::Netns;
use lane::Lane;
use world::World;

pub mod exact;
pub mod generate;
pub mod lane;
pub mod maps;
pub mod world;

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub packets: u64,
    /// Gives the same packets again; not the same clock.
    pub seed: u64,
    /// Threads, each with a loaded program of its own.
    pub lanes: u64,
}

#[derive(Debug)]
pub struct Report {
    pub packets: u64,
    /// By verdict, as the kernel counted them.
    pub seen: HashMap<Verdict, u64>,
    /// Packets during which the clock that both sides read moved on, so that the program's time had to be inferred.
    pub clock_moved: u64,
    pub took: Duration,
}

/// Packets after which counters and budgets are compared, and dealt anew.
const BATCH: u64 = 512;

/// Judges packets on both sides. `progress` is told, some times a second, how many so far.
///
/// # Errors
///
/// The first packet on which they differ, as it was and as small as it can be made; or a map that changed.
pub fn run(options: Options, progress: impl Fn(u64) + Sync) -> Result<Report> {
    let netns = Netns::new("fuzz")?;
    let world = World::in_namespace(&netns)?;
    let started = Instant::now();
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let lanes: Vec<Result<Lane>> = netns.enter(|| {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..options.lanes)
                .map(|nth| {
                    let (world, done, stop) = (&world, &done, &stop);
                    scope.spawn(move || {
                        let lane = drive(options, nth, world, done, stop);
                        if lane.is_err() {
                            stop.store(true, Ordering::Relaxed);
                        }
                        lane
                    })
                })
                .collect();
            while !threads.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                std::thread::sleep(Duration::from_millis(100));
                progress(done.load(Ordering::Relaxed));
            }
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    })?;
    let took = started.elapsed();
    let (mut seen, mut clock_moved) = (HashMap::new(), 0);
    for lane in lanes {
        let lane = lane.with_context(|| format!("seed {}", options.seed))?;
        clock_moved += lane.clock_moved();
        for (verdict, count) in lane.counters()? {
            *seen.entry(verdict).or_default() += count;
        }
    }
    seen.retain(|_, count| *count > 0);
    let packets = done.into_inner();
    ensure!(seen.values().sum::<u64>() == packets, "the program counted {seen:?}, and {packets} were sent");
    Ok(Report { packets, seen, clock_moved, took })
}

fn drive(options: Options, nth: u64, world: &World, done: &AtomicU64, stop: &AtomicBool) -> Result<Lane> {
    let share = options.packets / options.lanes + u64::from(nth < options.packets % options.lanes);
    let mut lane = Lane::new(world, options.seed, nth)?;
    let before = lane.contents()?;
    let every_value = options.packets >= 10_000_000;
    let mut sweep = generate::sweep(&world.model, world.opened, every_value)
        .skip(usize::try_from(nth)?)
        .step_by(usize::try_from(options.lanes)?);
    let mut left = share;
    while left > 0 && !stop.load(Ordering::Relaxed) {
        let size = left.min(BATCH);
        lane.batch(size, &mut sweep)?;
        left -= size;
        done.fetch_add(size, Ordering::Relaxed);
    }
    let after = lane.contents()?;
    for (name, entries) in &before {
        ensure!(after.get(name) == Some(entries), "packets that arrived changed the map {name}");
    }
    Ok(lane)
}
