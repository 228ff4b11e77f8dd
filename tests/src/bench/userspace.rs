//! A UDP relay in userspace: what the gate's relay would be without the kernel's help.
//!
//! It receives on the tunnel's port and sends to the sink from a socket of its own. It has CPU 0 for itself, or whichever the
//! packets do not arrive on, while the relay in the gate makes do with the one.

use std::io::{self, IoSliceMut};
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};

use super::contender::{Contender, CountAt};
use super::generator::pin;
use super::lab::{Lab, SINK, TUNNEL};
use super::traffic::Traffic;
use super::{Options, other_cpu};

/// With generic receive and segmentation offload: the kernel hands over and takes up to 64 datagrams at once.
pub fn aggregating(options: &Options) -> Result<(Contender, Traffic)> {
    contender("userspace relay, GRO+GSO", "gro", options, carry_batches)
}

/// One datagram for each system call.
pub fn plain(options: &Options) -> Result<(Contender, Traffic)> {
    contender("userspace relay, unaggregated", "plain", options, carry_each)
}

type Carry = fn(&UdpSocket, &UdpSocket, &AtomicBool) -> io::Result<()>;

fn contender(
    name: &'static str,
    label: &str,
    options: &Options,
    carry: Carry,
) -> Result<(Contender, Traffic)> {
    let mut lab = Lab::two_ports(label)?;
    lab.receive_by_stack()?;
    let worker = Worker::start(&lab, other_cpu(options.cpu), carry)?;
    lab.absorb()?;
    let traffic = Traffic::flows(1, TUNNEL)?;
    Ok((Contender::new(name, lab, &traffic, CountAt::Sink, options.cpu, worker)?, traffic))
}

/// The thread that relays; it ends when this is dropped.
struct Worker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(lab: &Lab, cpu: usize, carry: Carry) -> Result<Self> {
        let (inside, outside) = lab.node.enter(|| -> Result<_> {
            let (inside, outside) = (UdpSocket::bind(TUNNEL)?, UdpSocket::bind("198.19.255.254:0")?);
            rustix::net::sockopt::set_socket_recv_buffer_size_force(&inside, 32 << 20)?;
            outside.connect(SINK)?;
            // So that the thread sees that it is to end.
            inside.set_read_timeout(Some(Duration::from_millis(100)))?;
            Ok((inside, outside))
        })??;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("userspace relay".into()).spawn(move || {
            // A worker that ends early gets nothing through, which the measurement says.
            if let Err(error) =
                pin(cpu).map_err(io::Error::other).and_then(|()| carry(&inside, &outside, &stopped))
            {
                eprintln!("the userspace relay ended: {error}");
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn carry_each(inside: &UdpSocket, outside: &UdpSocket, stop: &AtomicBool) -> io::Result<()> {
    let mut datagram = [0; 2_048];
    while !stop.load(Ordering::Relaxed) {
        match inside.recv(&mut datagram) {
            Ok(length) => drop(outside.send(&datagram[..length])?),
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn carry_batches(inside: &UdpSocket, outside: &UdpSocket, stop: &AtomicBool) -> io::Result<()> {
    let (receiver, sender) = (UdpSocketState::new(inside.into())?, UdpSocketState::new(outside.into())?);
    // That made them non-blocking; this one has a thread to itself.
    inside.set_nonblocking(false)?;
    let mut buffers = vec![[0; 65_536]; BATCH_SIZE];
    let mut meta = [RecvMeta::default(); BATCH_SIZE];
    while !stop.load(Ordering::Relaxed) {
        let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let received = match receiver.recv(inside.into(), &mut slices, &mut meta) {
            Ok(received) => received,
            Err(error) if is_timeout(&error) => continue,
            Err(error) => return Err(error),
        };
        for (buffer, meta) in buffers.iter().zip(&meta[..received]) {
            let transmit = Transmit {
                destination: SINK,
                ecn: None,
                contents: &buffer[..meta.len],
                segment_size: (meta.stride < meta.len).then_some(meta.stride),
                src_ip: None,
            };
            match sender.try_send(outside.into(), &transmit) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => sent?,
            }
        }
    }
    Ok(())
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}
