//! A local TCP port that leads to an application: each connection is a stream of the application's session.
//!
//! Whoever connects acts as the person, and any user of the machine can connect to a port on loopback. So the kernel is asked
//! whose the other end is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::sock_diag::{self, Found};
use crate::tunnel::client::{Client, carry_tcp};

use super::{Carried, ForwardError, Forwards, Listed, Target, complain, open_tcp};

/// Connections of one forward at once: as many as a session carries.
const MAX_CONNECTIONS: usize = 500;

/// Whose connections a port takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admits {
    /// On loopback those of the user that this process runs as, and root's; elsewhere everybody's, since who listens there
    /// wants others to come.
    OwnUser,
    Everybody,
}

/// A listener that is bound.
pub struct TcpForward {
    listener: TcpListener,
    address: SocketAddr,
    target: Target,
    client: Client,
    listed: Arc<Listed>,
    /// The only user beside root whose connections are taken; without it everybody's are.
    only: Option<u32>,
}

impl Forwards {
    /// Listens on `address` for connections to the target.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn listen_tcp(
        &self,
        target: &Target,
        address: SocketAddr,
        admits: Admits,
    ) -> Result<TcpForward, ForwardError> {
        let failed = |source| ForwardError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let listed = Arc::new(self.list(target, Carried::Tcp, Some(address)));
        let only = match admits {
            Admits::OwnUser if address.ip().to_canonical().is_loopback() => {
                Some(rustix::process::geteuid().as_raw())
            }
            Admits::OwnUser | Admits::Everybody => None,
        };
        Ok(TcpForward {
            listener,
            address,
            target: target.clone(),
            client: self.client.clone(),
            listed,
            only,
        })
    }
}

impl TcpForward {
    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until dropped.
    pub async fn run(self) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        let complained = AtomicBool::new(false);
        loop {
            // Never closed.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            while connections.try_join_next().is_some() {}
            let Ok((stream, _)) = self.listener.accept().await else {
                // Out of descriptors, or a connection that is gone already.
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            };
            if let Some(only) = self.only
                && let Err(error) = is_of(&stream, only)
            {
                let _ = stream.set_zero_linger();
                // Once: another user could write the person's screen full.
                if !complained.swap(true, Ordering::Relaxed) {
                    complain(&ForwardError::Stranger { address: self.address, why: error });
                }
                continue;
            }
            let (client, target, listed) =
                (self.client.clone(), self.target.clone(), Arc::clone(&self.listed));
            connections.spawn(async move {
                let _place = place;
                let _counted = listed.count();
                if let Err(error) = connection(&client, &target, stream).await {
                    complain(&error);
                }
            });
        }
    }
}

/// One connection, whose end or reset is the application's, and the other way round.
async fn connection(client: &Client, target: &Target, stream: TcpStream) -> Result<(), ForwardError> {
    let _ = stream.set_nodelay(true);
    match open_tcp(client, target).await {
        Ok((_session, send, recv)) => {
            // A cut is seen by both programs, and why a session has ended was said.
            let _ = carry_tcp(stream, send, recv).await;
            Ok(())
        }
        Err(error) => {
            // As a connection that was refused, not one that ended well.
            let _ = stream.set_zero_linger();
            Err(error)
        }
    }
}

/// Whether the other end is `user`'s or root's, or else why not.
fn is_of(stream: &TcpStream, user: u32) -> Result<(), String> {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let ends = stream.peer_addr().and_then(|peer| Ok((canonical(peer), canonical(stream.local_addr()?))));
    let found = ends.and_then(|(peer, local)| sock_diag::find(peer, local, 0));
    judge(found.map_err(|error| error.to_string())?, user)
}

/// A socket that no process has any more is nobody's: the kernel calls it root's.
fn judge(found: Option<Found>, user: u32) -> Result<(), String> {
    match found.filter(|found| found.inode != 0) {
        Some(Found { uid, .. }) if uid == user || uid == 0 => Ok(()),
        Some(Found { uid, .. }) => Err(format!("of the user with uid {uid}")),
        None => Err("of whom cannot be told".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_that_somebody_has_is_anybodys() {
        let found = |uid, inode| Some(Found { state: 1, uid, inode });
        assert_eq!(judge(found(1000, 7), 1000), Ok(()));
        assert_eq!(judge(found(0, 7), 1000), Ok(()));
        assert!(judge(found(1001, 7), 1000).unwrap_err().contains("1001"));
        for nobodys in [found(0, 0), found(1000, 0), None] {
            assert!(judge(nobodys, 1000).unwrap_err().contains("cannot be told"));
        }
    }
}
