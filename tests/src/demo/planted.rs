//! Listeners for a scan to find: forgotten services at the edge, reachable unless the gate drops.

use std::net::{Ipv6Addr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::Netns;

pub(super) const TCP: [u16; 3] = [22, 5432, 60001];
pub(super) const UDP: [u16; 3] = [53, 161, 5060];

/// Dual-stack listeners until dropped. TCP is accepted by the kernel's backlog; UDP is echoed.
pub(super) struct Planted {
    _tcp: Vec<TcpListener>,
    stop: Arc<AtomicBool>,
    echoes: Vec<JoinHandle<()>>,
}

impl Planted {
    pub(super) fn new(netns: &Netns) -> Result<Self> {
        let bind = || {
            let tcp = TCP.map(|port| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)));
            let udp = UDP.map(|port| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)));
            Ok::<_, std::io::Error>((
                tcp.into_iter().collect::<Result<Vec<_>, _>>()?,
                udp.into_iter().collect::<Result<Vec<_>, _>>()?,
            ))
        };
        let (tcp, udp) = netns.enter(bind)?.context("planting listeners at the edge")?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut echoes = Vec::new();
        for socket in udp {
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            let stop = Arc::clone(&stop);
            echoes.push(std::thread::spawn(move || echo(&socket, &stop)));
        }
        Ok(Self { _tcp: tcp, stop, echoes })
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.echoes.drain(..) {
            let _ = thread.join();
        }
    }
}

fn echo(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(buffer.get(..length).unwrap_or_default(), from);
        }
    }
}
