//! A link that takes its time: this kernel has no netem, so two threads carry the frames of each direction from one packet socket to
//! another, each frame a fixed time after it came.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::super::lab::ifindex;
use super::super::sys;
use crate::netns::Netns;

/// Frames that wait in one direction, at the most; what comes on top is lost.
const QUEUE: usize = 4_096;

/// Carries frames between two interfaces of a namespace, for as long as the namespace has them.
pub fn bridge(netns: &Netns, a: &'static str, b: &'static str, delay: Duration) -> Result<()> {
    for (from, to) in [(a, b), (b, a)] {
        let (from, to) = (ifindex(netns, from)?, ifindex(netns, to)?);
        let (receive, send) =
            netns.enter(|| Ok::<_, anyhow::Error>((sys::frames_of(from)?, sys::frames_of(to)?)))??;
        let (tell, queue) = mpsc::sync_channel::<(Instant, Vec<u8>)>(QUEUE);
        thread::spawn(move || {
            let mut buffer = [0; 65_536];
            while let Ok(length) = rustix::net::recv(&receive, &mut buffer, rustix::net::RecvFlags::empty()) {
                let frame = buffer[..length.0].to_vec();
                match tell.try_send((Instant::now() + delay, frame)) {
                    Ok(()) | Err(mpsc::TrySendError::Full(_)) => {}
                    Err(mpsc::TrySendError::Disconnected(_)) => return,
                }
            }
        });
        thread::spawn(move || {
            for (at, frame) in queue {
                thread::sleep(at.saturating_duration_since(Instant::now()));
                // What the interface does not take is lost, as on any link.
                let _ = rustix::net::send(&send, &frame, rustix::net::SendFlags::empty());
            }
        });
    }
    Ok(())
}
