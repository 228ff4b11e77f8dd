//! rtnetlink(7), as much of it as one BPF filter on the way out needs.
//!
//! Aya can attach such a filter, but not say whether one is there, whose it is, and which program it runs.
//! Reading needs no privilege, so that the daemon can still look after it has given all of them up.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// A connection to the network namespace that it was made in.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// A BPF filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// As whoever attached it called it.
    pub(super) name: String,
    pub(super) program_id: u32,
}

/// Where a filter sits among those on the way out of an interface.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) ifindex: u32,
    /// Lower ones go first.
    pub(super) priority: u16,
    /// Tells filters of one priority apart.
    pub(super) handle: u32,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        // NETLINK_ROUTE is protocol 0, the one that is taken when none is named.
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The interface of this name; `None` if there is none.
    pub(super) fn index_of(&self, interface: &str) -> io::Result<Option<u32>> {
        match rustix::net::netdevice::name_to_index(&self.socket, interface) {
            Ok(ifindex) => Ok(Some(ifindex)),
            Err(rustix::io::Errno::NODEV) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the `clsact` qdisc, which filters on the way out hang on, unless it is there.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if the older `ingress` qdisc has its place: what is attached to that one for the way
    /// out would run on the way in.
    pub(super) fn ensure_clsact(&mut self, ifindex: u32) -> io::Result<()> {
        let request = Request::new(RTM_NEWQDISC, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
            .traffic_control(ifindex, CLSACT_HANDLE, TC_H_CLSACT, 0)
            .text(TCA_KIND, CLSACT);
        match self.ask(request) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result.map(drop),
        }
        // The kernel tells those who watch qdiscs, and the one who asks only if he wants an echo.
        let request = Request::new(RTM_GETQDISC, NLM_F_ECHO).traffic_control(ifindex, 0, TC_H_CLSACT, 0);
        let answer = self.ask(request)?;
        if attribute(traffic_control(&answer), TCA_KIND).and_then(text) == Some(CLSACT) {
            return Ok(());
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// The BPF filter at a place; `None` if there is none, or no interface.
    pub(super) fn filter(&mut self, place: Place) -> io::Result<Option<Filter>> {
        let request = Request::new(RTM_GETTFILTER, 0).filter(place);
        let answer = match self.ask(request) {
            // EINVAL: no qdisc, or filters of another kind or protocol have the priority.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) =>
            {
                return Ok(None);
            }
            answer => answer?,
        };
        let options = attribute(traffic_control(&answer), TCA_OPTIONS).unwrap_or_default();
        let name = attribute(options, TCA_BPF_NAME).and_then(text).unwrap_or_default().to_owned();
        let program_id = attribute(options, TCA_BPF_ID).and_then(number).unwrap_or_default();
        Ok(Some(Filter { name, program_id }))
    }

    /// Puts a filter at a place, or changes the program of the one that is there: packets see the old one or
    /// the new one, never none. The filter outlives this process.
    pub(super) fn put_filter(
        &mut self,
        place: Place,
        name: &str,
        program: BorrowedFd<'_>,
        replace: bool,
    ) -> io::Result<()> {
        let exclusive = if replace { 0 } else { NLM_F_EXCL };
        let fd = program.as_raw_fd().cast_unsigned();
        let request = Request::new(RTM_NEWTFILTER, NLM_F_ACK | NLM_F_CREATE | exclusive)
            .filter(place)
            .nested(TCA_OPTIONS, |options| {
                options
                    .attribute(TCA_BPF_FD, &fd.to_ne_bytes())
                    .text(TCA_BPF_NAME, name)
                    .attribute(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes())
            });
        self.ask(request).map(drop)
    }

    pub(super) fn delete_filter(&mut self, place: Place) -> io::Result<()> {
        self.ask(Request::new(RTM_DELTFILTER, NLM_F_ACK).filter(place)).map(drop)
    }

    /// The answer's message without its header; empty for a bare acknowledgement.
    ///
    /// The kernel works within the call that sends, so the answer is there when that returns.
    fn ask(&mut self, request: Request) -> io::Result<Vec<u8>> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = request.finish(self.sequence)?;
        rustix::net::send(self.socket.as_fd(), &request, SendFlags::empty())?;
        let mut buffer = vec![0; MAX_ANSWER];
        loop {
            let (length, _) = rustix::net::recv(self.socket.as_fd(), &mut buffer[..], RecvFlags::DONTWAIT)?;
            let message = buffer.get(..length).unwrap_or_default();
            let Some((kind, sequence, body)) = message_of(message) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            // What is left of a request whose answer was given up.
            if sequence != self.sequence {
                continue;
            }
            if kind != NLMSG_ERROR {
                return Ok(body.to_vec());
            }
            return match body.get(..4).and_then(number).map(u32::cast_signed) {
                Some(0) => Ok(Vec::new()),
                Some(error) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
                None => Err(io::ErrorKind::InvalidData.into()),
            };
        }
    }
}

// include/uapi/linux/netlink.h.
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_ECHO: u16 = 0x8;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLA_F_NESTED: u16 = 0x8000;
const HEADER: usize = 16;

// include/uapi/linux/rtnetlink.h.
const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
/// `struct tcmsg`.
const TCMSG: usize = 20;

// include/uapi/linux/pkt_sched.h, pkt_cls.h, if_ether.h.
const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
/// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS)`.
const EGRESS: u32 = 0xffff_fff3;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const ETH_P_ALL: u16 = 0x0003;

const CLSACT: &str = "clsact";
/// Far above what a qdisc or a BPF filter has to say.
const MAX_ANSWER: usize = 16 * 1024;

/// A message that is being written.
struct Request {
    kind: u16,
    flags: u16,
    /// What follows the header.
    body: Vec<u8>,
}

impl Request {
    fn new(kind: u16, flags: u16) -> Self {
        Self { kind, flags: flags | NLM_F_REQUEST, body: Vec::new() }
    }

    fn traffic_control(mut self, ifindex: u32, handle: u32, parent: u32, info: u32) -> Self {
        // The family and its padding come first.
        for word in [0, ifindex, handle, parent, info] {
            self.body.extend(word.to_ne_bytes());
        }
        self
    }

    fn filter(self, place: Place) -> Self {
        let info = u32::from(place.priority) << 16 | u32::from(ETH_P_ALL.to_be());
        self.traffic_control(place.ifindex, place.handle, EGRESS, info).text(TCA_KIND, "bpf")
    }

    fn text(self, kind: u16, text: &str) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    fn nested(self, kind: u16, inside: impl FnOnce(Self) -> Self) -> Self {
        let inner = inside(Self::new(0, 0)).body;
        self.attribute(kind | NLA_F_NESTED, &inner)
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        // No value here comes near the 64 KiB that the length can say; `finish` refuses it.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.body.extend(length.to_ne_bytes());
        self.body.extend(kind.to_ne_bytes());
        self.body.extend(value);
        self.body.resize(self.body.len().next_multiple_of(4), 0);
        self
    }

    fn finish(self, sequence: u32) -> io::Result<Vec<u8>> {
        let length = u16::try_from(HEADER + self.body.len()).map_err(io::Error::other)?;
        let mut message = Vec::with_capacity(usize::from(length));
        message.extend(u32::from(length).to_ne_bytes());
        message.extend(self.kind.to_ne_bytes());
        message.extend(self.flags.to_ne_bytes());
        message.extend(sequence.to_ne_bytes());
        // The kernel knows the port it came from.
        message.extend(0_u32.to_ne_bytes());
        message.extend(self.body);
        Ok(message)
    }
}

/// Type, sequence number and body of the first message in a buffer.
fn message_of(buffer: &[u8]) -> Option<(u16, u32, &[u8])> {
    let length = usize::try_from(number(buffer.get(..4)?)?).ok()?;
    let kind = u16::from_ne_bytes(buffer.get(4..6)?.try_into().ok()?);
    let sequence = number(buffer.get(8..12)?)?;
    Some((kind, sequence, buffer.get(HEADER..length)?))
}

/// The attributes of a traffic control message.
fn traffic_control(body: &[u8]) -> &[u8] {
    body.get(TCMSG..).unwrap_or_default()
}

/// Value of the first attribute of a type.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let value = attributes.get(4..length)?;
        if kind & NLA_TYPE_MASK == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value).ok().map(|text| text.trim_end_matches('\0'))
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_behind_others_and_inside_others() {
        let request = Request::new(RTM_NEWTFILTER, 0).text(TCA_KIND, "bpf").nested(TCA_OPTIONS, |options| {
            options.text(TCA_BPF_NAME, "a").attribute(TCA_BPF_ID, &[7, 0, 0, 0])
        });
        assert_eq!(request.body.len() % 4, 0);
        assert_eq!(attribute(&request.body, TCA_KIND).and_then(text), Some("bpf"));
        let options = attribute(&request.body, TCA_OPTIONS).unwrap();
        assert_eq!(attribute(options, TCA_BPF_NAME).and_then(text), Some("a"));
        assert_eq!(attribute(options, TCA_BPF_ID), Some(&[7, 0, 0, 0][..]));
        assert_eq!(attribute(options, TCA_BPF_FD), None);
    }

    #[test]
    fn a_message_is_read_back() {
        let message =
            Request::new(RTM_GETQDISC, NLM_F_ACK).traffic_control(3, 0, EGRESS, 0).finish(9).unwrap();
        let (kind, sequence, body) = message_of(&message).unwrap();
        assert_eq!((kind, sequence, body.len()), (RTM_GETQDISC, 9, TCMSG));
        for short in 0..message.len() {
            assert!(message_of(&message[..short]).is_none(), "{short}");
        }
    }

    #[test]
    fn lengths_that_lie_end_the_search() {
        for bytes in [&[][..], &[4], &[0, 0, 1, 0], &[3, 0, 1, 0], &[255, 255, 1, 0], &[4, 0, 9, 0]] {
            assert_eq!(attribute(bytes, TCA_KIND), None, "{bytes:?}");
        }
    }
}
