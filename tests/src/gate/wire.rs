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

    /// Waits while the kernel has no room, as long as a busy machine may take.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match rustix::io::write(&self.socket, frame) {
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                result => return Ok(result.map(drop)?),
            }
        }
    }

    /// Hands frames to the kernel in one call; how many it took, which is none when it has no room.
    pub fn send_many(&self, frames: &[Vec<u8>]) -> Result<usize> {
        let mut parts: Vec<libc::iovec> = frames
            .iter()
            .map(|frame| libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: all zeroes is a valid message header.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_iov = part;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        let count = libc::c_uint::try_from(messages.len())?;
        // SAFETY: each header points to a part, and each part to a frame, that live until the call returns.
        let sent = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
        match usize::try_from(sent) {
            Ok(sent) => Ok(sent),
            Err(_) => match io::Error::last_os_error() {
                full if matches!(full.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS)) => Ok(0),
                error => Err(error.into()),
            },
        }
    }

    /// Frames leave at once, past the interface's queue.
    pub fn bypass_queue(&self) -> Result<()> {
        let on: libc::c_int = 1;
        let length = libc::socklen_t::try_from(size_of_val(&on))?;
        let socket = self.socket.as_raw_fd();
        // SAFETY: `on` is as long as said.
        let set = unsafe {
            libc::setsockopt(
                socket,
                libc::SOL_PACKET,
                libc::PACKET_QDISC_BYPASS,
                (&raw const on).cast(),
                length,
            )
        };
        if set < 0 { Err(io::Error::last_os_error().into()) } else { Ok(()) }
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
