//! Frames as they are, onto a link and off it: a stranger who does not use his kernel's TCP.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::netns::Netns;

/// A packet socket on one interface (packet(7)).
pub struct Wire {
    socket: OwnedFd,
}

impl Wire {
    pub fn on(netns: &Netns, interface: &str) -> Result<Self> {
        let interface = interface.to_owned();
        netns.enter(move || {
            let every = u16::try_from(libc::ETH_P_ALL)?.to_be();
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            // SAFETY: takes integers only.
            let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(every)) };
            if fd < 0 {
                return Err(io::Error::last_os_error().into());
            }
            // SAFETY: just made, and nobody else's.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            let index = rustix::net::netdevice::name_to_index(&socket, &interface)?;
            // SAFETY: all zeroes is a valid address of this family.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = u16::try_from(libc::AF_PACKET)?;
            address.sll_protocol = every;
            address.sll_ifindex = i32::try_from(index)?;
            let length = libc::socklen_t::try_from(size_of_val(&address))?;
            // SAFETY: `address` is as long as said.
            if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
                return Err(io::Error::last_os_error().into());
            }
            Ok(Self { socket })
        })?
    }

    pub fn send(&self, frame: &[u8]) -> Result<()> {
        rustix::io::write(&self.socket, frame)?;
        Ok(())
    }

    /// The first frame that `pick` makes something of; an error after `timeout`.
    pub fn receive<T>(&self, timeout: Duration, mut pick: impl FnMut(&[u8]) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + timeout;
        let mut frame = [0; 2_048];
        while Instant::now() < deadline {
            match rustix::io::read(&self.socket, &mut frame) {
                Ok(length) => {
                    if let Some(picked) = pick(&frame[..length]) {
                        return Ok(picked);
                    }
                }
                Err(rustix::io::Errno::AGAIN) => std::thread::sleep(Duration::from_millis(1)),
                Err(error) => return Err(error.into()),
            }
        }
        bail!("no such frame within {timeout:?}")
    }
}
