//! What is behind every path that is measured, and who speaks to it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::lab::{ECHO, GREET, SINK};
use crate::netns::Netns;

const CHUNK: usize = 256 * 1024;

/// Three TCP servers, for as long as the process lives: one swallows and counts, one echoes, one says a byte.
pub struct Origin {
    swallowed: Arc<AtomicU64>,
}

impl Origin {
    pub fn start(netns: &Netns, address: Ipv4Addr) -> Result<Self> {
        let swallowed = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&swallowed);
        serve(netns, (address, SINK).into(), move |mut stream| {
            let mut buffer = vec![0; CHUNK];
            while let Ok(read @ 1..) = stream.read(&mut buffer) {
                count.fetch_add(read as u64, Ordering::Relaxed);
            }
        })?;
        serve(netns, (address, ECHO).into(), |mut stream| {
            let _ = stream.set_nodelay(true);
            let mut buffer = [0; 64];
            while let Ok(read @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
        })?;
        serve(netns, (address, GREET).into(), |mut stream| {
            let _ = stream.write_all(b"!");
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read(&mut [0]);
        })?;
        Ok(Self { swallowed })
    }

    /// Sends to the sink through `to` for a while; bytes a second that came out during `length`, after `warm_up`.
    pub fn bulk(&self, from: &Netns, to: SocketAddr, warm_up: Duration, length: Duration) -> Result<Bulk> {
        let mut stream = connect(from, to)?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        let stop = stream.try_clone()?;
        let sender = thread::spawn(move || {
            let chunk = vec![0x5a; CHUNK];
            loop {
                if let Err(error) = stream.write_all(&chunk) {
                    return error;
                }
            }
        });
        thread::sleep(warm_up);
        let (before, began) = (self.swallowed(), Instant::now());
        thread::sleep(length);
        let (bytes, elapsed) = (self.swallowed() - before, began.elapsed());
        let _ = stop.shutdown(Shutdown::Both);
        drop(stop);
        let ended = sender.join().ok().context("the sender panicked")?;
        ensure!(
            !matches!(ended.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            "nothing went through for five seconds"
        );
        ensure!(bytes > 0, "nothing came out: {ended}");
        self.settle();
        Ok(Bulk { bytes, elapsed })
    }

    /// Waits until what is still on the way has come.
    fn settle(&self) {
        let mut seen = self.swallowed();
        for _ in 0..20 {
            thread::sleep(Duration::from_millis(20));
            let now = self.swallowed();
            if now == seen {
                return;
            }
            seen = now;
        }
    }

    /// Bytes that have come to the sink so far.
    pub fn swallowed(&self) -> u64 {
        self.swallowed.load(Ordering::Relaxed)
    }
}

/// What came out of a path, in which time.
#[derive(Clone, Copy, Debug)]
pub struct Bulk {
    pub bytes: u64,
    pub elapsed: Duration,
}

impl Bulk {
    /// Bits a second.
    pub fn rate(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64()
    }
}

/// How long it takes until the origin's byte is there, from the connection on.
pub fn greeting(from: &Netns, to: SocketAddr, timeout: Duration) -> Result<Duration> {
    let began = Instant::now();
    let mut stream = connect(from, to)?;
    stream.set_read_timeout(Some(timeout))?;
    let mut byte = [0];
    stream.read_exact(&mut byte).context("no byte from the origin")?;
    ensure!(byte == *b"!", "{byte:?} is not what the origin says");
    Ok(began.elapsed())
}

/// Sends a byte `count` times and waits for it to come back; each time.
pub fn echo(stream: &mut TcpStream, count: usize) -> Result<Vec<Duration>> {
    (0..count)
        .map(|_| {
            let began = Instant::now();
            stream.write_all(b"x")?;
            stream.read_exact(&mut [0])?;
            Ok(began.elapsed())
        })
        .collect()
}

/// A connection from a namespace.
pub fn connect(from: &Netns, to: SocketAddr) -> Result<TcpStream> {
    let stream = from.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))??;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

fn serve(
    netns: &Netns,
    address: SocketAddr,
    each: impl Fn(TcpStream) + Clone + Send + 'static,
) -> Result<()> {
    let listener = netns.enter(|| TcpListener::bind(address))??;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let each = each.clone();
            thread::spawn(move || each(stream));
        }
    });
    Ok(())
}
