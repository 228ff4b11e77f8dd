//! A local TCP port that leads to an application: each connection is a stream of the application's session.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::tunnel::client::{Client, carry_tcp};

use super::{Carried, ForwardError, Forwards, Listed, Target, complain, open_tcp};

/// Connections of one forward at once: as many as a session carries.
const MAX_CONNECTIONS: usize = 500;

/// A listener that is bound.
pub struct TcpForward {
    listener: TcpListener,
    address: SocketAddr,
    target: Target,
    client: Client,
    listed: Arc<Listed>,
}

impl Forwards {
    /// Listens on `address` for connections to the target.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn listen_tcp(&self, target: &Target, address: SocketAddr) -> Result<TcpForward, ForwardError> {
        let failed = |source| ForwardError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let listed = Arc::new(self.list(target, Carried::Tcp, Some(address)));
        Ok(TcpForward { listener, address, target: target.clone(), client: self.client.clone(), listed })
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
        loop {
            // Never closed.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            while connections.try_join_next().is_some() {}
            let Ok((stream, _)) = self.listener.accept().await else {
                // Out of descriptors, or a connection that is gone already.
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            };
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
