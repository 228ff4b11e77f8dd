//! Datagrams to the tunnel's port: relayed flows, authenticated peers, and those who are on the way to become
//! one.

use crate::admit::{Admission, Lookup, pays_for_network};
use crate::datagram::{Datagram, InitialId, datagram, is_bind};
use crate::layout::{FlowEntry, HostFlowKey};
use crate::{ConnectionId, DropReason, Flow, Frame, Knock, PassReason, RateClass, Span, Verdict};

/// A connection ID proves that the node once answered whoever got it, and no more: it passes freely only from
/// an address that the daemon has authenticated, and pays from anywhere else, so that neither a replayed ID nor
/// a captured one lets a flood in.
#[inline(always)]
pub(crate) fn admit<F: Frame + ?Sized, L: Lookup>(
    flow: &Flow,
    payload: Span,
    frame: &F,
    lookup: &L,
    now: u64,
) -> Admission<L::Entry> {
    if !is_bind(frame, payload)
        && let Some(entry) = lookup.flow(flow)
    {
        return match authorised(&entry, lookup, now) {
            Ok(()) => Admission::Relay(entry, payload),
            Err(reason) => Admission::Settled(Verdict::Drop(reason)),
        };
    }
    let verdict = match datagram(frame, payload.start(), usize::from(payload.length)) {
        Ok(Datagram::Quic(id)) => quic(&id, flow, lookup, now),
        Ok(Datagram::Initial(InitialId::Minted(id))) if is_minted(&id, lookup, now) => {
            proven(&id, flow, lookup, now)
        }
        // A knock is taken wherever it is right, so that a device that knocks is served while strangers flood; one is
        // asked for where the port is dark.
        Ok(Datagram::Initial(InitialId::Knock(knock))) => match device(knock, lookup, now) {
            Some(device) => knocked(&knock, device, lookup, now),
            None => open(flow, lookup, now),
        },
        Ok(Datagram::Initial(InitialId::Minted(_) | InitialId::Chosen)) => open(flow, lookup, now),
        Ok(Datagram::Bind(ticket)) => bind(&ticket, flow, lookup, now),
        Err(reason) => Verdict::Drop(reason),
    };
    Admission::Settled(verdict)
}

/// Whether the far end is an authenticated tunnel peer.
#[inline(always)]
pub(crate) fn is_peer(flow: &Flow, lookup: &impl Lookup, now: u64) -> bool {
    lookup.tunnel(&HostFlowKey::udp(flow)).is_some_and(|ends| now < ends)
}

/// An entry counts as long as its session does: same generation, not expired, and nobody has revoked all
/// sessions of the person. What is missing counts as revoked.
#[inline(always)]
fn authorised(entry: &FlowEntry, lookup: &impl Lookup, now: u64) -> Result<(), DropReason> {
    let session = lookup.session(entry.session).ok_or(DropReason::RelayRevoked)?;
    if session.generation != entry.generation {
        return Err(DropReason::RelayRevoked);
    }
    if lookup.identity_epoch(session.identity) != Some(session.epoch) {
        return Err(DropReason::RelayRevoked);
    }
    if now >= session.expires { Err(DropReason::RelayExpired) } else { Ok(()) }
}

#[inline(always)]
fn quic(id: &ConnectionId, flow: &Flow, lookup: &impl Lookup, now: u64) -> Verdict {
    if is_minted(id, lookup, now) {
        proven(id, flow, lookup, now)
    } else {
        Verdict::Drop(DropReason::TunnelId)
    }
}

#[inline(always)]
fn is_minted(id: &ConnectionId, lookup: &impl Lookup, now: u64) -> bool {
    lookup.cid_key(id.slot()).is_some_and(|key| now < key.expires && id.is_minted_by(&key.key))
}

#[inline(always)]
fn proven(id: &ConnectionId, flow: &Flow, lookup: &impl Lookup, now: u64) -> Verdict {
    if is_peer(flow, lookup, now) {
        return Verdict::Pass(PassReason::Tunnel);
    }
    unproven(id, flow, PassReason::TunnelUnproven, lookup, now)
}

#[inline(always)]
fn bind(ticket: &ConnectionId, flow: &Flow, lookup: &impl Lookup, now: u64) -> Verdict {
    if !is_minted(ticket, lookup, now) {
        return Verdict::Drop(DropReason::TunnelId);
    }
    unproven(ticket, flow, PassReason::RelayBind, lookup, now)
}

#[inline(always)]
fn unproven(id: &ConnectionId, flow: &Flow, pass: PassReason, lookup: &impl Lookup, now: u64) -> Verdict {
    let classes = [RateClass::UnprovenNetwork, RateClass::UnprovenRecent, RateClass::Unproven];
    if lookup.take(RateClass::UnprovenId, id.hash(), now) && pays_for_network(flow, classes, lookup, now) {
        Verdict::Pass(pass)
    } else {
        Verdict::Drop(DropReason::TunnelRate)
    }
}

/// The device whose knock it is.
#[inline(always)]
fn device(knock: Knock, lookup: &impl Lookup, now: u64) -> Option<u32> {
    let settings = lookup.settings()?;
    settings.knock.verify(&knock, settings.wall(now))
}

/// From somebody who proves nothing.
#[inline(always)]
fn open(flow: &Flow, lookup: &impl Lookup, now: u64) -> Verdict {
    let Some(settings) = lookup.settings() else { return Verdict::Drop(DropReason::Dark) };
    if settings.is_dark() {
        return Verdict::Drop(DropReason::Dark);
    }
    let classes = [RateClass::OpenerNetwork, RateClass::OpenerRecent, RateClass::Opener];
    if pays_for_network(flow, classes, lookup, now) {
        Verdict::Pass(PassReason::TunnelOpen)
    } else {
        Verdict::Drop(DropReason::OpenerRate)
    }
}

#[inline(always)]
fn knocked(knock: &Knock, device: u32, lookup: &impl Lookup, now: u64) -> Verdict {
    if lookup.is_device_revoked(device) {
        return Verdict::Drop(DropReason::DeviceRevoked);
    }
    if lookup.take(RateClass::KnockOnce, knock.hash(), now) && lookup.take(RateClass::Knock, 0, now) {
        Verdict::Pass(PassReason::TunnelKnock)
    } else {
        Verdict::Drop(DropReason::KnockRate)
    }
}
