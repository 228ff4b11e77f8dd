//! What the gate takes: memory, time to put up, work for the verifier.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result};
use aya::maps::{MapInfo, MapType};

use super::figure::{Figure, Target, Unit};
use super::lab::Lab;
use super::measure::median;
use super::{Options, gate};

const MIB: f64 = 1024.0 * 1024.0;
/// CPUs that the target is stated for.
const CPUS: u64 = 2;

pub fn figures(options: &Options) -> Result<Vec<Figure>> {
    let mut times = Vec::new();
    for _ in 0..options.runs {
        let lab = Lab::one_port("load")?;
        times.push(gate::open(&lab)?.1.as_secs_f64() * 1e3);
    }
    let lab = Lab::one_port("size")?;
    gate::open(&lab)?;
    let programs = gate::programs(&lab)?;

    let mut ids = BTreeSet::new();
    let mut verified = Vec::new();
    for program in &programs {
        ids.extend(program.map_ids()?.unwrap_or_default());
        let count = program.verified_instruction_count().context("the kernel does not tell")?;
        verified.push((program.name_as_str().unwrap_or("?").to_owned(), count));
    }
    let (mut memory, mut per_cpu) = (0, 0);
    for id in &ids {
        let map = MapInfo::from_id(*id)?;
        memory += locked(&map)?;
        per_cpu += per_cpu_bytes(&map)?;
    }
    let possible = possible_cpus()?;
    let memory = memory - per_cpu * possible + per_cpu * CPUS;
    let most = verified.iter().map(|(_, count)| *count).max().unwrap_or(0);
    let verified: Vec<_> = verified.iter().map(|(name, count)| format!("{name} {count}")).collect();
    Ok(vec![
        Figure::new(
            "maps at defaults, 2 possible CPUs",
            memory as f64 / MIB,
            Unit::MebiBytes,
            Target::AtMost(64.0),
        )
        .with_note(format!(
            "{} maps; each further CPU {:.1} KiB",
            ids.len(),
            per_cpu as f64 / 1024.0
        )),
        Figure::new("load, attach and pin", median(times), Unit::Milliseconds, Target::Below(200.0)),
        Figure::new("verifier, largest program", most.into(), Unit::Instructions, Target::Below(100_000.0))
            .with_note(verified.join(", ")),
    ])
}

/// Bytes that the kernel accounts a map with.
fn locked(map: &MapInfo) -> Result<u64> {
    let fd = map.fd()?;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd()))?;
    let memlock = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(memlock.context("no memlock in fdinfo")?.trim().parse()?)
}

/// Bytes that a map takes for each possible CPU.
fn per_cpu_bytes(map: &MapInfo) -> Result<u64> {
    let is_per_cpu =
        matches!(map.map_type()?, MapType::PerCpuArray | MapType::PerCpuHash | MapType::LruPerCpuHash);
    let value = u64::from(map.value_size()).next_multiple_of(8);
    Ok(if is_per_cpu { value * u64::from(map.max_entries()) } else { 0 })
}

fn possible_cpus() -> Result<u64> {
    let range = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = range.trim().rsplit(['-', ',']).next().context("no possible CPU")?;
    Ok(last.parse::<u64>()? + 1)
}
