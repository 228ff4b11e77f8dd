//! Sends a packet of an authorised session on: one rewrite for both families.

use crate::layout::{FlowEntry, Hop, fold};
use crate::{DropReason, Family, Frame, IpMeta, Span};

/// Write access to the bytes of one Ethernet frame.
pub trait FrameMut: Frame {
    /// Replaces the `N` bytes at `at` by what `change` makes of them.
    ///
    /// # Errors
    ///
    /// That of `change`, or [`DropReason::RelayNoHop`] unless all of the bytes are within reach; nothing is
    /// written then.
    fn update<const N: usize>(
        &mut self,
        at: usize,
        change: impl FnOnce([u8; N]) -> Result<[u8; N], DropReason>,
    ) -> Result<(), DropReason>;

    /// Cuts so many bytes off the front, or adds them there if negative; their content is undefined.
    ///
    /// # Errors
    ///
    /// [`DropReason::RelayNoHop`] where there is no room.
    fn cut_front(&mut self, bytes: i32) -> Result<(), DropReason>;
}

const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;

/// Gives the packet the ends of `entry` and the link header of `hop`. As a router does, it takes one from the
/// time to live (RFC 1812 §5.3.1); checksums are updated, not computed (RFC 1624), so that a packet damaged on
/// the way stays damaged.
///
/// # Errors
///
/// Why the packet cannot go on. It has then not been changed, except after [`DropReason::RelayNoHop`].
#[inline(always)]
pub(crate) fn forward<F: FrameMut + ?Sized>(
    frame: &mut F,
    ip: &IpMeta,
    payload: Span,
    entry: &FlowEntry,
    hop: &Hop,
) -> Result<(), DropReason> {
    if ip.hop_limit <= 1 {
        return Err(DropReason::RelayHopLimit);
    }
    if ip.packet.length > hop.mtu {
        return Err(DropReason::RelayMtu);
    }
    let at = ip.packet.start();
    udp(frame, ip.family, payload.start() - UDP_HEADER, entry)?;
    match ip.family {
        Family::V4 => ipv4(frame, at, entry)?,
        Family::V6 => ipv6(frame, at, entry)?,
    }
    link(frame, ip.family, at, hop)
}

const UDP_HEADER: usize = 8;

/// RFC 768: a checksum of 0 says that there is none, which IPv6 does not allow; one that comes out as 0 is
/// sent as all ones.
#[inline(always)]
fn udp<F: FrameMut + ?Sized>(
    frame: &mut F,
    family: Family,
    at: usize,
    entry: &FlowEntry,
) -> Result<(), DropReason> {
    frame.update(at, |[_, _, _, _, l0, l1, c0, c1]: [u8; UDP_HEADER]| {
        let sum = match (u16::from_be_bytes([c0, c1]), family) {
            (0, Family::V4) => 0,
            (0, Family::V6) => return Err(DropReason::RelayChecksum),
            (sum, _) => match updated(sum, entry.transport_delta) {
                0 => 0xffff,
                sum => sum,
            },
        };
        let [s0, s1] = entry.source_port.to_be_bytes();
        let [d0, d1] = entry.destination_port.to_be_bytes();
        let [c0, c1] = sum.to_be_bytes();
        Ok([s0, s1, d0, d1, l0, l1, c0, c1])
    })
}

/// Time to live, protocol, checksum, addresses.
#[inline(always)]
fn ipv4<F: FrameMut + ?Sized>(frame: &mut F, at: usize, entry: &FlowEntry) -> Result<(), DropReason> {
    // One off the time to live takes 0x0100 from the word it is in: so much more in ones' complement.
    const ONE_HOP_LESS: u16 = !0x0100;
    frame.update(at + 8, |[ttl, protocol, c0, c1, ..]: [u8; 12]| {
        let delta = fold(u32::from(entry.address_delta) + u32::from(ONE_HOP_LESS));
        let [c0, c1] = updated(u16::from_be_bytes([c0, c1]), delta).to_be_bytes();
        let [s0, s1, s2, s3] = entry.source.v4_word().to_ne_bytes();
        let [d0, d1, d2, d3] = entry.destination.v4_word().to_ne_bytes();
        Ok([ttl.wrapping_sub(1), protocol, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3])
    })
}

/// Hop limit and addresses.
#[inline(always)]
fn ipv6<F: FrameMut + ?Sized>(frame: &mut F, at: usize, entry: &FlowEntry) -> Result<(), DropReason> {
    frame.update(at + 4, |mut bytes: [u8; 36]| {
        bytes[3] = bytes[3].wrapping_sub(1);
        bytes[4..20].copy_from_slice(&entry.source.octets());
        bytes[20..].copy_from_slice(&entry.destination.octets());
        Ok(bytes)
    })
}

/// Equation 3 of RFC 1624, with what changed already summed up.
#[inline(always)]
const fn updated(checksum: u16, delta: u16) -> u16 {
    !fold(!checksum as u32 + delta as u32)
}

/// The link header of the next hop in front of the IP packet at `at`. Tags that the packet came with are the
/// other link's, and go.
#[inline(always)]
fn link<F: FrameMut + ?Sized>(frame: &mut F, family: Family, at: usize, hop: &Hop) -> Result<(), DropReason> {
    let new = ETHERNET + hop.tags as usize * VLAN_TAG;
    if at != new {
        frame.cut_front(at as i32 - new as i32)?;
    }
    let [d0, d1, d2, d3, d4, d5] = hop.destination;
    let [s0, s1, s2, s3, s4, s5] = hop.source;
    let [[a0, a1, a2, a3], [b0, b1, b2, b3]] = hop.tag;
    let [t0, t1] = match family {
        Family::V4 => [0x08, 0x00],
        Family::V6 => [0x86, 0xdd],
    };
    match hop.tags {
        0 => {
            frame.update(0, |_: [u8; ETHERNET]| Ok([d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1]))
        }
        1 => frame.update(0, |_: [u8; ETHERNET + VLAN_TAG]| {
            Ok([d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, a0, a1, a2, a3, t0, t1])
        }),
        2 => frame.update(0, |_: [u8; ETHERNET + 2 * VLAN_TAG]| {
            Ok([d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, a0, a1, a2, a3, b0, b1, b2, b3, t0, t1])
        }),
        _ => Err(DropReason::RelayNoHop),
    }
}
