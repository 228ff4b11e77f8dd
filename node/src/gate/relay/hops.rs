//! Where a relayed packet goes next: from a destination to what `NEXTHOP` holds.
//!
//! Flows share a next hop by neighbour, so that a changed link-layer address is one flip of `HOP_SLOT`, however
//! many flows use it. The number of a next hop is the flows' own and stays while any of them uses it.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;

use portcullis_common::layout::{HOPS, Hop};

use super::Resolved;
use super::routing::{Link, Routing};

/// Why a packet cannot take the fast path. The userspace relay can carry it, unless there is no way at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Detour {
    #[error("its ends are of two address families")]
    Families,
    #[error("its destination is on this host")]
    Local,
    #[error("its way leads through an interface that the gate does not guard")]
    Ungated,
    #[error("its way leads through a link that is not Ethernet, or is down")]
    Link,
    #[error("there is no route to its destination")]
    NoRoute,
    #[error("the link-layer address of its next hop is not known yet")]
    Unresolved,
    #[error("there are too many next hops")]
    Hops,
}

/// A neighbour on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct HopKey {
    pub(super) interface: u32,
    pub(super) neighbour: IpAddr,
}

/// Finds the next hop from one of this host's addresses to a destination. The inner result is the
/// network's answer.
pub(super) fn resolve(
    routing: &mut Routing,
    guarded: &[String],
    from: IpAddr,
    to: IpAddr,
) -> io::Result<Resolved> {
    let route = match routing.route(from, to)? {
        Some(route) if route.is_local => return Ok(Err((Detour::Local, None))),
        Some(route) => route,
        None => return Ok(Err((Detour::NoRoute, None))),
    };
    let key = HopKey { interface: route.interface, neighbour: route.neighbour };
    let links = links(routing, key.interface)?;
    let hop = match assemble(&links, guarded) {
        Ok(hop) => hop,
        Err(detour) => return Ok(Err((detour, None))),
    };
    Ok(match routing.neighbour(key.interface, key.neighbour)? {
        Some(destination) => Ok((key, Hop { destination, ..hop })),
        None => Err((Detour::Unresolved, Some(key))),
    })
}

/// The interface and, under VLANs, the one that frames leave by: outermost last.
fn links(routing: &mut Routing, interface: u32) -> io::Result<Vec<(u32, Link)>> {
    const DEPTH: usize = 4;
    let (mut links, mut next) = (Vec::new(), Some(interface));
    while let Some(index) = next
        && links.len() < DEPTH
    {
        let Some(link) = routing.link(index)? else { break };
        next = link.vlan.map(|(parent, _)| parent);
        links.push((index, link));
    }
    Ok(links)
}

/// All but the neighbour's address. The gate may be on the VLAN's own interface, which takes frames without the
/// tag, or on the one below.
fn assemble(links: &[(u32, Link)], guarded: &[String]) -> Result<Hop, Detour> {
    let Some((_, first)) = links.first() else { return Err(Detour::NoRoute) };
    if !first.is_ethernet || !first.is_up {
        return Err(Detour::Link);
    }
    let mut tags = Vec::new();
    let mut below = links.iter();
    let ifindex = loop {
        let Some((index, link)) = below.next() else { return Err(Detour::Ungated) };
        if guarded.contains(&link.name) {
            break *index;
        }
        match link.vlan {
            Some((_, tag)) => tags.insert(0, tag),
            None => return Err(Detour::Ungated),
        }
    };
    let mut tag = [[0; 4]; 2];
    if tags.len() > tag.len() {
        return Err(Detour::Link);
    }
    for (place, found) in tag.iter_mut().zip(&tags) {
        *place = *found;
    }
    Ok(Hop {
        ifindex,
        mtu: u16::try_from(first.mtu).unwrap_or(u16::MAX),
        tags: u16::try_from(tags.len()).unwrap_or(0),
        tag,
        source: first.address.ok_or(Detour::Link)?,
        ..Hop::default()
    })
}

/// The numbers of next hops in use.
#[derive(Default)]
pub(super) struct HopTable {
    by_key: HashMap<HopKey, u32>,
    /// Number → neighbour, where it is known, what is written, and how many flows use it.
    used: HashMap<u32, Used>,
}

struct Used {
    key: Option<HopKey>,
    hop: Hop,
    flows: usize,
}

impl HopTable {
    /// A flow of an earlier run uses the number.
    pub(super) fn adopt(&mut self, number: u32, key: Option<HopKey>, hop: Hop) {
        let used = self.used.entry(number).or_insert(Used { key, hop, flows: 0 });
        used.flows += 1;
        if let Some(key) = key {
            used.key = Some(key);
            self.by_key.entry(key).or_insert(number);
        }
    }

    /// The number of a neighbour's next hop, and whether it has to be written.
    pub(super) fn place(&self, key: &HopKey, hop: &Hop) -> Result<(u32, bool), Detour> {
        if let Some(number) = self.by_key.get(key)
            && let Some(used) = self.used.get(number)
        {
            return Ok((*number, used.hop != *hop));
        }
        let free = (0..HOPS).find(|number| !self.used.contains_key(number));
        free.map(|number| (number, true)).ok_or(Detour::Hops)
    }

    /// The number has been written.
    pub(super) fn written(&mut self, number: u32, key: HopKey, hop: Hop) {
        let used = self.used.entry(number).or_insert(Used { key: None, hop, flows: 0 });
        (used.key, used.hop) = (Some(key), hop);
        self.by_key.insert(key, number);
    }

    pub(super) fn hold(&mut self, number: u32) {
        if let Some(used) = self.used.get_mut(&number) {
            used.flows += 1;
        }
    }

    /// One flow less uses the number. It is free once none does.
    pub(super) fn release(&mut self, number: u32) {
        if let Some(used) = self.used.get_mut(&number) {
            used.flows = used.flows.saturating_sub(1);
        }
        self.forget_unused(number);
    }

    /// A number that was written for a flow which then was not installed is free again.
    pub(super) fn forget_unused(&mut self, number: u32) {
        if self.used.get(&number).is_some_and(|used| used.flows == 0)
            && let Some(used) = self.used.remove(&number)
            && let Some(key) = used.key
            && self.by_key.get(&key) == Some(&number)
        {
            self.by_key.remove(&key);
        }
    }

    pub(super) fn is_used(&self, number: u32) -> bool {
        self.used.get(&number).is_some_and(|used| used.flows > 0)
    }

    pub(super) fn key(&self, number: u32) -> Option<HopKey> {
        self.used.get(&number)?.key
    }

    pub(super) fn len(&self) -> usize {
        self.used.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, vlan: Option<(u32, [u8; 4])>) -> Link {
        Link {
            name: name.to_owned(),
            is_ethernet: true,
            is_up: true,
            address: Some([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            vlan,
        }
    }

    #[test]
    fn frames_leave_with_the_tags_of_the_vlans_between_the_route_and_the_gate() {
        let links = [
            (5, link("eth0.7.9", Some((4, [0x81, 0, 0, 9])))),
            (4, link("eth0.7", Some((3, [0x88, 0xa8, 0, 7])))),
            (3, link("eth0", None)),
        ];
        let guarded = |name: &str| vec![name.to_owned()];
        let hop = assemble(&links, &guarded("eth0")).unwrap();
        assert_eq!((hop.ifindex, hop.tags), (3, 2));
        assert_eq!(hop.tag, [[0x88, 0xa8, 0, 7], [0x81, 0, 0, 9]], "outermost first");
        let hop = assemble(&links, &guarded("eth0.7")).unwrap();
        assert_eq!((hop.ifindex, hop.tags, hop.tag[0]), (4, 1, [0x81, 0, 0, 9]));
        let hop = assemble(&links, &guarded("eth0.7.9")).unwrap();
        assert_eq!((hop.ifindex, hop.tags, hop.mtu), (5, 0, 1500));
        assert_eq!(assemble(&links, &guarded("eth1")), Err(Detour::Ungated));
    }

    #[test]
    fn a_link_that_is_down_or_no_ethernet_is_not_used() {
        let guarded = ["eth0".to_owned()];
        let down = Link { is_up: false, ..link("eth0", None) };
        let tun = Link { is_ethernet: false, ..link("eth0", None) };
        for link in [down, tun] {
            assert_eq!(assemble(&[(5, link)], &guarded), Err(Detour::Link));
        }
        assert_eq!(assemble(&[], &guarded), Err(Detour::NoRoute));
    }

    #[test]
    fn a_number_is_free_once_no_flow_uses_it() {
        let mut table = HopTable::default();
        let key = |last| HopKey { interface: 1, neighbour: IpAddr::from([192, 0, 2, last]) };
        let hop = Hop { ifindex: 1, ..Hop::default() };
        assert_eq!(table.place(&key(1), &hop), Ok((0, true)));
        table.written(0, key(1), hop);
        assert!(!table.is_used(0));
        table.hold(0);
        table.hold(0);
        assert!(table.is_used(0));
        assert_eq!(table.place(&key(1), &hop), Ok((0, false)));
        assert_eq!(table.place(&key(1), &Hop { mtu: 9, ..hop }), Ok((0, true)));
        assert_eq!(table.place(&key(2), &hop), Ok((1, true)));
        table.release(0);
        assert_eq!(table.len(), 1);
        table.release(0);
        assert_eq!((table.len(), table.key(0)), (0, None));
        assert_eq!(table.place(&key(2), &hop), Ok((0, true)));
    }
}
