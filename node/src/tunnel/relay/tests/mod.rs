//! The machines under every hand, the table rule by rule, a simulated network, and real sockets.

mod demux;
mod early;
mod end;
mod held;
mod legs;
mod node;
mod simulation;
mod sockets;
mod table;

use std::net::SocketAddr;
use std::time::Duration;

use super::node::{Binds, LegSecret, Own};
use super::tuple::{Leg, SessionRef, Terms, Tuple};
use super::wire::BindKey;

const SESSION: SessionRef = SessionRef { index: 7, generation: 3 };
const OTHER: SessionRef = SessionRef { index: 8, generation: 1 };

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn node_address() -> SocketAddr {
    address("198.51.100.1:443")
}

fn from(remote: &str) -> Tuple {
    Tuple::new(node_address(), address(remote))
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn terms() -> Terms {
    Terms { identity: 5, epoch: 2, expires: Duration::from_secs(3600) }
}

/// A key and a ticket for each leg of each session, all different.
fn secret(session: SessionRef, leg: Leg) -> LegSecret {
    let mark = u8::try_from(session.index * 2).unwrap() + u8::from(leg == Leg::Connector);
    LegSecret { key: BindKey::from_bytes([mark; 32]), ticket: [mark; 16] }
}

fn own() -> Own {
    let address = node_address();
    Own { addresses: [address.ip()].into(), ports: [address.port(), 8443].into() }
}

/// A node that expects both legs of both sessions.
fn node() -> Binds {
    let mut binds = Binds::new(own());
    for session in [SESSION, OTHER] {
        binds.register(session, terms()).unwrap();
        for leg in Leg::BOTH {
            binds.expect(session, leg, secret(session, leg)).unwrap();
        }
    }
    binds
}
