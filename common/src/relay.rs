//! Sends a packet of an authorised session on: one rewrite for both families.

use crate::frame::{FrameMut, Place};
use crate::layout::{FlowEntry, Hop, fold};
use crate::{DropReason, Family, IpMeta, Span};

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
    let mut header = frame.place::<UDP_HEADER>(at)?;
    let sum = match (u16::from_be(header.half::<6>()), family) {
        (0, Family::V4) => 0,
        (0, Family::V6) => return Err(DropReason::RelayChecksum),
        (sum, _) => match updated(sum, entry.transport_delta) {
            0 => 0xffff,
            sum => sum,
        },
    };
    header.set_half::<0>(entry.source_port.to_be());
    header.set_half::<2>(entry.destination_port.to_be());
    header.set_half::<6>(sum.to_be());
    Ok(())
}

/// Time to live, checksum, addresses.
#[inline(always)]
fn ipv4<F: FrameMut + ?Sized>(frame: &mut F, at: usize, entry: &FlowEntry) -> Result<(), DropReason> {
    // One off the time to live takes 0x0100 from the word it is in: so much more in ones' complement.
    const ONE_HOP_LESS: u16 = !0x0100;
    let mut header = frame.place::<20>(at)?;
    let delta = fold(u32::from(entry.address_delta) + u32::from(ONE_HOP_LESS));
    let sum = updated(u16::from_be(header.half::<10>()), delta);
    let ttl = header.byte::<8>();
    header.set_byte::<8>(ttl.wrapping_sub(1));
    header.set_half::<10>(sum.to_be());
    header.set_word::<12>(entry.source.v4_word());
    header.set_word::<16>(entry.destination.v4_word());
    Ok(())
}

/// Hop limit and addresses.
#[inline(always)]
fn ipv6<F: FrameMut + ?Sized>(frame: &mut F, at: usize, entry: &FlowEntry) -> Result<(), DropReason> {
    let mut header = frame.place::<40>(at)?;
    let limit = header.byte::<7>();
    header.set_byte::<7>(limit.wrapping_sub(1));
    let [s0, s1, s2, s3] = entry.source.words();
    header.set_word::<8>(s0);
    header.set_word::<12>(s1);
    header.set_word::<16>(s2);
    header.set_word::<20>(s3);
    let [d0, d1, d2, d3] = entry.destination.words();
    header.set_word::<24>(d0);
    header.set_word::<28>(d1);
    header.set_word::<32>(d2);
    header.set_word::<36>(d3);
    Ok(())
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
    let ethertype = match family {
        Family::V4 => const { 0x0800_u16.to_be() },
        Family::V6 => const { 0x86dd_u16.to_be() },
    };
    let [outer, inner] = hop.tag.map(u32::from_ne_bytes);
    match hop.tags {
        0 => {
            let mut header = frame.place::<ETHERNET>(0)?;
            addresses(&mut header, hop);
            header.set_half::<12>(ethertype);
        }
        1 => {
            let mut header = frame.place::<{ ETHERNET + VLAN_TAG }>(0)?;
            addresses(&mut header, hop);
            header.set_word::<12>(outer);
            header.set_half::<16>(ethertype);
        }
        2 => {
            let mut header = frame.place::<{ ETHERNET + 2 * VLAN_TAG }>(0)?;
            addresses(&mut header, hop);
            header.set_word::<12>(outer);
            header.set_word::<16>(inner);
            header.set_half::<20>(ethertype);
        }
        _ => return Err(DropReason::RelayNoHop),
    }
    Ok(())
}

/// Destination and source.
#[inline(always)]
fn addresses<const N: usize>(header: &mut impl Place<N>, hop: &Hop) {
    let [first, second, third] = hop.addresses();
    header.set_word::<0>(first);
    header.set_word::<4>(second);
    header.set_word::<8>(third);
}
