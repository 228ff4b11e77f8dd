//! A small program in front of the gate's, on the gate's own link. It goes on to the gate's by a tail call.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::Result;
use aya::programs::ProgramFd;

use super::{gate, program, sys};
use crate::netns::Netns;

pub struct Front {
    netns: Netns,
    interface: &'static str,
    link: OwnedFd,
    behind: ProgramFd,
    before: OwnedFd,
    _tail: OwnedFd,
}

impl Front {
    /// For the gate that guards `interface` and whose pin directory is `pin`. It drops what comes from a link address that begins so,
    /// if one is given, by one comparison.
    pub fn new(
        netns: &Netns,
        interface: &'static str,
        pin: &Path,
        except_from: Option<[u8; 4]>,
    ) -> Result<Self> {
        let link = sys::pinned(&pin.join("links").join(interface).join("native"))?;
        let behind = gate::attached(netns, interface)?.fd()?;
        let tail = sys::tail(behind.as_fd())?;
        let before = program::in_front(tail.as_fd(), except_from)?;
        Ok(Self { netns: netns.clone(), interface, link, behind, before, _tail: tail })
    }

    /// Puts it there, from one packet to the next. It has to live as long as it is there.
    pub fn put(&self) -> Result<()> {
        sys::replace(self.link.as_fd(), self.before.as_fd())
    }

    /// Whether it is there.
    pub fn is_there(&self) -> Result<bool> {
        Ok(sys::PROGRAM.starts_with(gate::attached(&self.netns, self.interface)?.name()))
    }

    /// Leaves the link to the program that was there.
    pub fn take_away(&self) -> Result<()> {
        sys::replace(self.link.as_fd(), self.behind.as_fd())
    }
}
