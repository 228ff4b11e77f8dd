//! How long a person waits for the first byte of an origin, over a link of 20 ms there and back between the client and the node. The
//! connector is next to the node, so this is the round trip to the connector as well.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::super::figure::{Figure, Target, Unit};
use super::super::measure::median;
use super::Options;
use crate::process::wait_until;

use super::lab::{GREET, LATER, NODE, Plane, World, later, local};
use super::origin;

const ONE_WAY: Duration = Duration::from_millis(10);

/// Connections that tell how long the round trip really is.
const PROBES: usize = 21;

/// What one wait may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The node waits for a connector for some seconds, each time.
const EACH_COMPLAINS: Duration = Duration::from_secs(60);

pub fn figures(options: &Options) -> Result<Vec<Figure>> {
    let world = World::start(Plane::Xdp, Some(ONE_WAY))?;
    let mut client = world.connect()?;
    let user = &world.line.user;
    let round_trip = milliseconds(&repeat(PROBES, || {
        let began = Instant::now();
        user.enter(|| {
            TcpStream::connect_timeout(&format!("{NODE}:443").parse()?, PATIENCE).context("the node")
        })??;
        Ok(began.elapsed())
    })?);
    let stream = milliseconds(&repeat(options.runs, || origin::greeting(user, local(GREET), PATIENCE))?);
    let [first, rest @ ..] = LATER;
    // Their sessions could not be opened when the client started, one after the other: none is half open when it is wanted.
    let last = later(rest[rest.len() - 1]);
    client.wait_until("complain about each of them", EACH_COMPLAINS, |client| {
        // The first time it says where it listens.
        Ok((client.output().matches(&last).count() > 1).then_some(()))
    })?;
    let connector = world.connect_later()?;
    // A connector is connected a moment before the node gives it sessions.
    wait_until("the first session of another connector", PATIENCE, || {
        origin::greeting(user, local(first), PATIENCE).map(Some)
    })?;
    let new = rest.map(|port| origin::greeting(user, local(port), PATIENCE));
    let new: Vec<Duration> = new
        .into_iter()
        .collect::<Result<_>>()
        .with_context(|| format!("the client said:\n{}", client.output()))?;
    let new = milliseconds(&new);
    drop((client, connector));
    let cold = milliseconds(&repeat(options.runs, || cold(&world))?);
    let figure = |what: &str, value: f64, round_trips: f64, more: f64| {
        let target = Target::AtMost((round_trips * round_trip + more).round());
        let note = format!("{:.1} round trips of {round_trip:.1} ms", value / round_trip);
        Figure::new(what, value, Unit::Milliseconds, target).with_note(note)
    };
    Ok(vec![
        figure("first byte, cold (process start included)", cold, 5.0, 20.0),
        figure("first byte, new session on a warm control connection", new, 4.0, 0.0),
        figure("first byte, another stream", stream, 1.0, 5.0),
    ])
}

/// A client that is started for one connection: from its `exec` on.
fn cold(world: &World) -> Result<Duration> {
    let mut command = world.machine.ready(&["tcp", "greet"])?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = world.line.user.enter(|| command.spawn())??;
    let (mut to, mut from) = child.stdin.take().zip(child.stdout.take()).context("no pipes")?;
    let mut first_byte = || {
        let mut byte = [0];
        from.read_exact(&mut byte).context("its namespaces")?;
        ensure!(byte == *b"\n");
        let began = Instant::now();
        to.write_all(b"\n")?;
        from.read_exact(&mut byte).context("no byte from a cold client")?;
        ensure!(byte == *b"!");
        Ok(began.elapsed())
    };
    let elapsed = first_byte();
    // In good order: one that is killed counts for a while among the connections that its device may have.
    drop(to);
    let ended = wait_until("the end of a cold client", PATIENCE, || Ok(child.try_wait()?));
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    let elapsed = elapsed?;
    ended.map(|_| elapsed)
}

fn repeat(count: usize, measure: impl FnMut() -> Result<Duration>) -> Result<Vec<Duration>> {
    std::iter::repeat_with(measure).take(count).collect()
}

fn milliseconds(times: &[Duration]) -> f64 {
    median(times.iter().map(|time| time.as_secs_f64() * 1e3).collect())
}
