//! One session's end-to-end connection, and the streams on it.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, Incoming, RecvStream, SendStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::clock;

use super::super::super::control::{self, FrameReader};
use super::super::super::dial::dial;
use super::super::super::end_to_end::{
    self, Carries, Flows, Reply, Request, SessionCode, Use, probe_timeout,
};
use super::super::super::grant::Protocol;
use super::super::super::pipe::pipe;
use super::super::super::wire::StreamCode;
use super::{Session, Sessions, UNATTENDED, udp};

/// A client gets so long for the handshake, and to say what a stream is for.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The wall clock is looked at so often: it may be set, and a grant replaced.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(2);

/// Waits until the grant, or the latest that took its place, is over.
pub(super) async fn expired(session: &Session) {
    while !is_expired(session) {
        sleep(LOOK_AT_CLOCK).await;
    }
}

pub(super) fn is_expired(session: &Session) -> bool {
    session.grant().is_over(clock::now())
}

/// Waits until nobody has been connected for [`UNATTENDED`].
pub(super) async fn unattended(session: &Session) {
    loop {
        let connection = session.connection().clone();
        match connection {
            Some(connection) => {
                connection.closed().await;
                let mut current = session.connection();
                if current.as_ref().is_some_and(|current| current.stable_id() == connection.stable_id()) {
                    *current = None;
                }
            }
            None => {
                sleep(UNATTENDED).await;
                if session.connection().is_none() {
                    return;
                }
            }
        }
    }
}

/// Serves the client of a session, once it has proved its key, until the connection ends.
pub(super) async fn connection(
    sessions: Arc<Sessions>,
    session: Arc<Session>,
    incoming: Incoming,
    handshake: OwnedSemaphorePermit,
) {
    let index = session.session.index;
    let grant = session.grant();
    let carries = match grant.protocol {
        Protocol::Tcp => Use::Streams,
        Protocol::Udp => Use::Datagrams,
    };
    let room = sessions.rooms.take(&grant.person, carries);
    let config = match end_to_end::connector_config(&sessions.key, grant.client, &room) {
        Ok(config) => config,
        Err(error) => {
            warn!(%error, "a session cannot be served");
            return incoming.refuse();
        }
    };
    let Ok(connecting) = incoming.accept_with(Arc::new(config)) else { return };
    let connection = match timeout(HANDSHAKE_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            warn!(index, %error, "the client of a session did not get in");
            return;
        }
        Err(_) => return,
    };
    debug!(index, "the client of a session is connected");
    session.leg.set_pto(probe_timeout(&connection));
    let replaced = session.connection().replace(connection.clone());
    if let Some(replaced) = replaced {
        replaced.close(SessionCode::Replaced.into(), b"");
    }
    drop(handshake);
    if session.ended.is_cancelled() {
        connection.close(SessionCode::Ended.into(), b"");
        return;
    }
    let flows = Flows::new(connection.clone(), room);
    let streams = async {
        while let Ok((send, recv)) = connection.accept_bi().await {
            session.leg.set_pto(probe_timeout(&connection));
            let of = (Arc::clone(&sessions), Arc::clone(&session), Arc::clone(&flows), connection.clone());
            sessions.streams.spawn(stream(of, send, recv));
        }
    };
    tokio::join!(streams, flows.run());
    let losses = flows.losses();
    if losses != end_to_end::Losses::default() {
        debug!(index, ?losses, "datagrams of a session came to nothing");
    }
    debug!(index, "the client of a session is disconnected");
}

type Of = (Arc<Sessions>, Arc<Session>, Arc<Flows>, Connection);

/// One stream: from its request to its end.
async fn stream((sessions, session, flows, connection): Of, mut send: SendStream, recv: RecvStream) {
    let mut reader = FrameReader::new(recv);
    let request = match timeout(REQUEST_TIMEOUT, reader.next::<Request>()).await {
        Ok(Ok(Some(request))) => request,
        Ok(Err(error)) if error.is_protocol() => {
            connection.close(SessionCode::Protocol.into(), b"malformed request");
            return;
        }
        Ok(Ok(None) | Err(_)) | Err(_) => {
            let _ = send.reset(StreamCode::Protocol.into());
            let _ = reader.into_stream().stop(StreamCode::Protocol.into());
            return;
        }
    };
    let mut recv = reader.into_stream();
    let grant = session.grant();
    let destination = sessions.destination(&grant, request.destination.as_ref());
    let reply = match (destination, request.carries, grant.protocol) {
        _ if sessions.draining.is_cancelled() => Reply::Busy,
        _ if is_expired(&session) => Reply::Refused,
        (Some(destination), Carries::Tcp, Protocol::Tcp) => {
            // A request that the client gave up need not be dialled to the end.
            let dialled = tokio::select! {
                dialled = dial(&destination) => dialled,
                _ = send.stopped() => return,
            };
            match dialled {
                Ok(origin) => {
                    if control::send(&mut send, &Reply::Opened).await.is_ok()
                        && let Err(error) = pipe(origin, send, recv).await
                    {
                        debug!(%destination, %error, "a connection of a session was cut");
                    }
                    return;
                }
                Err(failure) => {
                    debug!(%destination, %failure, "the application cannot be reached");
                    Reply::Down(failure)
                }
            }
        }
        (Some(destination), Carries::Udp { flow }, Protocol::Udp) => {
            // The name may be slow, and the client gone by then. Only who was answered has something to say: what comes
            // before is of no flow and is not kept.
            let dialled = tokio::select! {
                dialled = udp::dial(&destination) => dialled,
                _ = send.stopped() => return,
            };
            match dialled.map(|socket| (flows.add(flow), socket)) {
                Ok((Some(flow), socket)) => {
                    if control::send(&mut send, &Reply::Opened).await.is_ok() {
                        udp::carry(flow, &socket, &mut recv).await;
                        let _ = send.finish();
                    }
                    return;
                }
                Ok((None, _)) => Reply::Refused,
                Err(failure) => Reply::Down(failure),
            }
        }
        (None, _, _) | (Some(_), Carries::Tcp | Carries::Udp { .. }, Protocol::Tcp | Protocol::Udp) => {
            warn!(
                person = grant.person,
                application = grant.application,
                "what a session does not lead to was asked for"
            );
            Reply::Refused
        }
    };
    if control::send(&mut send, &reply).await.is_err() {
        return;
    }
    let _ = recv.stop(StreamCode::Cancelled.into());
    let _ = send.finish();
    let _ = send.stopped().await;
}
