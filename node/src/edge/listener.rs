//! Accepting connections, so many and no more: of all clients together, and of one network.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};

use super::{Edge, connection, limits};

/// Accepts until the edge shuts down.
pub(super) async fn accept(edge: Arc<Edge>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            () = edge.shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: what is queued stays queued until some are free again.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let address = peer.ip().to_canonical();
        match edge.slots.take(address) {
            Ok(slot) => {
                prepare(&stream);
                edge.tasks.spawn(connection::serve(Arc::clone(&edge), stream, address, slot));
            }
            Err(full) => edge.ctx.metrics.connections_refused.with_label_values(&[full.cause()]).inc(),
        }
    }
}

/// Failing options are no reason to refuse: they bound waste, not access.
fn prepare(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive =
        TcpKeepalive::new().with_time(limits::TCP_KEEPALIVE).with_interval(Duration::from_secs(15));
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(limits::UNACKNOWLEDGED));
}

/// The places for connections.
#[derive(Debug, Default)]
pub(super) struct Slots(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_network: BTreeMap<IpAddr, usize>,
}

/// One place, free again when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    network: IpAddr,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    All,
    Network,
}

impl Full {
    fn cause(self) -> &'static str {
        match self {
            Self::All => "limit",
            Self::Network => "network_limit",
        }
    }
}

impl Slots {
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Result<Slot, Full> {
        let network = network(address);
        let mut taken = self.lock();
        if taken.all >= limits::CONNECTIONS {
            return Err(Full::All);
        }
        let of_network = taken.by_network.entry(network).or_default();
        if *of_network >= limits::CONNECTIONS_PER_NETWORK {
            return Err(Full::Network);
        }
        *of_network += 1;
        taken.all += 1;
        Ok(Slot { slots: Arc::clone(self), network })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.lock();
        taken.all = taken.all.saturating_sub(1);
        if let Some(of_network) = taken.by_network.get_mut(&self.network) {
            *of_network = of_network.saturating_sub(1);
            if *of_network == 0 {
                taken.by_network.remove(&self.network);
            }
        }
    }
}

/// The /24 or /56 of an address: what one customer of a provider usually holds.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & !0xff).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 72 << 72).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_are_what_one_customer_holds() {
        for (one, other, same) in [
            ("192.0.2.1", "192.0.2.255", true),
            ("192.0.2.1", "192.0.3.1", false),
            ("2001:db8:0:ff::1", "2001:db8:0:aa::2", true),
            ("2001:db8:0:ff::1", "2001:db8:0:1ff::1", false),
        ] {
            assert_eq!(network(address(one)) == network(address(other)), same, "{one} {other}");
        }
    }

    #[test]
    fn one_network_cannot_take_the_places_of_others() {
        let slots = Arc::new(Slots::default());
        let greedy: Vec<_> =
            (0..limits::CONNECTIONS_PER_NETWORK).map(|_| slots.take(address("192.0.2.1")).unwrap()).collect();
        assert_eq!(slots.take(address("192.0.2.9")).unwrap_err(), Full::Network);
        drop(slots.take(address("198.51.100.1")).unwrap());
        drop(greedy);
        drop(slots.take(address("192.0.2.9")).unwrap());
        assert!(slots.lock().by_network.is_empty() && slots.lock().all == 0);
    }

    #[test]
    fn all_places_together_are_bounded() {
        let slots = Arc::new(Slots::default());
        let all: Vec<_> = (0..limits::CONNECTIONS)
            .map(|number| {
                let third = u8::try_from(number / 256).unwrap();
                slots.take(Ipv4Addr::new(10, third, u8::try_from(number % 256).unwrap(), 1).into()).unwrap()
            })
            .collect();
        assert_eq!(slots.take(address("192.0.2.1")).unwrap_err(), Full::All);
        drop(all);
    }
}
